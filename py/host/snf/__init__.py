"""Saliency-adaptive noise fusion (Face-diffuser) inside ComfyUI."""
