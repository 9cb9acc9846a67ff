"""Semantic maps inside ComfyUI."""
