"""Exemplary: examples, layouts and semantic maps as guides for image generation. Registration only."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from .nodes import node_classes

WEB_DIRECTORY = "./js"


class ExemplaryExtension(ComfyExtension):
    async def get_node_list(self):
        return node_classes()


async def comfy_entrypoint() -> ExemplaryExtension:
    return ExemplaryExtension()
