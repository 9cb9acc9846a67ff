"""The thing of one picture in a hole of another (Paint by Example, arXiv 2211.13227)."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import folders
from ..py.host.paint_by_example import context as context_host
from ..py.host.paint_by_example import loader as host
from ..py.host.paint_by_example import prepare as stitch_host
from ..py.imaging.crop import MASK_RESIZES
from ..py.paint_by_example.exemplar import FILLS, FITS
from ..py.paint_by_example.shapes import EXTENSION, JITTER, SHAPES
from .types import ExemplarEncoderType, StitchType


def _fraction(name: str, default: float, tooltip: str, most: float = 1.0, step: float = 0.01) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, tooltip=tooltip)


def _choice(name: str, options: tuple[str, ...], tooltip: str, default: str | None = None) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(options), default=default or options[0], tooltip=tooltip)


class ExemplaryLoadPaintByExample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.files(host.FOLDER)
        return io.Schema(
            node_id="ExemplaryLoadPaintByExample",
            display_name="Load Paint by Example",
            category="exemplary/paint by example",
            description=(
                "The model that paints the thing of one picture into a hole of another (Paint by Example, arXiv 2211.13227), its exemplar "
                "encoder and its VAE: the published checkpoint, the same as safetensors, or the diffusers folder."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files,
                    tooltip="From models/paint_by_example. Of a diffusers folder choose any file; its neighbours are found.",
                ),
                io.Combo.Input(
                    "encoder_file",
                    options=[host.SAME_FILE, *files],
                    default=host.SAME_FILE,
                    tooltip="Only if the exemplar encoder is a file of its own somewhere else.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP ViT-L/14 to use instead of the copy in the file: it is the same tower, and then is in memory once.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                ExemplarEncoderType.Output(display_name="encoder"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def execute(cls, file, encoder_file, clip_vision=None) -> io.NodeOutput:
        return io.NodeOutput(*host.load(file, encoder_file, clip_vision))


class ExemplaryExemplarConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryExemplarConditioning",
            display_name="Exemplar Conditioning",
            category="exemplary/paint by example",
            description="What to paint, shown by one or several pictures of it. Chain several of these for different exemplars or regions.",
            inputs=[
                ExemplarEncoderType.Input("encoder", tooltip="From Load Paint by Example."),
                io.Image.Input("image", tooltip="One or several pictures of the thing."),
                _fraction("strength", 1.0, "1 is the exemplar, 0 no exemplar at all; above 1 exaggerates.", 2.0, 0.05),
                _choice(
                    "fit",
                    FITS,
                    "How the picture becomes a square. squash: as published; center_crop: as diffusers; pad: nothing is lost.",
                ),
                _choice("fill", FILLS, "With a mask: what becomes of the rest of the exemplar's picture."),
                io.Boolean.Input("crop", default=True, tooltip="With a mask: take only the rectangle around the thing."),
                _choice(
                    "several",
                    ("blend", "one per picture"),
                    "What several exemplars do: blend into one thing, or one for each picture of the batch.",
                ),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="How much each exemplar counts in the blend: one number, or one for each with commas.",
                ),
                _fraction("start_percent", 0.0, "Before this part of the sampling nothing is heard of the exemplar."),
                _fraction("end_percent", 1.0, "After this part of the sampling nothing is heard of the exemplar."),
                _choice("course", ("constant", "fade in", "fade out"), "How the strength goes between start and end."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the thing is in the exemplar. A picture with transparency brings its own.",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Only here, in the source picture, this exemplar counts; for several holes with a thing each.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="From another Exemplar Conditioning, which these exemplars join."
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
        )

    @classmethod
    def execute(
        cls,
        encoder,
        image,
        strength,
        fit,
        fill,
        crop,
        several,
        weights,
        start_percent,
        end_percent,
        course,
        mask=None,
        region=None,
        positive=None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *host.condition(
                encoder,
                image,
                weights=weights,
                several=several,
                fit=fit,
                mask=mask,
                fill=fill,
                crop=crop,
                strength=strength,
                course=course,
                start_percent=start_percent,
                end_percent=end_percent,
                region=region,
                positive=positive,
            )
        )


class ExemplaryPaintByExamplePrepare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPaintByExamplePrepare",
            display_name="Paint by Example Prepare",
            category="exemplary/paint by example",
            description="Cuts a window around the hole to the size that the model works on, and tells the conditions what is around the hole.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Image.Input("image", tooltip="The source picture, or several."),
                io.Mask.Input("mask", tooltip="The hole: where the thing is painted."),
                io.Int.Input(
                    "width",
                    default=512,
                    min=64,
                    max=8192,
                    step=8,
                    tooltip="Width that the model works on; 512 is what it was trained with.",
                ),
                io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Height that the model works on."),
                _choice(
                    "window",
                    ("around the hole", "whole picture"),
                    "What the model is shown. Around the hole, small holes are painted large.",
                ),
                _fraction(
                    "context",
                    0.5,
                    "Around the hole: how much of the picture is shown on each side, in sizes of the hole.",
                    10.0,
                    0.05,
                ),
                io.Int.Input(
                    "grow",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Pixels of the source by which the hole is widened before it is painted.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=512,
                    tooltip="Pixels around the hole over which the result fades into the source. Beyond them nothing changes.",
                ),
                _choice(
                    "latent",
                    ("empty", "source"),
                    "empty: as published, for a denoise of 1. source: start from the picture, for a denoise below 1.",
                ),
                _choice(
                    "mask_resize",
                    MASK_RESIZES,
                    "How the hole becomes cells of the latent. nearest: as diffusers; cover: every cell that it touches.",
                ),
                io.Boolean.Input(
                    "noise_mask", default=False, tooltip="Put the source back around the hole at every step. Not as published."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
                StitchType.Output(display_name="stitch"),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, image, mask, width, height, window, context, grow, feather, latent, mask_resize, noise_mask
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *stitch_host.prepare(
                positive,
                negative,
                vae,
                image,
                mask,
                width=width,
                height=height,
                crop=window,
                context=context,
                grow=grow,
                feather=feather,
                latent=latent,
                mask_resize=mask_resize,
                noise_mask=noise_mask,
            )
        )


class ExemplaryPaintByExampleContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryPaintByExampleContext",
            display_name="Paint by Example Context",
            category="exemplary/paint by example",
            description=(
                "Help where the method is weak: keep the structure that the source has in the hole, and listen more to what is around it. "
                "Everything is off at 0, which is the published method."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From Load Paint by Example."),
                io.Vae.Input("vae", tooltip="The one that Prepare uses."),
                StitchType.Input("stitch", tooltip="From Paint by Example Prepare."),
                _fraction(
                    "structure",
                    0.0,
                    "The part of the sampling in which the hole follows the source: pose and layout stay. Try 0.2 to 0.4.",
                ),
                _fraction(
                    "context_attention", 0.0, "How much more the hole looks at what is around it. Try 0.5 to 2.", 5.0, 0.05
                ),
                _fraction(
                    "source_reference",
                    0.0,
                    "How much the hole reads the source as it was, by a second pass of the model in each step.",
                ),
                _fraction("ring_style", 0.0, "How far contrast and tone of the hole follow the ring around it."),
                _fraction("start_percent", 0.0, "Where the last three begin."),
                _fraction("end_percent", 1.0, "Where the last three end."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model, vae, stitch, structure, context_attention, source_reference, ring_style, start_percent, end_percent
    ) -> io.NodeOutput:
        return io.NodeOutput(
            context_host.apply(
                model,
                vae,
                stitch,
                structure=structure,
                context_attention=context_attention,
                source_reference=source_reference,
                ring_style=ring_style,
                start_percent=start_percent,
                end_percent=end_percent,
            )
        )


class ExemplaryStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryStitch",
            display_name="Stitch",
            category="exemplary/paint by example",
            description="Puts the painted window back. Outside of the widened, feathered hole the picture is the source's, bit for bit.",
            inputs=[
                io.Image.Input("image", tooltip="The decoded result."),
                StitchType.Input("stitch", tooltip="From Paint by Example Prepare."),
                _fraction(
                    "colour_match",
                    0.0,
                    "Bring the colours of the result to those of the source, measured in a ring around the hole.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image, stitch, colour_match) -> io.NodeOutput:
        return io.NodeOutput(stitch_host.stitch(image, stitch, colour_match))


class ExemplaryMaskShape(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryMaskShape",
            display_name="Mask Shape",
            category="exemplary/paint by example",
            description="The mask shapes that Paint by Example was trained with: an extended box, or curves around one, with ragged edges.",
            inputs=[
                io.Int.Input("width", default=512, min=8, max=8192, tooltip="Width of the mask. A connected mask has its own."),
                io.Int.Input("height", default=512, min=8, max=8192, tooltip="Height of the mask. A connected mask has its own."),
                _fraction("x", 0.25, "Left edge of the box, 0 to 1."),
                _fraction("y", 0.25, "Upper edge of the box, 0 to 1."),
                _fraction("box_width", 0.5, "Width of the box, 0 to 1."),
                _fraction("box_height", 0.5, "Height of the box, 0 to 1."),
                _choice(
                    "shape",
                    SHAPES,
                    "bezier: curves around the box. rectangle: the extended box. either: one of them by chance, as in training.",
                ),
                _fraction(
                    "extension", EXTENSION, "How far a side may move outwards, as a part of the room to the picture's edge."
                ),
                io.Int.Input(
                    "jitter", default=JITTER, min=0, max=100, tooltip="Pixels by which each corner of a curve is moved at random."
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Of the shape."
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Number of masks."),
                io.Mask.Input("mask", optional=True, tooltip="Instead of the box: the rectangle around what this shows."),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(
        cls, width, height, x, y, box_width, box_height, shape, extension, jitter, seed, count, mask=None
    ) -> io.NodeOutput:
        box = (x, y, x + box_width, y + box_height)
        return io.NodeOutput(stitch_host.mask_shape(box, width, height, shape, extension, jitter, seed, count, mask))


NODES = [
    ExemplaryLoadPaintByExample,
    ExemplaryExemplarConditioning,
    ExemplaryPaintByExamplePrepare,
    ExemplaryPaintByExampleContext,
    ExemplaryStitch,
    ExemplaryMaskShape,
]
