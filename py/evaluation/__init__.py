"""Measures of results: instance success, boxes, CLIP score, Frechet distance. The caller chooses the detector."""
