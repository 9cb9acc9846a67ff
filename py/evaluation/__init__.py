"""What makes a result measurable: instance success, boxes, CLIP score, Frechet distance. Judges are the caller's choice."""
