"""Exemplary: examples, layouts and semantic maps as guides for image generation. Registration only."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from .nodes import node_classes
from .py.host import folders

WEB_DIRECTORY = "./js"


class ExemplaryExtension(ComfyExtension):
    """The pack, as the host sees it."""

    async def get_node_list(self):
        return node_classes()


async def comfy_entrypoint() -> ExemplaryExtension:
    """What the host calls once: our model folders, then our nodes."""
    folders.register()
    return ExemplaryExtension()
