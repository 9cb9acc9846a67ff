"""Paint by Example inside ComfyUI."""
