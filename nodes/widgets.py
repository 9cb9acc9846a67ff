"""How the pack's nodes declare the widgets that all techniques have."""

from __future__ import annotations

from comfy_api.latest import io


def advanced(widget: io.Input) -> io.Input:
    """A widget that the frontend shows only if the user asks for more."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}  # 0.3.75 has no argument for it and passes it on
    return widget
