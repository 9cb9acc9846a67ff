"""An exemplar's look moves onto a semantic map, class by class (AM-Adapter, arXiv 2412.03150)."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.am_adapter.attention import MODES
from ..py.host import folders
from ..py.host.am_adapter import apply as host
from ..py.host.am_adapter import controlnext as control_host
from ..py.host.am_adapter.exemplar import SOURCES
from ..py.host.am_adapter.preview import preview
from .types import AMAdapterType, ControlNeXtType, SemanticMapType
from .widgets import advanced

CATEGORY = "exemplary/exemplar"


def _percent(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class ExemplaryLoadAMAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadAMAdapter",
            display_name="Load AM-Adapter",
            category=CATEGORY,
            description="Load a trained AM-Adapter matcher from models/am_adapter, the authors' layout or one of our own. Apply AM-Adapter "
            "also works without one.",
            inputs=[
                io.Combo.Input("file", options=folders.files("am_adapter"), tooltip="A matcher in models/am_adapter."),
                advanced(
                    io.Combo.Input(
                        "behaviour",
                        options=list(host.BEHAVIOURS),
                        default=next(iter(host.BEHAVIOURS)),
                        tooltip="upstream repeats the published code to the letter (512x512 only), corrected follows the paper. A file that "
                        "says nothing is taken for the authors'.",
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
            description="Paint a semantic map in the look of an exemplar, class by class: the road takes the exemplar's road, the sky its sky. "
            "Works without weights on any Stable Diffusion 1.x, 2.x or SDXL model; where things stand is the business of a ControlNet. "
            "Chain several for several exemplars.",
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae", tooltip="Encodes the exemplar. Must be the VAE of the same checkpoint."),
                io.Image.Input("exemplar", tooltip="The picture whose look is wanted. Of a batch all are read together."),
                SemanticMapType.Input("exemplar_map", tooltip="Which class stands where in the exemplar."),
                SemanticMapType.Input(
                    "target_map", tooltip="Which class shall stand where in the result. One map for all, or one a latent."
                ),
                io.Combo.Input(
                    "mode",
                    options=[host.AUTOMATIC, *MODES],
                    default=host.AUTOMATIC,
                    tooltip="automatic: matcher if an adapter is connected, otherwise class_bias. class_bias prefers places of the same class, "
                    "hard_mask reads nothing else, concat_only ignores classes, masactrl reads the exemplar in place of the picture itself.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much the exemplar counts. 0 leaves the model as it was.",
                ),
                _percent("start_percent", 0.0, "Where the effect begins."),
                _percent("end_percent", 1.0, "Where the effect ends."),
                io.Combo.Input(
                    "exemplar_features",
                    options=list(SOURCES),
                    default=SOURCES[0],
                    tooltip="How the model sees the exemplar. noise: with fresh noise of the step's strength. invert: with the noise that the model "
                    "would make it of (20 more passes, then in step with the sampling). invert_cached: the same without drift. clean: "
                    "without noise, read once.",
                ),
                advanced(
                    io.Float.Input(
                        "class_strength",
                        default=2.0,
                        min=0.0,
                        max=50.0,
                        step=0.1,
                        tooltip="For class_bias: how strongly places of the same class are preferred.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "balance",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip="1 gives each class of the exemplar the same say, however large it is there.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "parts",
                        options=list(host.PART_CHOICES),
                        default="all",
                        tooltip="Which part of the network reads the exemplar. up alone changes colours and textures more than shapes.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "levels",
                        default="",
                        tooltip="Only layers that are so many times smaller than the latent: a list of 1, 2, 4, 8. Empty: all layers.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "match_void", default=False, tooltip="Let void places read void places. Off: they match nothing."
                    )
                ),
                advanced(
                    io.Int.Input(
                        "cache_mb",
                        default=1024,
                        min=0,
                        max=65536,
                        step=64,
                        tooltip="Main memory for what was read in exemplars, so that the next run need not read again. 0 keeps nothing.",
                    )
                ),
                AMAdapterType.Input("adapter", optional=True, tooltip="A trained matcher. Empty: the weight-free modes."),
                io.Conditioning.Input(
                    "exemplar_prompt",
                    optional=True,
                    tooltip="What the exemplar shows. Empty: the positive prompt of the picture itself.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the exemplar may act in the result. Soft masks act softly."),
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
        files = folders.files("am_adapter")
        return io.Schema(
            node_id="ExemplaryLoadControlNeXt",
            display_name="Load ControlNeXt",
            category=CATEGORY,
            description="Load a ControlNeXt for Stable Diffusion 1.5 from models/am_adapter: AM-Adapter's, a community file, or one of our own.",
            inputs=[
                io.Combo.Input("file", options=files, tooltip="A ControlNeXt in models/am_adapter."),
                io.Combo.Input(
                    "unet_file",
                    options=[control_host.NO_UNET, *files],
                    default=control_host.NO_UNET,
                    tooltip="The UNet weights that were trained together with it, if there are any. They are added as a patch, as a LoRA is.",
                ),
                io.Combo.Input(
                    "unet_weights",
                    options=list(control_host.UNET_KINDS),
                    default=control_host.UNET_KINDS[0],
                    tooltip="What the UNet file holds: increments to the base model's weights (community files), or a replacement for them.",
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
            description="Let a semantic map, or a hint picture, decide where things stand. Light: one addition early in the UNet.",
            inputs=[
                io.Model.Input("model"),
                ControlNeXtType.Input("controlnext", tooltip="From Load ControlNeXt."),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="0 leaves the model as it was."),
                _percent("start_percent", 0.0, "Where the effect begins."),
                _percent("end_percent", 1.0, "Where the effect ends."),
                SemanticMapType.Input(
                    "semantic_map", optional=True, tooltip="The layout, drawn in its palette's colours. Connect this or image."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Any hint picture that the file was trained for. Connect this or semantic_map.",
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
            description="Look at what AM-Adapter reads: for each place of a picture the exemplar's place, how much attention goes to the exemplar, "
            "and which classes the exemplar lacks.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that comes out of Apply AM-Adapter."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Latent.Input(
                    "latent", tooltip="The picture to look at, such as the result of the sampler. Of a batch the first."
                ),
                _percent("percent", 0.5, "The moment of sampling: 0 the first step, 1 the last. Noise of that moment is added."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Of that noise."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="correspondence", tooltip="The picture put together of the exemplar pieces that it reads most."
                ),
                io.Image.Output(
                    display_name="attention", tooltip="How much each place reads the exemplar: white all, black nothing."
                ),
                io.String.Output(
                    display_name="coverage", tooltip="One line a class of the target: shares, attention, and a warning."
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
