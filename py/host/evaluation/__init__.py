"""Measures of generated images inside ComfyUI."""
