"""The layout editor: instances drawn on the node itself (IFAdapter, arXiv 2409.08240)."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..py.ifadapter.instances import Instances, from_json
from ..py.ifadapter.regional import instance_masks
from .types import InstancesType

LAYOUT_WIDGET = "EXEMPLARY_LAYOUT"  # js/layout_editor.js; without it the input is a socket for any STRING
BACKGROUND = (
    "exemplary_background"  # what the editor looks for in this node's results; the name is its own, so that no preview appears
)


def _edited(text: io.String.Input) -> io.String.Input:
    text.extra_dict = {"widgetType": LAYOUT_WIDGET}  # not an argument: that would change the socket's type too
    return text


class ExemplaryInstanceLayout(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstanceLayout",
            display_name="Instance Layout",
            category="exemplary/layout",
            description="Draw a box for each object, on the node, and write into it what belongs there.",
            inputs=[
                io.Int.Input("width", default=512, min=16, max=8192, step=8, tooltip="Width of the picture in pixels."),
                io.Int.Input("height", default=512, min=16, max=8192, step=8, tooltip="Height of the picture in pixels."),
                _edited(
                    io.String.Input(
                        "layout",
                        default="[]",
                        tooltip='The boxes, as JSON: [{"box": [x0, y0, x1, y1] from 0 to 1, "phrase": "...", "strength": 1}].',
                    )
                ),
                InstancesType.Input(
                    "instances", optional=True, tooltip="The instances so far; the drawn ones are added to them."
                ),
                io.Image.Input("image", optional=True, tooltip="Shown behind the boxes while you draw. It changes nothing else."),
            ],
            outputs=[
                InstancesType.Output(display_name="instances"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
                io.Mask.Output(
                    display_name="masks", tooltip="One mask an instance, in their order; a single empty one if there is none."
                ),
            ],
        )

    @classmethod
    def execute(cls, width, height, layout, instances=None, image=None) -> io.NodeOutput:
        drawn = from_json(layout, width, height) if layout.strip() else Instances()
        found = (instances or Instances()).plus(*drawn)
        masks = instance_masks(found.items, height, width) if len(found) else torch.zeros(1, height, width)
        shown = {} if image is None else {BACKGROUND: ui.PreviewImage(image[:1], cls=cls).as_dict()["images"]}
        return io.NodeOutput(found, width, height, masks, ui=shown or None)


NODES = [ExemplaryInstanceLayout]
