"""Measures of generated images."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.evaluation.detection import success_rate
from ..py.host import inputs
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
            category="exemplary/Evaluation",
            description=(
                "Measures how many objects are in the correct box and match their phrase: success rate, box "
                "overlap and average precision over all images of the batch."
            ),
            inputs=[
                io.Image.Input("images", tooltip="Generated images; each is compared with the same instances."),
                InstancesType.Input("instances", tooltip="Boxes and phrases that the images were generated with."),
                io.Combo.Input(
                    "judge",
                    options=list(_JUDGES),
                    default=_JUDGES[0],
                    tooltip="playground: a detector for the playground's drawn objects. own models: the models in the folders below, for photos.",
                ),
                io.Float.Input(
                    "overlap",
                    default=0.5,
                    min=0.05,
                    max=0.95,
                    step=0.05,
                    tooltip="Minimum overlap (intersection over union) between the detected box and the instance's box. 0.5 is a common value.",
                ),
                io.String.Input(
                    "detector",
                    default="",
                    tooltip="Folder with a zero-shot object detector for transformers, such as Grounding DINO or OWL-ViT. Nothing is downloaded.",
                ),
                io.String.Input(
                    "vision_language_model",
                    default="",
                    tooltip="Folder with an image-text-to-text model for transformers that checks each box. If empty, the detector decides.",
                ),
            ],
            outputs=[io.Float.Output(display_name="success"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, instances, judge, overlap, detector, vision_language_model) -> io.NodeOutput:
        inputs.check_choice(judge, host.NODE, "judge", _JUDGES)
        inputs.check_number(overlap, host.NODE, "overlap", 0.0, 1.0)
        chosen = host.load_named_judge(host.PLAYGROUND if judge == _JUDGES[0] else detector, vision_language_model)
        score = host.measure(images, instances, chosen, overlap)
        text = host.report(score, instances)
        return io.NodeOutput(success_rate(score.found), text, ui=ui.PreviewText(text))


class ExemplaryRegionCLIPScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryRegionCLIPScore",
            display_name="Region CLIP Score",
            category="exemplary/Evaluation",
            description=(
                "Measures how similar the inpainted region is to the reference image, as in Paint by Example: "
                "100 times the cosine similarity of their CLIP embeddings. Scores from different CLIP models "
                "cannot be compared; papers use ViT-B/32."
            ),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Any CLIP vision model; papers use ViT-B/32."),
                io.Image.Input("image", tooltip="One or more generated images."),
                io.Mask.Input("mask", tooltip="Region that was inpainted; the rectangle around it is measured."),
                io.Image.Input("exemplar", tooltip="Reference image (the exemplar): one for all results, or one per result."),
            ],
            outputs=[io.Float.Output(display_name="score"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip_vision, image, mask, exemplar) -> io.NodeOutput:
        score, report = region_score.measure(clip_vision, image, mask, exemplar)
        return io.NodeOutput(score, report, ui=ui.PreviewText(report))


NODES = [ExemplaryInstanceSuccess, ExemplaryRegionCLIPScore]
