"""Measures of what a workflow has made."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.evaluation.detection import success_rate
from ..py.host.evaluation import instances as host
from ..py.host.evaluation import regions as region_score
from .types import InstancesType

_JUDGES = (host.PLAYGROUND, "own models")


class ExemplaryInstanceSuccess(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryInstanceSuccess",
            display_name="Instance Success",
            category="exemplary/evaluation",
            description=(
                "How many of the asked objects stand in their boxes and are what their phrases say: the share, box overlaps and average "
                "precision, over all pictures of the batch."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The results; each picture is measured against the same instances."),
                InstancesType.Input("instances", tooltip="The boxes and phrases that the pictures were made with."),
                io.Combo.Input(
                    "judge",
                    options=list(_JUDGES),
                    default=_JUDGES[0],
                    tooltip="playground: knows the drawn world's things only. own models: the folders below, for real pictures.",
                ),
                io.Float.Input(
                    "overlap",
                    default=0.5,
                    min=0.05,
                    max=0.95,
                    step=0.05,
                    tooltip="How much a found box must overlap the asked one (intersection over union) to count.",
                ),
                io.String.Input(
                    "detector",
                    default="",
                    tooltip="Folder of a zero-shot object detector of transformers, such as Grounding DINO or OWL-ViT. Nothing is downloaded.",
                ),
                io.String.Input(
                    "vision_language_model",
                    default="",
                    tooltip="Folder of an image-text-to-text model of transformers, asked what is in each box. Empty: the detector's word counts.",
                ),
            ],
            outputs=[io.Float.Output(display_name="success"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, instances, judge, overlap, detector, vision_language_model) -> io.NodeOutput:
        chosen = host.judge_named(host.PLAYGROUND if judge == _JUDGES[0] else detector, vision_language_model)
        score = host.measure(images, instances, chosen, overlap)
        text = host.report(score, instances)
        return io.NodeOutput(success_rate(score.found), text, ui=ui.PreviewText(text))


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
        score, report = region_score.measure(clip_vision, image, mask, exemplar)
        return io.NodeOutput(score, report, ui=ui.PreviewText(report))


NODES = [ExemplaryInstanceSuccess, ExemplaryRegionCLIPScore]
