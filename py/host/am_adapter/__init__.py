"""AM-Adapter inside ComfyUI."""
