"""Reference images by region, on models that use reference images (part of the layout nodes)."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host.ifadapter import references as host
from ..py.host.schedule import PercentRange
from .types import InstancesType, SemanticMapType
from .widgets import advanced


def _fraction(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class ExemplaryRegionalReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryRegionalReferences",
            display_name="Regional References",
            category="exemplary/IFAdapter",
            description=(
                "Gives each region of the image its own reference image, on models that use reference images: Flux.1 Kontext, Flux.2, "
                "Qwen-Image-Edit, Krea 2. Needs no weights and no extra model calls."
            ),
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Vae.Input("vae", tooltip="Encodes the reference images. Must be the VAE of the model."),
                _fraction("strength", 1.0, "1: a region uses only its own reference. 0: every region uses all references."),
                _fraction("start_percent", 0.0, "Before this point of the sampling, every region uses all references."),
                _fraction("end_percent", 1.0, "After this point of the sampling, every region uses all references."),
                advanced(
                    io.Float.Input(
                        "megapixels",
                        default=1.0,
                        min=0.01,
                        max=16.0,
                        step=0.05,
                        tooltip="Larger reference images are reduced to this size. Smaller is faster.",
                    )
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="The references are also added to it. Connect it if CFG is above 1."
                ),
                InstancesType.Input("instances", optional=True, tooltip="Boxes or masks, each with a reference image."),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Instead of instances: a batch of reference images, with masks or classes.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="The region of each image in references, in the same order."),
                SemanticMapType.Input(
                    "semantic_map", optional=True, tooltip="Instead of masks: a map of the image to generate, with classes."
                ),
                io.String.Input(
                    "classes",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="With semantic_map: one line per image in references, naming the classes that use it.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        vae,
        strength,
        start_percent,
        end_percent,
        megapixels,
        negative=None,
        instances=None,
        references=None,
        masks=None,
        semantic_map=None,
        classes="",
    ) -> io.NodeOutput:
        percent = PercentRange.checked(start_percent, end_percent, host.NODE)
        regions = host.find_regions(instances, references, masks, semantic_map, classes)
        return io.NodeOutput(*host.apply(model, vae, positive, negative, regions, strength, percent, megapixels))


NODES = [ExemplaryRegionalReferences]
