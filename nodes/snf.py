"""A subject model and a scene model in one sampling run (Face-diffuser's noise fusion, arXiv 2311.10329)."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.host import folders
from ..py.host.snf import guider as fusion
from ..py.host.snf import sampler as sampling
from ..py.host.snf import subjects
from ..py.host.snf.preview import draw_record
from ..py.host.snf.run import Subject
from ..py.snf.fusion import SMOOTHING, MaskSettings
from ..py.snf.schedule import Stages
from .types import SubjectFuserType
from .widgets import advanced

CATEGORY = "exemplary/SNF"


def _cfg(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def _bounds() -> list[io.Input]:
    start = (
        "Point in the sampling at which the subject model is first used, 0 to 1. Before it, only the scene model "
        "is used, which determines the layout. Lower it if the person is not recognisable."
    )
    end = "Point in the sampling after which only the subject model is used, 0 to 1. 1: the scene model is used until the end."
    return [
        io.Float.Input("start_percent", default=0.31, min=0.0, max=1.0, step=0.01, tooltip=start),
        io.Float.Input("end_percent", default=0.61, min=0.0, max=1.0, step=0.01, tooltip=end),
    ]


def _scene_inputs(optional: bool) -> list[io.Input]:
    return [
        io.Model.Input(
            "model", optional=optional, tooltip="The scene model: any checkpoint with the same latent space as the subject model."
        ),
        io.Conditioning.Input("positive", optional=optional, tooltip="The prompt of the scene model, without markers."),
        io.Conditioning.Input("negative", optional=optional, tooltip="The negative prompt of the scene model."),
    ]


def _subject_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "subject_model",
            tooltip=(
                "The model that draws the subject: from Load Subject Model, or any MODEL, such as one with a LoRA, an IPAdapter or "
                "reference latents."
            ),
        ),
        io.Conditioning.Input(
            "subject_positive",
            tooltip="The prompt with the subject: from Subject Encode, or with the trigger word of a LoRA, or with reference latents.",
        ),
        io.Conditioning.Input(
            "subject_text",
            tooltip="The same prompt without the subject. The difference between the predictions for the two prompts "
            "determines where the subject model is used.",
        ),
    ]


def _masks() -> list[io.Input]:
    return [
        io.Mask.Input(
            "force_mask", optional=True, tooltip="Area in which only the subject model is used while both models are active."
        ),
        io.Mask.Input(
            "forbid_mask",
            optional=True,
            tooltip="Area in which the subject model is never used. The scene model stays active there to the end.",
        ),
    ]


class ExemplaryLoadSubjectModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadSubjectModel",
            display_name="Load Subject Model",
            category=CATEGORY,
            description=(
                "Loads a model that draws people from reference images: Face-diffuser (SDM) or FastComposer, "
                "both for Stable Diffusion 1.5, or the small model for the playground that ships with the pack. "
                "The kind is detected from the weights."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.files(subjects.FOLDER),
                    tooltip="File in models/face_diffuser, or one that ships with the pack.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.ClipVision.Output(display_name="clip_vision"),
                SubjectFuserType.Output(display_name="fuser"),
            ],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(*subjects.load(file))


class ExemplarySubjectEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySubjectEncode",
            display_name="Subject Encode",
            category=CATEGORY,
            description="Encodes a prompt with people from reference images. Write <|image|> after the word for each person.",
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="CLIP of a Stable Diffusion 1.5 checkpoint, or of the playground."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image encoder from Load Subject Model. Other CLIP vision models are not compatible.",
                ),
                SubjectFuserType.Input("fuser", tooltip="The network from Load Subject Model that fuses images with words."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a person <|image|> in a park",
                    tooltip=(
                        "The prompt, with <|image|> (or <A*>) after the word for each person. Weights like (word:1.2) have no effect."
                    ),
                ),
                io.Image.Input(
                    "images",
                    tooltip=(
                        "Reference images, one per marker, as a batch or a list. In a list, all images of a batch show the same person."
                    ),
                ),
                io.Combo.Input(
                    "fill",
                    options=list(subjects.FILLS),
                    default=subjects.FILLS[0],
                    tooltip="Fills the reference image outside of its mask. The published models were trained with noise.",
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="The area of the person in each image. The image is cropped to it."
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="subject"), io.Conditioning.Output(display_name="text")],
        )

    @classmethod
    def execute(cls, clip, clip_vision, fuser, prompt, images, fill, masks=None) -> io.NodeOutput:
        return io.NodeOutput(*subjects.encode(clip[0], clip_vision[0], fuser[0], prompt[0], images, masks or (), fill[0]))


class ExemplarySNFGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySNFGuider",
            display_name="Subject Fusion Guider (SNF)",
            category=CATEGORY,
            description=(
                "Samples one image with a scene model and a subject model: first only the scene model, then at each latent pixel the "
                "model with the stronger guidance, at the end only the subject model (Face-diffuser's saliency-adaptive noise fusion). "
                "For SamplerCustomAdvanced. Chain several guiders for several subjects."
            ),
            inputs=[
                *_subject_inputs(),
                _cfg("cfg", "Guidance scale of the scene model."),
                _cfg(
                    "subject_cfg", "Guidance scale of the subject model, from the prompt without the subject to the one with it."
                ),
                *_bounds(),
                advanced(
                    io.Combo.Input(
                        "smoothing",
                        options=list(SMOOTHING),
                        default=SMOOTHING[0],
                        tooltip="Smoothing of the two saliency maps before they are compared. The published code uses average.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "gaussian_sigma",
                        default=1.0,
                        min=0.1,
                        max=16.0,
                        step=0.1,
                        tooltip="Standard deviation of the gaussian smoothing, in latent pixels (8 image pixels).",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "softness",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.05,
                        tooltip="0: each latent pixel uses one model, as published. Higher values blend the models more.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "per_channel", default=False, tooltip="Compare the models separately in each latent channel."
                    )
                ),
                advanced(
                    io.Float.Input(
                        "saliency_scale",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip="Sharpness of the saliency maps. 0 uses the guidance scale of each model, as published.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "text_guidance",
                        default=1.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip=(
                            "CFG scale of the subject model, with subject_negative as its negative prompt. Needs a third evaluation "
                            "per step. 1: off, as published."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input("preview_overlay", default=False, tooltip="Show the mask over the preview while sampling.")
                ),
                *_scene_inputs(optional=True),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip=(
                        "Another Subject Fusion Guider (SNF), instead of model, positive and negative: this subject is added to its "
                        "scene and subjects."
                    ),
                ),
                io.Conditioning.Input(
                    "subject_negative",
                    optional=True,
                    tooltip="The negative prompt of the subject model. Used only if text_guidance is not 1.",
                ),
                *_masks(),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls,
        subject_model,
        subject_positive,
        subject_text,
        cfg,
        subject_cfg,
        start_percent,
        end_percent,
        smoothing,
        gaussian_sigma,
        softness,
        per_channel,
        saliency_scale,
        text_guidance,
        preview_overlay,
        model=None,
        positive=None,
        negative=None,
        guider=None,
        subject_negative=None,
        force_mask=None,
        forbid_mask=None,
    ) -> io.NodeOutput:
        subject = Subject(
            subject_model,
            subject_positive,
            subject_text,
            subject_cfg,
            Stages(start_percent, end_percent),
            subject_negative,
            text_guidance,
            force_mask,
            forbid_mask,
        )
        settings = MaskSettings(smoothing, gaussian_sigma, softness, per_channel, saliency_scale or None)
        return io.NodeOutput(fusion.build_guider(subject, settings, preview_overlay, model, positive, negative, cfg, guider))


class ExemplarySNFSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySNFSampler",
            display_name="Subject Fusion Sampler (SNF)",
            category=CATEGORY,
            description=(
                "Samples one image with a scene model and a subject model, all in one node: Subject Fusion Guider (SNF) with the "
                "inputs of KSampler."
            ),
            inputs=[
                *_scene_inputs(optional=False),
                *_subject_inputs(),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Seed for the noise."
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Number of sampling steps."),
                _cfg("cfg", "Guidance scale of the scene model."),
                _cfg(
                    "subject_cfg", "Guidance scale of the subject model, from the prompt without the subject to the one with it."
                ),
                io.Combo.Input("sampler_name", options=sampling.SAMPLERS, default="euler", tooltip="The sampling algorithm."),
                io.Combo.Input("scheduler", options=sampling.SCHEDULERS, default="normal", tooltip="The noise schedule."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Strength of denoising. Below 1 the result keeps more of latent_image.",
                ),
                *_bounds(),
                *_masks(),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        subject_model,
        subject_positive,
        subject_text,
        latent_image,
        seed,
        steps,
        cfg,
        subject_cfg,
        sampler_name,
        scheduler,
        denoise,
        start_percent,
        end_percent,
        force_mask=None,
        forbid_mask=None,
    ) -> io.NodeOutput:
        subject = Subject(
            subject_model,
            subject_positive,
            subject_text,
            subject_cfg,
            Stages(start_percent, end_percent),
            force=force_mask,
            forbid=forbid_mask,
        )
        guider = fusion.FusionGuider(model, positive, negative, cfg, [subject], node=sampling.NODE)
        return io.NodeOutput(sampling.sample(guider, latent_image, seed, steps, sampler_name, scheduler, denoise), guider)


class ExemplarySaliencyPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySaliencyPreview",
            display_name="Saliency Preview",
            category=CATEGORY,
            description=(
                "Shows which model was used in which part of the image: the mask of each evaluation, a labelled grid of those in which "
                "the models were fused, and a plot of each model's share."
            ),
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="The Subject Fusion Guider (SNF), or the guider output of the Subject Fusion Sampler (SNF).",
                ),
                io.Latent.Input("latent", tooltip="The sampler's result. Connecting it makes this node run after the sampler."),
                io.Int.Input("picture", default=1, min=1, max=4096, tooltip="Number of the image in the batch, starting at 1."),
                io.Image.Input("image", optional=True, tooltip="Image to show under the masks, such as the decoded result."),
            ],
            outputs=[
                io.Image.Output(display_name="maps"),
                io.Image.Output(display_name="strip"),
                io.Image.Output(display_name="plot"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, guider, latent, picture, image=None) -> io.NodeOutput:
        masks, grid, plot = draw_record(getattr(guider, "record", None), latent["samples"], picture, image)
        return io.NodeOutput(masks, grid, plot, ui=ui.PreviewImage(grid))


NODES = [
    ExemplaryLoadSubjectModel,
    ExemplarySubjectEncode,
    ExemplarySNFGuider,
    ExemplarySNFSampler,
    ExemplarySaliencyPreview,
]
