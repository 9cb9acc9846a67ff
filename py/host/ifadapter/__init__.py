"""IFAdapter inside ComfyUI."""
