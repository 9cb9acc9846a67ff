"""Class-adaptive attention inside Stable Diffusion, inspired by CA2-SIS (arXiv 2308.16071), and a preview of the attention of each class."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.ca2sis.regional import VARIANTS
from ..py.host.ca2sis import attention as attention_host
from ..py.host.ca2sis import preview as preview_host
from ..py.host.schedule import PercentRange
from .ca2sis import CATEGORY, _fraction
from .types import CA2SISType, ClassConditioningsType, SemanticMapType, ShapeType, StyleType
from .widgets import advanced

DEFAULTS = attention_host.DEFAULTS


class ExemplaryCA2SISClassConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISClassConditioning",
            display_name="Class Conditioning",
            category=CATEGORY,
            description="Conditioning for the pixels of one class: a prompt or any other CONDITIONING. Chain one node per class.",
            inputs=[
                io.String.Input(
                    "classes",
                    default="sky",
                    tooltip="One class of the map, or several separated by commas that share this prompt, for example: tree, grass.",
                ),
                io.Conditioning.Input(
                    "conditioning", tooltip="The prompt of these classes, encoded by the CLIP of the same checkpoint."
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of this prompt relative to those of the other classes. 0 disables it.",
                ),
                ClassConditioningsType.Input(
                    "class_conditionings", optional=True, tooltip="Classes from other nodes; this one is added to them."
                ),
            ],
            outputs=[ClassConditioningsType.Output(display_name="class_conditionings")],
        )

    @classmethod
    def execute(cls, classes, conditioning, weight, class_conditionings=None) -> io.NodeOutput:
        return io.NodeOutput(attention_host.class_prompt(classes, conditioning, weight, class_conditionings))


class ExemplaryCA2SISAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISAttention",
            display_name="Class-Adaptive Attention",
            category=CATEGORY,
            description=(
                "Each pixel is conditioned mostly on the prompt of its class in a semantic map. Needs no additional weights; "
                "works on any Stable Diffusion 1.x, 2.x or SDXL model. "
                "Inspired by the class-adaptive attention of CA2-SIS (arXiv 2308.16071), not part of it."
            ),
            inputs=[
                io.Model.Input("model"),
                SemanticMapType.Input(
                    "semantic_map",
                    tooltip="Semantic map of the image to generate: one map for all latents, or one per latent. Any size.",
                ),
                ClassConditioningsType.Input("class_conditionings", tooltip="The prompt of each class, from Class Conditioning."),
                _fraction("strength", 1.0, "0 leaves the model unchanged, 1 is the full effect."),
                _fraction("start_percent", 0.0, "Point in the sampling at which the effect begins, 0 to 1."),
                _fraction(
                    "end_percent",
                    1.0,
                    "Point in the sampling at which the effect ends, 0 to 1. The layout is determined in the "
                    "early steps, so a lower value gives the model more freedom in the details.",
                ),
                _fraction(
                    "leak",
                    DEFAULTS.leak,
                    "Weight of other classes' prompts for a pixel: 0 ignores them (hard borders), 1 uses all equally (as if they were one prompt).",
                ),
                _fraction(
                    "base_weight",
                    DEFAULTS.base_weight,
                    "Weight of the sampler's positive prompt for pixels whose class has a prompt. For all other pixels it has full weight.",
                    4.0,
                ),
                advanced(
                    io.Combo.Input(
                        "variant",
                        options=list(VARIANTS),
                        default=VARIANTS[0],
                        tooltip="one softmax: a single softmax over the tokens of all prompts, with a per-class "
                        "attention bias. couple: a separate softmax for each class, blended using the masks.",
                    )
                ),
                advanced(
                    _fraction(
                        "isolate",
                        DEFAULTS.isolate,
                        "Above 0, pixels of different classes attend less to each other (self-attention, on grids up to 32x32). 1: not at all."
                        " Transformer models: only 1 has an effect.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "layers",
                        options=list(attention_host.LAYERS),
                        default="all",
                        tooltip="The blocks of the UNet that are patched.",
                    )
                ),
                io.Conditioning.Input(
                    "base",
                    optional=True,
                    tooltip="Prompt that is used in addition to the classes' prompts. If empty, the sampler's positive prompt is used.",
                ),
                io.Float.Input(
                    "early",
                    default=DEFAULTS.early,
                    min=1.0,
                    max=attention_host.MOST_EARLY,
                    step=0.1,
                    optional=True,
                    tooltip="Multiplies the effect at high noise levels, where the layout is determined; the factor "
                    "falls to 1 as the noise decreases. Transformer models: scales the share of the classes' "
                    "prompts.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        semantic_map,
        class_conditionings,
        strength,
        start_percent,
        end_percent,
        leak,
        base_weight,
        variant,
        isolate,
        layers,
        base=None,
        early=DEFAULTS.early,
    ) -> io.NodeOutput:
        percent = PercentRange.checked(start_percent, end_percent, attention_host.NODE)
        settings = attention_host.Settings(
            strength, percent, leak, base_weight, variant, isolate, layers, early, own_cells=DEFAULTS.own_cells
        )
        return io.NodeOutput(attention_host.apply(model, semantic_map, class_conditionings, base, settings))


class ExemplaryCA2SISAttentionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISAttentionPreview",
            display_name="Class Attention Preview",
            category=CATEGORY,
            description="Shows the class whose prompt each pixel attends to in Stable Diffusion at one step, or whose style in CA2-SIS's generator.",
            inputs=[
                _fraction("percent", 0.3, "Stable Diffusion: the step to show. 0 is the first, 1 the last."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Stable Diffusion: seed of the noise that is added for this step.",
                ),
                io.Model.Input("model", optional=True, tooltip="Stable Diffusion: from Class-Adaptive Attention. It runs once."),
                io.Conditioning.Input("positive", optional=True, tooltip="Stable Diffusion: the sampler's positive prompt."),
                io.Latent.Input("latent", optional=True, tooltip="Stable Diffusion: the image to analyse, such as the result."),
                CA2SISType.Input("ca2sis", optional=True, tooltip="CA2-SIS: its weights."),
                ShapeType.Input("shape", optional=True, tooltip="CA2-SIS: where each class is."),
                StyleType.Input("style", optional=True, tooltip="CA2-SIS: how each class looks."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="Each pixel in the colours of the classes that it attends to, mixed in proportion to their shares.",
                ),
                io.Image.Output(
                    display_name="shares", tooltip="One image per class (the base prompt first): white where it is attended to."
                ),
                io.String.Output(display_name="report", tooltip="One line per class: its colour and its share of the attention."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, percent, seed, model=None, positive=None, latent=None, ca2sis=None, shape=None, style=None) -> io.NodeOutput:
        image, shares, report = preview_host.preview(model, positive, latent, percent, seed, ca2sis, shape, style)
        return io.NodeOutput(image, shares, report, ui=ui.PreviewImage(image))


NODES = [ExemplaryCA2SISClassConditioning, ExemplaryCA2SISAttention, ExemplaryCA2SISAttentionPreview]
