"""The only package that imports ComfyUI: host objects in, pure functions called, host objects out."""
