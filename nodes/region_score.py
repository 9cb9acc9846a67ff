"""Measures of what stands in a region of a picture."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.host import region_score as host


class ExemplaryRegionCLIPScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryRegionCLIPScore",
            display_name="Region CLIP Score",
            category="exemplary/evaluation",
            description=(
                "How much the painted place looks like the exemplar, as Paint by Example measures it: 100 times the cosine of the two pictures' "
                "CLIP embeddings. Scores of different CLIP models cannot be compared; papers use ViT-B/32."
            ),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Any CLIP; papers use ViT-B/32."),
                io.Image.Input("image", tooltip="The result."),
                io.Mask.Input("mask", tooltip="The hole that was painted; the rectangle around it is looked at."),
                io.Image.Input("exemplar", tooltip="The picture of the thing."),
            ],
            outputs=[io.Float.Output(display_name="score"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip_vision, image, mask, exemplar) -> io.NodeOutput:
        score, report = host.measure(clip_vision, image, mask, exemplar)
        return io.NodeOutput(score, report, ui=ui.PreviewText(report))


NODES = [ExemplaryRegionCLIPScore]
