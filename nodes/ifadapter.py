"""A detailed phrase for every box (IFAdapter, arXiv 2409.08240)."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import folders
from ..py.host.ifadapter import apply as host
from ..py.host.ifadapter import trained
from ..py.host.ifadapter.preview import draw_instances
from ..py.ifadapter.attention import FUSIONS
from ..py.ifadapter.instances import BOX_FORMATS, Instance, Instances, from_boxes, from_json, mask_box
from ..py.ifadapter.regional import Settings
from .types import BOX_TYPES, IFAdapterType, InstancesType
from .widgets import advanced


def _fraction(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class ExemplaryInstance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstance",
            display_name="Instance",
            category="exemplary/layout",
            description="One object: a phrase and the box it belongs into. Chain several of these, one per object.",
            inputs=[
                io.String.Input(
                    "phrase", multiline=True, default="", tooltip="What to draw in this box, as detailed as you like."
                ),
                _fraction("x", 0.25, "Left edge of the box, 0 to 1 of the picture's width."),
                _fraction("y", 0.25, "Upper edge of the box, 0 to 1 of the picture's height."),
                _fraction("width", 0.5, "Width of the box, 0 to 1 of the picture's width."),
                _fraction("height", 0.5, "Height of the box, 0 to 1 of the picture's height."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1 is the full effect on this object, 0 leaves it out.",
                ),
                InstancesType.Input("instances", optional=True, tooltip="The instances so far; this one is added to them."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The object's exact place in the whole picture. The box is then the mask's own, not the numbers.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Image of this object, for Regional References. Of a batch the first is used.",
                ),
            ],
            outputs=[InstancesType.Output(display_name="instances")],
        )

    @classmethod
    def execute(cls, phrase, x, y, width, height, strength, instances=None, mask=None, reference=None) -> io.NodeOutput:
        box = (x, y, x + width, y + height) if mask is None else mask_box(mask, phrase)
        return io.NodeOutput((instances or Instances()).plus(Instance(box, phrase, mask, strength, reference)))


class ExemplaryInstancesFromBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstancesFromBoxes",
            display_name="Instances From Boxes",
            category="exemplary/layout",
            description="Instances from boxes of other nodes (detectors, box editors), or from JSON.",
            inputs=[
                io.String.Input(
                    "phrases",
                    multiline=True,
                    default="",
                    tooltip="One phrase per line, in the order of the boxes. Empty: the boxes' own descriptions.",
                ),
                io.Combo.Input(
                    "box_format",
                    options=list(BOX_FORMATS),
                    default=BOX_FORMATS[3],
                    tooltip="What the four numbers of a box mean.",
                ),
                io.Int.Input(
                    "width", default=512, min=1, max=32768, tooltip="Width of the picture that boxes in pixels refer to."
                ),
                io.Int.Input(
                    "height", default=512, min=1, max=32768, tooltip="Height of the picture that boxes in pixels refer to."
                ),
                io.String.Input(
                    "json",
                    multiline=True,
                    default="",
                    tooltip='Instead of boxes: [{"box": [x0, y0, x1, y1] from 0 to 1, "phrase": "..."}], or an IFAdapter layout file\'s text.',
                ),
                InstancesType.Input("instances", optional=True, tooltip="The instances so far; these are added to them."),
                io.MultiType.Input(
                    "boxes", types=BOX_TYPES, optional=True, tooltip="BBOX, BOUNDING_BOX, BOUNDING_BOXES or SEGS."
                ),
            ],
            outputs=[InstancesType.Output(display_name="instances"), io.String.Output(display_name="json")],
        )

    @classmethod
    def execute(cls, phrases, box_format, width, height, json, instances=None, boxes=None) -> io.NodeOutput:
        found = from_json(json, width, height) if json.strip() else Instances()
        if boxes is not None:
            found = found.plus(*from_boxes(boxes, phrases.splitlines(), box_format, width, height))
        elif not json.strip():
            raise ValueError("Instances From Boxes: connect boxes or type JSON; both are empty.")
        found = (instances or Instances()).plus(*found)
        return io.NodeOutput(found, found.to_json())


class ExemplaryLoadIFAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadIFAdapter",
            display_name="Load IFAdapter",
            category="exemplary/layout",
            description=(
                "Trained IFAdapter weights from models/ifadapter: the published spd_adapter.bin (SDXL), its safetensors form, or your own. "
                "The playground's adapter ships with the pack."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.files(trained.FOLDER),
                    tooltip=f"A file in models/ifadapter. The published one: {trained.LINK}",
                )
            ],
            outputs=[IFAdapterType.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(trained.load(file))


class ExemplaryApplyIFAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryApplyIFAdapter",
            display_name="Apply IFAdapter",
            category="exemplary/layout",
            description=(
                "Draw each described object inside its own box (IFAdapter, arXiv 2409.08240), with trained weights from Load IFAdapter. "
                "Without an adapter this is another, weight-free method, masked regional attention with gated fusion, on any Stable "
                "Diffusion 1.x, 2.x or SDXL model."
            ),
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", tooltip="Encodes the phrases. Must be the CLIP of the same checkpoint."),
                InstancesType.Input("instances", tooltip="Boxes and their phrases."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="0 leaves the model as it was."),
                _fraction("start_percent", 0.0, "Where the effect begins."),
                _fraction(
                    "end_percent",
                    1.0,
                    "Where the effect ends. The layout is decided early; a smaller value frees details. IFAdapter's authors use 0.3 with LoRAs.",
                ),
                io.String.Input(
                    "background",
                    multiline=True,
                    default="",
                    tooltip="What to draw outside of all boxes, so that the prompt's objects do not appear there again. Empty: the prompt itself.",
                ),
                advanced(
                    io.Float.Input(
                        "separate",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        tooltip="Above 0, the places of different objects look at each other less (self-attention), so that they mix less.",
                    )
                ),
                IFAdapterType.Input(
                    "adapter", optional=True, tooltip="Trained IFAdapter weights. Empty: the weight-free method."
                ),
                advanced(
                    io.Combo.Input(
                        "fusion",
                        options=list(FUSIONS),
                        default="published code",
                        optional=True,
                        tooltip="With an adapter only: how overlapping objects share a place. The published weights expect the first.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "whole_phrase",
                        default=False,
                        optional=True,
                        tooltip="Let every layer of the adapter's text part see all words. Off: as in the published code, with which it was trained.",
                    )
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        instances,
        strength,
        start_percent,
        end_percent,
        background,
        separate,
        adapter=None,
        fusion="published code",
        whole_phrase=False,
    ) -> io.NodeOutput:
        settings, variant = Settings(separate=separate), trained.Variant(fusion, whole_phrase)
        return io.NodeOutput(
            host.apply(model, clip, instances, strength, start_percent, end_percent, background, adapter, settings, variant)
        )


class ExemplaryInstanceMapPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstanceMapPreview",
            display_name="Instance Map Preview",
            category="exemplary/layout",
            description="A picture of the boxes and their phrases, on a picture of yours if there is one.",
            inputs=[
                InstancesType.Input("instances", tooltip="Boxes and their phrases."),
                io.Int.Input("width", default=512, min=16, max=8192, tooltip="Width of the drawing if no image is connected."),
                io.Int.Input("height", default=512, min=16, max=8192, tooltip="Height of the drawing if no image is connected."),
                io.Image.Input("image", optional=True, tooltip="Drawn behind the boxes, such as the result, to compare."),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, instances, width, height, image=None) -> io.NodeOutput:
        return io.NodeOutput(draw_instances(instances, width, height, image))


NODES = [
    ExemplaryInstance,
    ExemplaryInstancesFromBoxes,
    ExemplaryLoadIFAdapter,
    ExemplaryApplyIFAdapter,
    ExemplaryInstanceMapPreview,
]
