"""CA2-SIS inside ComfyUI."""
