"""Crop a face, or anything else, to the size that an editor works on."""

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
            category="exemplary/CA2-SIS",
            description=(
                "Crops a window around a mask to the size at which an editor works, such as a face in a photo "
                "for CA2-SIS. Stitch pastes the result back; outside the mask and its feather, the image does "
                "not change."
            ),
            inputs=[
                io.Image.Input("image", tooltip="One or more images to edit."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "Mask of the area to edit, such as the face and hair. Only pixels in the mask and its "
                        "feather change. An image whose mask is empty passes through unchanged."
                    ),
                ),
                io.Int.Input("width", default=256, min=64, max=8192, step=8, tooltip="Width at which the editor works."),
                io.Int.Input("height", default=256, min=64, max=8192, step=8, tooltip="Height at which the editor works."),
                io.Float.Input(
                    "context",
                    default=0.3,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Margin on each side, as a fraction of the size of the mask's bounding box. 0.3 matches CelebAMask-HQ.",
                ),
                io.Int.Input("grow", default=0, min=0, max=512, tooltip="Number of image pixels by which the mask is enlarged."),
                io.Int.Input(
                    "feather",
                    default=12,
                    min=0,
                    max=512,
                    tooltip="Number of pixels around the mask over which the result is blended into the image.",
                ),
                io.Combo.Input(
                    "align",
                    options=list(host.ALIGNMENTS),
                    default=host.UPRIGHT,
                    tooltip="by the eyes: rotates the window so that the eyes of the masked face are horizontally aligned. Needs semantic_map.",
                ),
                SemanticMapType.Input(
                    "semantic_map", optional=True, tooltip="Semantic map of the whole image; it is cropped in the same way."
                ),
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
            *host.crop_to_edit(
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
