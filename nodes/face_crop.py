"""A face, or anything else, out of a photo for an editor of another size."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import crop as host
from .types import SemanticMapType, StitchType


class ExemplaryCropToEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCropToEdit",
            display_name="Crop to Edit",
            category="exemplary/ca2-sis",
            description=(
                "Cuts a window around what a mask shows to the size that an editor works on, such as a face in a photo for CA2-SIS. "
                "Stitch puts the result back; outside of the mask and its feather the photo stays as it was."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The photo, or several."),
                io.Mask.Input(
                    "mask", tooltip="What is edited: the face with its hair. Only there, and in the feather, pixels change."
                ),
                io.Int.Input("width", default=256, min=64, max=8192, step=8, tooltip="Width that the editor works on."),
                io.Int.Input("height", default=256, min=64, max=8192, step=8, tooltip="Height that the editor works on."),
                io.Float.Input(
                    "context",
                    default=0.3,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Room on each side, in sizes of what the mask shows. 0.3 suits CelebAMask-HQ.",
                ),
                io.Int.Input("grow", default=0, min=0, max=512, tooltip="Pixels of the photo by which the mask is widened."),
                io.Int.Input(
                    "feather",
                    default=12,
                    min=0,
                    max=512,
                    tooltip="Pixels around the mask over which the result fades into the photo.",
                ),
                io.Combo.Input(
                    "align",
                    options=list(host.ALIGNMENTS),
                    default=host.UPRIGHT,
                    tooltip="by the eyes: turn the window until the eyes of the map are level, as in the pictures that faces are trained on.",
                ),
                SemanticMapType.Input("semantic_map", optional=True, tooltip="Of the whole photo; it is cut in the same way."),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask"),
                SemanticMapType.Output(display_name="semantic_map"),
                StitchType.Output(display_name="stitch"),
            ],
        )

    @classmethod
    def execute(cls, image, mask, width, height, context, grow, feather, align, semantic_map=None) -> io.NodeOutput:
        return io.NodeOutput(
            *host.crop(
                image,
                mask,
                semantic_map,
                width=width,
                height=height,
                context=context,
                grow=grow,
                feather=feather,
                align=align,
            )
        )


NODES = [ExemplaryCropToEdit]
