"""The playground: small models of a drawn world, and its scenes. Everything in the pack can be tried with them, on a CPU, offline."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import playground as host
from ..py.playground.scenes import KINDS
from .types import InstancesType, SemanticMapType


class ExemplaryPlaygroundModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPlaygroundModels",
            display_name="Playground Models",
            category="exemplary/playground",
            description=(
                "Small models that ship with the pack: a Stable Diffusion UNet, text encoder, VAE and image encoder for drawn scenes of "
                "128x128 pixels. They stand where a checkpoint loader stands; replace this node by one for your own checkpoint."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                io.ClipVision.Output(display_name="clip_vision"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(host.load_model(), host.load_clip(), host.load_vae(), host.load_clip_vision())


class ExemplaryPlaygroundScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPlaygroundScene",
            display_name="Playground Scene",
            category="exemplary/playground",
            description="One drawn scene with everything that is known about it: picture, semantic map, boxes with phrases, caption, masks.",
            inputs=[
                io.Combo.Input("kind", options=list(KINDS), default=KINDS[0], tooltip="What is drawn."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The scene's number; each is always the same.",
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
                    tooltip="Scenes that the playground models have not seen in training. Off: the scenes that they were trained on.",
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
