"""A detailed phrase for every box (IFAdapter, arXiv 2409.08240)."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..py.host import folders, inputs, notices
from ..py.host.ifadapter import apply as host
from ..py.host.ifadapter import trained
from ..py.host.ifadapter.inputs import FOLDER, LINK, LOADER
from ..py.host.ifadapter.preview import draw_instances
from ..py.ifadapter.attention import FUSIONS
from ..py.ifadapter.boxes import BOX_FORMATS, find_cut_boxes
from ..py.ifadapter.instances import Instance, Instances, mask_to_box
from ..py.ifadapter.layouts import Layout, from_boxes, from_json
from ..py.ifadapter.regional import Settings
from .types import BOX_TYPES, DETECTION_TYPES, IFAdapterType, InstancesType
from .widgets import advanced

CATEGORY = "exemplary/IFAdapter"
INSTANCE, FROM_BOXES, PREVIEW = "Instance", "Instances From Boxes", "Instance Map Preview"
LARGEST_SIDE = 32768


def _fraction(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class ExemplaryInstance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstance",
            display_name=INSTANCE,
            category=CATEGORY,
            description="One object: a phrase and the box in which to draw it. Chain several of these nodes, one per object.",
            inputs=[
                io.String.Input(
                    "phrase",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to draw in this box, in as much detail as you like.",
                ),
                _fraction("x", 0.25, "Left edge of the box, 0 to 1 of the image width."),
                _fraction("y", 0.25, "Top edge of the box, 0 to 1 of the image height."),
                _fraction("width", 0.5, "Width of the box, 0 to 1 of the image width."),
                _fraction("height", 0.5, "Height of the box, 0 to 1 of the image height."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Strength of the effect on this object. 1 is the full effect, 0 turns the object off.",
                ),
                InstancesType.Input(
                    "instances", optional=True, tooltip="Instances from other nodes; this one is appended to them."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Exact region of the object in the whole image. It replaces the box, and the four numbers are not used.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Image of this object, for Regional References. Only the first image of a batch is used.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Used instead of the phrase, from any text encoder or prompt node. Only for the weight-free method.",
                ),
            ],
            outputs=[InstancesType.Output(display_name="instances")],
        )

    @classmethod
    def execute(
        cls, phrase, x, y, width, height, strength, instances=None, mask=None, reference=None, conditioning=None
    ) -> io.NodeOutput:
        phrase = inputs.check_text(phrase, INSTANCE, "phrase")
        if mask is not None:
            mask = inputs.check_mask(mask, INSTANCE)
            box = mask_to_box(mask, phrase)
        else:
            sides = zip(("x", "y", "width", "height"), (x, y, width, height))
            x, y, width, height = (inputs.check_number(value, INSTANCE, name, 0.0, 1.0) for name, value in sides)
            box = (x, y, x + width, y + height)
            for warning in find_cut_boxes([box], [phrase]):
                notices.warn_user(f"{INSTANCE}: {warning}")
        instance = Instance(box, phrase, mask, strength, reference, conditioning)
        return io.NodeOutput((instances or Instances()).plus(instance))


class ExemplaryInstancesFromBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstancesFromBoxes",
            display_name=FROM_BOXES,
            category=CATEGORY,
            description="Instances from the boxes of detectors, vision-language models, box editors or JSON.",
            inputs=[
                io.String.Input(
                    "phrases",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="One phrase per line, in the order of the boxes. If empty, the labels that come with the boxes are used.",
                ),
                io.Combo.Input(
                    "box_format",
                    options=list(BOX_FORMATS),
                    default=BOX_FORMATS[3],
                    tooltip="Order and unit of the four numbers of a box, for boxes that do not define them.",
                ),
                io.Int.Input(
                    "width", default=512, min=1, max=LARGEST_SIDE, tooltip="Width of the image that boxes in pixels refer to."
                ),
                io.Int.Input(
                    "height", default=512, min=1, max=LARGEST_SIDE, tooltip="Height of the image that boxes in pixels refer to."
                ),
                io.String.Input(
                    "json",
                    multiline=True,
                    default="",
                    tooltip='Boxes as JSON text, such as [{"box": [x0, y0, x1, y1] from 0 to 1, "phrase": "..."}], or the answer of a model.',
                ),
                InstancesType.Input(
                    "instances", optional=True, tooltip="Instances from other nodes; these are appended to them."
                ),
                io.MultiType.Input(
                    "boxes",
                    types=BOX_TYPES,
                    optional=True,
                    tooltip="Boxes from another node: BBOX, BOUNDING_BOX, BOUNDING_BOXES or SEGS.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Image in which the boxes were found. Its size is used instead of width and height.",
                ),
                io.MultiType.Input(
                    "detections",
                    types=DETECTION_TYPES,
                    optional=True,
                    tooltip="Boxes in other data formats from another node, such as the elements of a box editor or "
                    "{bboxes, labels} of Florence-2.",
                ),
                advanced(
                    io.Int.Input(
                        "image_index",
                        default=-1,
                        min=-1,
                        max=4096,
                        optional=True,
                        tooltip="If the boxes belong to several images: index of the image whose boxes are used, "
                        "starting at 0. -1 uses the boxes of all images.",
                    )
                ),
            ],
            outputs=[InstancesType.Output(display_name="instances"), io.String.Output(display_name="json")],
        )

    @classmethod
    def execute(
        cls,
        phrases,
        box_format,
        width,
        height,
        json,
        instances=None,
        boxes=None,
        image=None,
        detections=None,
        image_index=-1,
    ) -> io.NodeOutput:
        phrases, json = inputs.check_text(phrases, FROM_BOXES, "phrases"), inputs.check_text(json, FROM_BOXES, "json")
        inputs.check_choice(box_format, FROM_BOXES, "box_format", BOX_FORMATS)
        if image is not None:
            height, width = inputs.check_image(image, FROM_BOXES).shape[1:3]
        width = inputs.check_integer(width, FROM_BOXES, "width", 1, LARGEST_SIDE)
        height = inputs.check_integer(height, FROM_BOXES, "height", 1, LARGEST_SIDE)
        image_index = inputs.check_integer(image_index, FROM_BOXES, "image_index", -1, 4096)
        given = [each for each in (boxes, detections) if each is not None]
        if not given and not json.strip():
            raise ValueError(f"{FROM_BOXES}: connect boxes or write JSON; both are empty.")
        lines = phrases.splitlines()
        layouts: list[Layout] = []
        if json.strip():
            layouts.append(from_json(json, width, height, box_format, () if given else lines, image_index))
        layouts += [from_boxes(each, lines, box_format, width, height, image_index) for each in given]
        for warning in dict.fromkeys(warning for layout in layouts for warning in layout.warnings):
            notices.warn_user(f"{FROM_BOXES}: {warning}")
        found = (instances or Instances()).plus(*(instance for layout in layouts for instance in layout.instances))
        return io.NodeOutput(found, found.to_json())


class ExemplaryLoadIFAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadIFAdapter",
            display_name=LOADER,
            category=CATEGORY,
            description=(
                "Loads trained IFAdapter weights from models/ifadapter: the published spd_adapter.bin (SDXL), its safetensors form, or an "
                "adapter that you trained. The playground's adapter is included."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.files(FOLDER),
                    tooltip=f"File in models/ifadapter. The published weights: {LINK}",
                )
            ],
            outputs=[IFAdapterType.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(trained.load(inputs.check_text(file, LOADER, "file")))


class ExemplaryApplyIFAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryApplyIFAdapter",
            display_name="Apply IFAdapter",
            category=CATEGORY,
            description=(
                "Draws each described object in its box: with trained weights from Load IFAdapter (IFAdapter, arXiv 2409.08240), or without "
                "weights by regional attention, on Stable Diffusion 1.x, 2.x, SDXL and transformer models."
            ),
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", tooltip="Encodes the phrases. Must be the CLIP from the same checkpoint as the model."),
                InstancesType.Input("instances", tooltip="Boxes and their phrases."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Strength of the effect on all objects. 0 leaves the model unchanged.",
                ),
                _fraction("start_percent", 0.0, "Point in the sampling at which the effect begins, 0 to 1."),
                _fraction(
                    "end_percent",
                    1.0,
                    "Point in the sampling at which the effect ends, 0 to 1. The layout is determined in the "
                    "early steps, so a lower value gives the model more freedom in the details. IFAdapter's "
                    "authors use 0.3 with LoRAs.",
                ),
                io.String.Input(
                    "background",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to draw outside of all boxes, so that the prompt's objects are not repeated there. If empty, the prompt is used.",
                ),
                advanced(
                    io.Float.Input(
                        "separate",
                        display_name="isolate instances",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        tooltip="Reduces self-attention between different objects, so that their colours and shapes mix less. Try 1 to 4.",
                    )
                ),
                IFAdapterType.Input(
                    "adapter",
                    optional=True,
                    tooltip="Trained IFAdapter weights. If not connected, the weight-free method is used.",
                ),
                advanced(
                    io.Combo.Input(
                        "fusion",
                        options=list(FUSIONS),
                        default=FUSIONS[0],
                        optional=True,
                        tooltip="Only with an adapter: how the features of overlapping objects are combined. The "
                        "published weights were trained with 'published code'.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "whole_phrase",
                        default=False,
                        optional=True,
                        tooltip="Only with an adapter: all layers of its text network attend to every word. The "
                        "published weights expect this to be off.",
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
        fusion=FUSIONS[0],
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
            display_name=PREVIEW,
            category=CATEGORY,
            description="Draws the boxes and their phrases, over an image if one is connected.",
            inputs=[
                InstancesType.Input("instances", tooltip="Boxes and their phrases."),
                io.Int.Input("width", default=512, min=16, max=8192, tooltip="Width of the drawing if no image is connected."),
                io.Int.Input("height", default=512, min=16, max=8192, tooltip="Height of the drawing if no image is connected."),
                io.Image.Input("image", optional=True, tooltip="Image behind the boxes, such as the result, for comparison."),
            ],
            outputs=[io.Image.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, instances, width, height, image=None) -> io.NodeOutput:
        width = inputs.check_integer(width, PREVIEW, "width", 16, 8192)
        height = inputs.check_integer(height, PREVIEW, "height", 16, 8192)
        if image is not None:  # a failed image is worth a look too
            image = inputs.check_image(image.nan_to_num() if torch.is_tensor(image) else image, PREVIEW)
        drawn = draw_instances(instances, width, height, image)
        return io.NodeOutput(drawn, ui=ui.PreviewImage(drawn))


NODES = [
    ExemplaryInstance,
    ExemplaryInstancesFromBoxes,
    ExemplaryLoadIFAdapter,
    ExemplaryApplyIFAdapter,
    ExemplaryInstanceMapPreview,
]
