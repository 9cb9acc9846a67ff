"""The layout editor: instances drawn on the node itself (IFAdapter, arXiv 2409.08240)."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..py.host import inputs, notices
from ..py.ifadapter.instances import Instances
from ..py.ifadapter.layouts import Layout, from_json
from ..py.ifadapter.regional import instance_masks
from .types import InstancesType

LAYOUT_WIDGET = "EXEMPLARY_LAYOUT"  # js/layout_editor.js; without it the input is a socket for any STRING
BACKGROUND = "exemplary_background"  # the editor looks for this key in the node's results; the host shows no preview for it
NODE = "Instance Layout"
LEAST_SIDE, LARGEST_SIDE = 16, 8192


def _edited(text: io.String.Input) -> io.String.Input:
    text.extra_dict = {"widgetType": LAYOUT_WIDGET}  # not an argument: that would change the socket's type too
    return text


class ExemplaryInstanceLayout(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstanceLayout",
            display_name=NODE,
            category="exemplary/IFAdapter",
            description="Draw a box for each object on the node and write its phrase.",
            inputs=[
                io.Int.Input(
                    "width", default=512, min=LEAST_SIDE, max=LARGEST_SIDE, step=8, tooltip="Width of the image in pixels."
                ),
                io.Int.Input(
                    "height", default=512, min=LEAST_SIDE, max=LARGEST_SIDE, step=8, tooltip="Height of the image in pixels."
                ),
                _edited(
                    io.String.Input(
                        "layout",
                        default="[]",
                        tooltip='The boxes as JSON: [{"box": [x0, y0, x1, y1] from 0 to 1, "phrase": "...", "strength": 1}].',
                    )
                ),
                InstancesType.Input(
                    "instances", optional=True, tooltip="Instances from other nodes; the drawn ones are appended to them."
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Image shown behind the boxes while you draw. It has no other effect."
                ),
            ],
            outputs=[
                InstancesType.Output(display_name="instances"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
                io.Mask.Output(
                    display_name="masks", tooltip="One mask per instance, in order; a single empty mask if there is no instance."
                ),
            ],
        )

    @classmethod
    def execute(cls, width, height, layout, instances=None, image=None) -> io.NodeOutput:
        width = inputs.check_integer(width, NODE, "width", LEAST_SIDE, LARGEST_SIDE)
        height = inputs.check_integer(height, NODE, "height", LEAST_SIDE, LARGEST_SIDE)
        layout = inputs.check_text(layout, NODE, "layout")
        drawn = from_json(layout, width, height) if layout.strip() else Layout()
        for warning in drawn.warnings:
            notices.warn_user(f"{NODE}: {warning}")
        found = (instances or Instances()).plus(*drawn.instances)
        masks = instance_masks(found.items, height, width) if len(found) else torch.zeros(1, height, width)
        shown = {}
        if image is not None:
            behind = inputs.check_image(image[:1] if torch.is_tensor(image) else image, NODE)
            shown[BACKGROUND] = ui.PreviewImage(behind, cls=cls).as_dict()["images"]
        return io.NodeOutput(found, width, height, masks, ui=shown or None)


NODES = [ExemplaryInstanceLayout]
