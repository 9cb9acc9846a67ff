"""The look of an exemplar is transferred to a semantic map, class by class (AM-Adapter, arXiv 2412.03150)."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.am_adapter.attention import MODES
from ..py.host.am_adapter import apply as host
from ..py.host.am_adapter import controlnext as control_host
from ..py.host.am_adapter import files
from ..py.host.am_adapter.exemplar import SOURCES
from ..py.host.am_adapter.preview import preview
from .types import AMAdapterType, ControlNeXtType, SemanticMapType
from .widgets import advanced

CATEGORY = "exemplary/AM-Adapter"


def _percent(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class ExemplaryLoadAMAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        matchers, default = files.choices(host.LOAD)
        return io.Schema(
            node_id="ExemplaryLoadAMAdapter",
            display_name="Load AM-Adapter",
            category=CATEGORY,
            description="Load a trained AM-Adapter matcher from models/am_adapter, in the authors' layout or trained with this pack. Apply "
            "AM-Adapter also works without one.",
            inputs=[
                io.Combo.Input("file", options=matchers, default=default, tooltip="Matcher file in models/am_adapter."),
                advanced(
                    io.Combo.Input(
                        "behaviour",
                        options=list(host.BEHAVIOURS),
                        default=next(iter(host.BEHAVIOURS)),
                        tooltip="How the matcher compares tokens and classes. upstream: as the published code does "
                        "(512x512 only). corrected: the paper's formulas, any size. Files without metadata are "
                        "treated as the authors' files.",
                    )
                ),
            ],
            outputs=[AMAdapterType.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, file, behaviour) -> io.NodeOutput:
        return io.NodeOutput(host.load(file, behaviour))


class ExemplaryApplyAMAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryApplyAMAdapter",
            display_name="Apply AM-Adapter",
            category=CATEGORY,
            description="Transfer the appearance of a reference image (the exemplar) to a semantic map, class by class: the "
            "road looks like the exemplar's road, the sky like its sky. Works without weights on Stable "
            "Diffusion 1.x, 2.x and SDXL; use a ControlNet to control the layout. Chain several of these nodes "
            "to use several exemplars.",
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae", tooltip="Encodes the exemplar. Use the VAE of the same checkpoint."),
                io.Image.Input(
                    "exemplar",
                    tooltip="Reference image whose appearance is transferred. All images of a batch are used together.",
                ),
                SemanticMapType.Input(
                    "exemplar_map", tooltip="Semantic map of the exemplar. It is stretched to the size of the exemplar."
                ),
                SemanticMapType.Input(
                    "target_map", tooltip="Semantic map of the image to generate: one map for all latents, or one per latent."
                ),
                io.Combo.Input(
                    "mode",
                    options=[host.AUTOMATIC, *MODES],
                    default=host.AUTOMATIC,
                    tooltip="How the exemplar is attended to. automatic: matcher if an adapter is connected, else class_bias. class_bias prefers "
                    "the same class, hard_mask allows only the same class, concat_only ignores classes, masactrl replaces the image's own "
                    "tokens.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight of the exemplar in the attention. 0 has no effect, 1 is the value in the paper.",
                ),
                _percent("start_percent", 0.0, "Start of the effect: 0 is the first step."),
                _percent("end_percent", 1.0, "End of the effect: 1 is the last step."),
                io.Combo.Input(
                    "exemplar_features",
                    display_name="reference noising",
                    options=list(SOURCES),
                    default=SOURCES[0],
                    tooltip="How noise is added to the exemplar for each step. noise: random noise at the level of the "
                    "step. invert: noise found by inverting the exemplar (20 extra steps), then denoised with "
                    "the image. invert_cached: the inverted latents of each level, without drift. clean: no "
                    "noise, one pass.",
                ),
                advanced(
                    io.Float.Input(
                        "class_strength",
                        default=2.0,
                        min=0.0,
                        max=50.0,
                        step=0.1,
                        tooltip="For class_bias: how strongly tokens of the same class are preferred, in logits. 1 to 4 are typical.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "balance",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip="Compensates for the size of classes in the exemplar: 1 gives each class equal weight.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "parts",
                        display_name="UNet parts",
                        options=list(host.PART_CHOICES),
                        default="all",
                        tooltip="Parts of the UNet that attend to the exemplar. up changes colours and textures more than shapes.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "levels",
                        display_name="downscale levels",
                        default="",
                        tooltip="Limits the effect to layers at these downscale levels of the latent, for example 2, 4. Empty: all layers.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "match_void",
                        display_name="void matches void",
                        default=False,
                        tooltip="On: void is treated as a class that matches void. Off: void matches nothing.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "cache_mb",
                        default=1024,
                        min=0,
                        max=65536,
                        step=64,
                        tooltip="Main memory in MB for exemplar features, which makes the next run faster. 0 keeps nothing.",
                    )
                ),
                AMAdapterType.Input(
                    "adapter",
                    optional=True,
                    tooltip="Trained matcher from Load AM-Adapter. If not connected, only the modes without weights are available.",
                ),
                io.Conditioning.Input(
                    "exemplar_prompt",
                    optional=True,
                    tooltip="Prompt that describes the exemplar. If not connected, the positive prompt of the generated image is used.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Limits the effect to a region of the generated image. Soft masks give a partial effect.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        exemplar,
        exemplar_map,
        target_map,
        mode,
        strength,
        start_percent,
        end_percent,
        exemplar_features,
        class_strength,
        balance,
        parts,
        levels,
        match_void,
        cache_mb,
        adapter=None,
        exemplar_prompt=None,
        mask=None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            host.apply(
                model,
                vae,
                exemplar,
                exemplar_map,
                target_map,
                mode,
                strength,
                start_percent,
                end_percent,
                exemplar_features,
                class_strength=class_strength,
                balance=balance,
                parts=parts,
                levels=levels,
                match_void=match_void,
                cache_mb=cache_mb,
                adapter=adapter,
                prompt=exemplar_prompt,
                mask=mask,
            )
        )


class ExemplaryLoadControlNeXt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        found, default = files.choices(control_host.LOAD)
        return io.Schema(
            node_id="ExemplaryLoadControlNeXt",
            display_name="Load ControlNeXt",
            category=CATEGORY,
            description="Load a ControlNeXt for Stable Diffusion 1.5 from models/am_adapter: AM-Adapter's, a community file, or one trained with "
            "this pack.",
            inputs=[
                io.Combo.Input("file", options=found, default=default, tooltip="ControlNeXt file in models/am_adapter."),
                io.Combo.Input(
                    "unet_file",
                    options=[control_host.NO_UNET, *found],
                    default=control_host.NO_UNET,
                    tooltip="UNet weights that were trained with this ControlNeXt, if any. They are patched in like a LoRA.",
                ),
                io.Combo.Input(
                    "unet_weights",
                    options=list(control_host.UNET_KINDS),
                    default=control_host.UNET_KINDS[0],
                    tooltip="Whether the UNet file contains increments to the base model's weights (community files) or replaces them.",
                ),
            ],
            outputs=[ControlNeXtType.Output(display_name="controlnext")],
        )

    @classmethod
    def execute(cls, file, unet_file, unet_weights) -> io.NodeOutput:
        return io.NodeOutput(control_host.load(file, unet_file, unet_weights))


class ExemplaryApplyControlNeXt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryApplyControlNeXt",
            display_name="Apply ControlNeXt",
            category=CATEGORY,
            description="Control the layout with a semantic map or a hint image. Lightweight: the control is added only "
            "once, early in the UNet.",
            inputs=[
                io.Model.Input("model"),
                ControlNeXtType.Input("controlnext", tooltip="ControlNeXt from Load ControlNeXt."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Weight of the control. 0 has no effect."
                ),
                _percent("start_percent", 0.0, "Start of the effect: 0 is the first step."),
                _percent("end_percent", 1.0, "End of the effect: 1 is the last step."),
                SemanticMapType.Input(
                    "semantic_map",
                    optional=True,
                    tooltip="Layout, drawn in the colours of its palette. Connect either semantic_map or image.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Hint image of the kind that the file was trained for. Connect either image or semantic_map.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, controlnext, strength, start_percent, end_percent, semantic_map=None, image=None) -> io.NodeOutput:
        return io.NodeOutput(control_host.apply(model, controlnext, semantic_map, image, strength, start_percent, end_percent))


class ExemplaryAMMatchPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryAMMatchPreview",
            display_name="AM Match Preview",
            category=CATEGORY,
            description="Preview what AM-Adapter attends to: the exemplar token for each token of an image, how much "
            "attention the exemplar receives, and which classes are missing from it.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL output of Apply AM-Adapter."),
                io.Conditioning.Input("positive", tooltip="Positive prompt."),
                io.Latent.Input(
                    "latent", tooltip="Latent to analyse, such as the sampler's result. The first of a batch is used."
                ),
                _percent(
                    "percent",
                    0.5,
                    "Point in the sampling: 0 is the first step, 1 the last. Noise at the level of this step is added.",
                ),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Seed for the noise."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="correspondence",
                    tooltip="The image, composed of the parts of the exemplar that it attends to most.",
                ),
                io.Image.Output(
                    display_name="attention",
                    tooltip="Fraction of the attention that goes to the exemplar: white is all, black is none.",
                ),
                io.String.Output(
                    display_name="coverage",
                    tooltip="One line per class of the target: shares, attention, and a warning for missing classes.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, latent, percent, seed) -> io.NodeOutput:
        correspondence, attention, coverage = preview(model, positive, latent, percent, seed)
        return io.NodeOutput(correspondence, attention, coverage, ui=ui.PreviewImage(correspondence))


NODES = [
    ExemplaryLoadAMAdapter,
    ExemplaryApplyAMAdapter,
    ExemplaryLoadControlNeXt,
    ExemplaryApplyControlNeXt,
    ExemplaryAMMatchPreview,
]
