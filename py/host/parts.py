"""Sampling runs that are a part of an image: tile upscalers and detailers sample crops as separate images.

Inside one run the position of a tile can be found (`grids.chunk_view`). A run whose whole latent is a crop does not know the image it is
cut from: neither its conditions nor its options say so. All that can be known is the node that samples, and the user is warned.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from . import notices

#: Class names of nodes that sample crops: tile upscalers, tiled samplers, detailers of single segments.
_CROPPING = re.compile(r"ultimatesdupscale|detailer|tile|segs", re.IGNORECASE)
_warned: list[tuple[str, str]] = []  # the latest (prompt, node) that was warned of


def warn_of_crops() -> None:
    """Warn, once per execution of a node, that it samples crops to each of which the whole layout is applied."""
    found = executing_node()
    if found is None:
        return
    prompt, node, name = found
    if _CROPPING.search(name) and (prompt, node) not in _warned:
        _warned[:] = [(prompt, node)]
        notices.warn_user(
            f"{name} samples tiles or crops of an image, and the MODEL's boxes, semantic maps and masks are applied to each of them as if it "
            "were the whole image. Give this node the MODEL from before Exemplary's nodes."
        )


def executing_node() -> tuple[str, str, str] | None:
    """(prompt id, node id, class name) of the node that is being executed; None outside of a prompt."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    running: dict[Any, Any] = getattr(getattr(server, "prompt_queue", None), "currently_running", None) or {}
    if context is None:
        return None
    for item in list(running.values()):
        if item[1] == context.prompt_id and context.node_id in item[2]:
            return context.prompt_id, context.node_id, str(item[2][context.node_id].get("class_type"))
    return None
