"""AM-Adapter in ComfyUI: the nodes' functions, exemplar features, ControlNeXt, preview."""
