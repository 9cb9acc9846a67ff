"""The object of one image in a hole of another (Paint by Example, arXiv 2211.13227)."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import crop as crop_host
from ..py.host import folders
from ..py.host.paint_by_example import conditioning, context, loader, prepare
from ..py.imaging.masks import MASK_RESIZES
from ..py.paint_by_example.exemplar import COURSES, FILLS, FITS
from ..py.paint_by_example.shapes import EXTENSION, JITTER, SHAPES
from .types import ExemplarEncoderType, StitchType

CATEGORY = "exemplary/Paint by Example"


def _fraction(name: str, default: float, tooltip: str, most: float = 1.0, step: float = 0.01) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, tooltip=tooltip)


def _choice(name: str, options: tuple[str, ...], tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(options), default=options[0], tooltip=tooltip)


class ExemplaryLoadPaintByExample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folders.files(loader.FOLDER)
        return io.Schema(
            node_id="ExemplaryLoadPaintByExample",
            display_name="Load Paint by Example",
            category=CATEGORY,
            description=(
                "Loads the model that paints the object of one image into a hole of another (Paint by Example, "
                "arXiv 2211.13227), its exemplar encoder and its VAE: the published checkpoint, a safetensors "
                "version of it, or the diffusers folder."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files,
                    tooltip="File in models/paint_by_example. For a diffusers folder, choose any of its files; the "
                    "others are found automatically.",
                ),
                io.Combo.Input(
                    "encoder_file",
                    options=[loader.SAME_FILE, *files],
                    default=loader.SAME_FILE,
                    tooltip="File of the exemplar encoder, if it is not part of the model's file or folder.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP ViT-L/14 to use instead of the identical copy in the file, so that it is loaded into memory only once.",
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
        return io.NodeOutput(*loader.load(file, encoder_file, clip_vision))


class ExemplaryExemplarConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryExemplarConditioning",
            display_name="Exemplar Conditioning",
            category=CATEGORY,
            description=(
                "Makes conditioning from one or several reference images (exemplars) of an object. "
                "Chain several of these nodes for different exemplars or regions."
            ),
            inputs=[
                ExemplarEncoderType.Input("encoder", tooltip="From Load Paint by Example."),
                io.Image.Input("image", tooltip="One or more reference images of the object."),
                _fraction(
                    "strength",
                    1.0,
                    "Strength of the exemplar: 0 has no effect, 1 is the published method, above 1 exaggerates.",
                    2.0,
                    0.05,
                ),
                _choice(
                    "fit",
                    FITS,
                    (
                        "How the image is resized to a square. squash: as published; center_crop: as in "
                        "diffusers; pad: whole image, with bars in the colour of fill (black for keep and blur)."
                    ),
                ),
                _choice("fill", FILLS, "Replaces the background around the masked object. keep: unchanged."),
                io.Boolean.Input("crop", default=True, tooltip="Crops the image to the bounding box of the masked object."),
                _choice(
                    "several",
                    conditioning.SEVERAL,
                    "How several images are used. blend: all of them for one object; one per picture: one "
                    "exemplar for each latent of the batch.",
                ),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="Weight of each exemplar in the blend: one number for all, or one for each, separated by commas.",
                ),
                _fraction("start_percent", 0.0, "The exemplar has no effect before this point of the sampling."),
                _fraction("end_percent", 1.0, "The exemplar has no effect after this point of the sampling."),
                _choice("course", COURSES, "How the strength changes between start and end."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Mask of the object in the image. Invert Load Image's MASK, which selects the transparent part. Not needed with alpha.",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Limits this exemplar to a region of the source image; use one exemplar per hole.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Conditioning from another Exemplar Conditioning, to which these exemplars are added.",
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
            *conditioning.make_conditioning(
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
            category=CATEGORY,
            description="Crops a window around the hole to the size at which the model works, and adds the image around the "
            "hole to the conditioning.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Image.Input("image", tooltip="One or more source images."),
                io.Mask.Input(
                    "mask",
                    tooltip="Mask of the hole to paint. An image whose mask is empty passes through unchanged.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=64,
                    max=8192,
                    step=8,
                    tooltip="Width at which the model works; it was trained with 512.",
                ),
                io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Height at which the model works."),
                _choice(
                    "window",
                    crop_host.WINDOWS,
                    "Part of the image that the model sees. around the hole enlarges small holes; whole picture uses the full image.",
                ),
                _fraction(
                    "context",
                    0.5,
                    "For around the hole: margin on each side of the hole, as a multiple of the hole's size.",
                    10.0,
                    0.05,
                ),
                io.Int.Input(
                    "grow",
                    default=4,
                    min=0,
                    max=512,
                    tooltip="Number of source pixels by which the hole is enlarged.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=512,
                    tooltip="Number of pixels around the hole over which the result is blended into the source. The "
                    "image beyond them does not change.",
                ),
                _choice(
                    "latent",
                    prepare.LATENTS,
                    "empty: as published, for a denoise of 1. source: the encoded image, for a denoise below 1.",
                ),
                _choice(
                    "mask_resize",
                    MASK_RESIZES,
                    "How the hole is resized to the latent grid. nearest: as in diffusers; cover: every latent cell that the hole touches.",
                ),
                io.Boolean.Input(
                    "noise_mask",
                    default=False,
                    tooltip="Keeps the source around the hole at every step. Not part of the published method.",
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
            *prepare.prepare(
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
            category=CATEGORY,
            description=(
                "Gives the model more information from the source image: it keeps the structure of the original "
                "content of the hole, and attends more to the surroundings. All options are off at 0, which is "
                "the published method."
            ),
            inputs=[
                io.Model.Input("model", tooltip="MODEL of Load Paint by Example."),
                io.Vae.Input("vae", tooltip="VAE that Paint by Example Prepare uses."),
                StitchType.Input("stitch", tooltip="stitch of Paint by Example Prepare."),
                _fraction(
                    "structure",
                    0.0,
                    "Fraction of the sampling during which the hole follows the source, so that pose and layout are kept. Typical: 0.2 to 0.4.",
                ),
                _fraction(
                    "context_attention", 0.0, "Makes the hole attend more to what is around it. Typical: 0.5 to 2.", 5.0, 0.05
                ),
                _fraction(
                    "source_reference",
                    0.0,
                    "Makes the hole attend to the unmasked source, using a second model pass in each step.",
                ),
                _fraction("ring_style", 0.0, "Matches the contrast and tone of the hole to those of the ring around it."),
                _fraction(
                    "start_percent",
                    0.0,
                    "The last three options have no effect before this point of the sampling.",
                ),
                _fraction(
                    "end_percent",
                    1.0,
                    "The last three options have no effect after this point of the sampling.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model, vae, stitch, structure, context_attention, source_reference, ring_style, start_percent, end_percent
    ) -> io.NodeOutput:
        return io.NodeOutput(
            context.apply(
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
            category=CATEGORY,
            description="Pastes a result back into its image. Outside the enlarged and feathered mask, the image is identical to the source.",
            inputs=[
                io.Image.Input("image", tooltip="Decoded result."),
                StitchType.Input("stitch", tooltip="stitch of Paint by Example Prepare or Crop to Edit."),
                _fraction(
                    "colour_match",
                    0.0,
                    "Matches the colours of the result to those of the source, measured in a ring around the hole.",
                ),
                io.Boolean.Input(
                    "together",
                    default=False,
                    optional=True,
                    tooltip="For several masks of one image: pastes all results into one copy of the image, instead of one copy per mask.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image, stitch, colour_match, together=False) -> io.NodeOutput:
        return io.NodeOutput(crop_host.stitch(image, stitch, colour_match, together))


class ExemplaryMaskShape(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryMaskShape",
            display_name="Mask Shape",
            category=CATEGORY,
            description="Draws mask shapes as in the training of Paint by Example: an extended box, or curves around a box "
            "with jittered corners.",
            inputs=[
                io.Int.Input("width", default=512, min=8, max=8192, tooltip="Width of the mask. Ignored if a mask is connected."),
                io.Int.Input(
                    "height", default=512, min=8, max=8192, tooltip="Height of the mask. Ignored if a mask is connected."
                ),
                _fraction("x", 0.25, "Left edge of the box, 0 to 1."),
                _fraction("y", 0.25, "Upper edge of the box, 0 to 1."),
                _fraction("box_width", 0.5, "Width of the box, 0 to 1."),
                _fraction("box_height", 0.5, "Height of the box, 0 to 1."),
                _choice(
                    "shape",
                    SHAPES,
                    "bezier: curves around the box. rectangle: the extended box. either: one of the two at random, as in training.",
                ),
                _fraction(
                    "extension",
                    EXTENSION,
                    "Maximum distance by which a side is moved outwards, as a fraction of its distance to the image's edge.",
                ),
                io.Int.Input(
                    "jitter",
                    default=JITTER,
                    min=0,
                    max=100,
                    tooltip="Maximum random offset of each corner of a curve, in pixels.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed for the random shape.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of masks to generate. If a mask is connected: the number per input mask.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Replaces the box with the bounding box of this mask."),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(
        cls, width, height, x, y, box_width, box_height, shape, extension, jitter, seed, count, mask=None
    ) -> io.NodeOutput:
        box = (x, y, x + box_width, y + box_height)
        return io.NodeOutput(prepare.make_mask_shapes(box, width, height, shape, extension, jitter, seed, count, mask))


NODES = [
    ExemplaryLoadPaintByExample,
    ExemplaryExemplarConditioning,
    ExemplaryPaintByExamplePrepare,
    ExemplaryPaintByExampleContext,
    ExemplaryStitch,
    ExemplaryMaskShape,
]
