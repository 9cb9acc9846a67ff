"""A person's model and a scene's model in one sampling run (Face-diffuser's noise fusion, arXiv 2311.10329)."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import folders
from ..py.host.snf import guider as host
from ..py.host.snf import sampler as sampling
from ..py.host.snf import subjects
from ..py.host.snf.preview import draw_record
from ..py.snf.fusion import SMOOTHING, Settings
from ..py.snf.schedule import Stages
from .types import SubjectFuserType
from .widgets import advanced


def _cfg(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def _bounds() -> list[io.Input]:
    start = (
        "Where in the sampling the subject model joins, 0 to 1. Before it, the scene model alone lays out the picture. "
        "Lower it if the person is not recognised."
    )
    end = "Where the subject model goes on alone, 0 to 1. 1: never; the scene model has a say to the end."
    return [
        io.Float.Input("start_percent", default=0.31, min=0.0, max=1.0, step=0.01, tooltip=start),
        io.Float.Input("end_percent", default=0.61, min=0.0, max=1.0, step=0.01, tooltip=end),
    ]


def _subject_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "subject_model",
            tooltip="Knows the person: from Load Subject Model, or any MODEL, such as one with a LoRA or an IPAdapter.",
        ),
        io.Conditioning.Input(
            "subject_positive", tooltip="The prompt with the person: from Subject Encode, or with the trigger word of a LoRA."
        ),
        io.Conditioning.Input(
            "subject_text",
            tooltip="The same prompt without the person. What differs from it decides where the subject model works.",
        ),
    ]


def _masks() -> list[io.Input]:
    return [
        io.Mask.Input("force_mask", optional=True, tooltip="Where the subject model must draw while both work."),
        io.Mask.Input(
            "forbid_mask",
            optional=True,
            tooltip="Where the subject model must not draw. The scene model is then asked there to the end.",
        ),
    ]


class ExemplaryLoadSubjectModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadSubjectModel",
            display_name="Load Subject Model",
            category="exemplary/subject",
            description=(
                "A model that draws persons from pictures of them: Face-diffuser (SDM) or FastComposer, both for "
                "Stable Diffusion 1.5, or the "
                "small one that ships for the playground. The file is recognised by what is in it."
            ),
            inputs=[
                io.Combo.Input("file", options=folders.files(subjects.FOLDER), tooltip="From models/face_diffuser, or shipped."),
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
            category="exemplary/subject",
            description="A prompt with persons in it, who are known from pictures. Write <|image|> behind the word of each person.",
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="CLIP of a Stable Diffusion 1.5 checkpoint (or of the playground)."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image encoder from Load Subject Model; an ordinary one does not fit."
                ),
                SubjectFuserType.Input("fuser", tooltip="From Load Subject Model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a person <|image|> in a park",
                    tooltip="<|image|> behind the word of each person. Weights like (word:1.2) are read as plain text.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="One picture a marker, as a batch or a list. In a list, a batch holds several pictures of one person.",
                ),
                io.Combo.Input(
                    "fill",
                    options=list(subjects.FILLS),
                    default=subjects.FILLS[0],
                    tooltip=(
                        "What surrounds the person where there is a mask. Noise is what the published models were trained with."
                    ),
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the person is in each picture; it is cropped to it."),
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
            display_name="SNF Guider",
            category="exemplary/subject",
            description=(
                "A scene model and a subject model share one sampling run: first the scene alone, then at each place "
                "the model whose guidance "
                "acts there more, at last the subject alone (Face-diffuser's saliency-adaptive noise fusion). For "
                "SamplerCustomAdvanced. "
                "Chain several for several persons."
            ),
            inputs=[
                *_subject_inputs(),
                _cfg("cfg", "Guidance of the scene model."),
                _cfg("subject_cfg", "Guidance of the subject model, from the prompt without the person to the one with."),
                *_bounds(),
                advanced(
                    io.Combo.Input(
                        "smoothing",
                        options=list(SMOOTHING),
                        default=SMOOTHING[0],
                        tooltip=(
                            "How the maps of the two models are smoothed before they are compared. Average is the published way."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "gaussian_sigma",
                        default=1.0,
                        min=0.1,
                        max=16.0,
                        step=0.1,
                        tooltip="Of the gaussian smoothing, in latent cells of 8 pixels.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "softness",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.05,
                        tooltip="0: each place belongs to one model, as published. Above: places are shared, the more the higher.",
                    )
                ),
                advanced(
                    io.Boolean.Input("per_channel", default=False, tooltip="Compare the models in each latent channel by itself.")
                ),
                advanced(
                    io.Float.Input(
                        "saliency_scale",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip="How sharply the maps are weighed. 0: the guidance of each model, as published.",
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
                            "Above 1 the subject model follows its prompt, and avoids subject_negative, more; this costs a "
                            "third evaluation. 1 is as published."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input("preview_overlay", default=False, tooltip="Lay the map over the preview while sampling.")
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The scene model: any checkpoint with the same latents as the subject model."
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt for the scene model, without markers."),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt of the scene model."),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip=(
                        "Another SNF Guider, instead of model, positive and negative: its scene and subjects stay, and "
                        "this subject is added."
                    ),
                ),
                io.Conditioning.Input(
                    "subject_negative",
                    optional=True,
                    tooltip="A negative prompt for the subject model; only used if text_guidance is not 1.",
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
        subject = host.Subject(
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
        settings = Settings(smoothing, gaussian_sigma, softness, per_channel, saliency_scale or None)
        return io.NodeOutput(host.guider_of(subject, settings, preview_overlay, model, positive, negative, cfg, guider))


class ExemplarySNFSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySNFSampler",
            display_name="SNF Sampler",
            category="exemplary/subject",
            description=(
                "A scene model and a subject model share one sampling run, all in one node: SNF Guider with a KSampler's inputs."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The scene model: any checkpoint with the same latents as the subject model."),
                io.Conditioning.Input("positive", tooltip="The prompt for the scene model, without markers."),
                io.Conditioning.Input("negative", tooltip="The negative prompt of the scene model."),
                *_subject_inputs(),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Of the noise."
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="The number of steps of the sampler."),
                _cfg("cfg", "Guidance of the scene model."),
                _cfg("subject_cfg", "Guidance of the subject model, from the prompt without the person to the one with."),
                io.Combo.Input("sampler_name", options=sampling.SAMPLERS, default="euler", tooltip="Any sampler."),
                io.Combo.Input("scheduler", options=sampling.SCHEDULERS, default="normal", tooltip="Any scheduler."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="How much of the given latent is drawn anew."
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
        subject = host.Subject(
            subject_model,
            subject_positive,
            subject_text,
            subject_cfg,
            Stages(start_percent, end_percent),
            force=force_mask,
            forbid=forbid_mask,
        )
        guider = host.FusionGuider(model, positive, negative, cfg, [subject])
        return io.NodeOutput(sampling.sample(guider, latent_image, seed, steps, sampler_name, scheduler, denoise), guider)


class ExemplarySaliencyPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySaliencyPreview",
            display_name="Saliency Preview",
            category="exemplary/subject",
            description=(
                "Which model drew which place: the map of each evaluation, all of them as a strip, and how much of the "
                "picture each model had."
            ),
            inputs=[
                io.Guider.Input("guider", tooltip="The SNF Guider, or the guider output of the SNF Sampler."),
                io.Latent.Input("latent", tooltip="The sampler's result, so that this node runs after it."),
                io.Int.Input("picture", default=1, min=1, max=4096, tooltip="Which picture of the batch, from 1."),
                io.Image.Input("image", optional=True, tooltip="Drawn below the maps, such as the finished picture."),
            ],
            outputs=[
                io.Image.Output(display_name="maps"),
                io.Image.Output(display_name="strip"),
                io.Image.Output(display_name="plot"),
            ],
        )

    @classmethod
    def execute(cls, guider, latent, picture, image=None) -> io.NodeOutput:
        return io.NodeOutput(*draw_record(getattr(guider, "record", None), latent["samples"], picture, image))


NODES = [
    ExemplaryLoadSubjectModel,
    ExemplarySubjectEncode,
    ExemplarySNFGuider,
    ExemplarySNFSampler,
    ExemplarySaliencyPreview,
]
