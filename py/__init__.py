"""What the nodes call: torch code by technique, and `host`, the only package here that imports ComfyUI."""
