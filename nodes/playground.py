"""The playground: small models of a drawn world, and its scenes. Everything in the pack can be tried with them, on a CPU, offline."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import playground as host
from ..py.host import playground_transformer
from ..py.host.inputs import check_choice
from ..py.playground.scenes import KINDS
from .types import InstancesType, SemanticMapType

BASES = ("UNet", "transformer")


class ExemplaryPlaygroundModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPlaygroundModels",
            display_name="Playground Models",
            category="exemplary/Playground",
            description=(
                "Small models that ship with the pack, for drawn scenes of 128x128 pixels: a base model, text "
                "encoder, VAE and image encoder. Replace this node with a checkpoint loader to use your own "
                "models."
            ),
            inputs=[
                io.Combo.Input(
                    "base",
                    options=list(BASES),
                    default=BASES[0],
                    optional=True,  # prompts saved before there was a choice have none
                    tooltip=(
                        "UNet: Stable Diffusion architecture, trained on all types of scene. Transformer: "
                        "Z-Image architecture (a DiT), trained on objects, with reference images; use the euler "
                        "sampler, the simple scheduler and a CFG of about 4."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                io.ClipVision.Output(display_name="clip_vision"),
            ],
        )

    @classmethod
    def execute(cls, base=BASES[0]) -> io.NodeOutput:
        is_transformer = check_choice(base, "Playground Models", "base", BASES) == BASES[1]
        model = playground_transformer.load_transformer() if is_transformer else host.load_model()
        return io.NodeOutput(model, host.load_clip(trimmed=is_transformer), host.load_vae(), host.load_clip_vision())


class ExemplaryPlaygroundScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPlaygroundScene",
            display_name="Playground Scene",
            category="exemplary/Playground",
            description="Generates a drawn scene with its annotations: image, semantic map, boxes with phrases, caption and masks.",
            inputs=[
                io.Combo.Input("kind", options=list(KINDS), default=KINDS[0], tooltip="Type of scene to draw."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Number of the scene. The same number always gives the same scene.",
                ),
                io.Int.Input(
                    "size",
                    default=128,
                    min=64,
                    max=1024,
                    step=64,
                    tooltip="Width and height in pixels. The playground models expect 128.",
                ),
                io.Boolean.Input(
                    "held_out",
                    default=True,
                    tooltip="On: scenes that were not used to train the playground models. Off: scenes that they were trained on.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                SemanticMapType.Output(display_name="semantic_map"),
                InstancesType.Output(display_name="instances"),
                io.String.Output(display_name="caption"),
                io.Mask.Output(display_name="instance_masks"),
            ],
        )

    @classmethod
    def execute(cls, kind, seed, size, held_out) -> io.NodeOutput:
        return io.NodeOutput(*host.scene_parts(kind, seed, size, held_out))


NODES = [ExemplaryPlaygroundModels, ExemplaryPlaygroundScene]
