"""Noise fusion as a GUIDER: a scene MODEL and subject MODELs share one sampling run (`py/snf`, Face-diffuser).

A `FusionGuider` is the configuration that travels between nodes; everything that exists only while sampling is in a `FusionRun` (run.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...snf.fusion import PUBLISHED, MaskSettings
from .. import inputs
from ..notices import warn_user
from .models import check_conditioning, check_pair, copy_weights, has_hooks, shares_weights
from .preview import FusionRecord, show_overlay
from .run import FusionRun, Subject, with_two_kinds

NODE = "Subject Fusion Guider (SNF)"

log = logging.getLogger("exemplary")


class FusionGuider(comfy.samplers.CFGGuider):
    """GUIDER: a scene model and its subject models. Works with any sampler, scheduler, noise mask and preview.

    Sampling changes nothing but `record` (the shares of the latest run) and `subject_models` (copies of weights are kept for the next
    run), so a guider may be used any number of times, and again from inside its own run.

    Args:
        model, positive, negative, cfg: the scene. node: display name that errors begin with.

    Raises:
        ValueError: models that cannot be combined, or unusable inputs, before anything is sampled.
    """

    def __init__(
        self,
        model: Any,
        positive: list,
        negative: list,
        cfg: float,
        subjects: Sequence[Subject],
        settings: MaskSettings = PUBLISHED,
        overlay: bool = False,
        node: str = NODE,
    ):
        super().__init__(model.clone())
        self.node = node
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(model, conditioning, node, name)
        self.scene = (model, positive, negative, inputs.check_number(cfg, node, "cfg"))
        self.set_conds(positive, negative)
        self.set_cfg(cfg)
        self.subjects = tuple(_checked(subject, model, node) for subject in subjects)
        self.settings, self.overlay = settings, overlay
        self.subject_models = [
            subject.model.clone() if subject.text_guidance == 1.0 else with_two_kinds(subject.model) for subject in self.subjects
        ]
        self.record = FusionRecord()

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None):
        """As the host's guiders: the denoised latent."""
        if sigmas.shape[-1] == 0:
            return latent_image
        self._check_latent(latent_image, denoise_mask)
        self._separate_weights()
        run = FusionRun(self, self.subject_models, self.settings)
        self.record = run.record
        if self.overlay:
            callback = show_overlay(callback, self.model_patcher, run.record)
        try:
            return run.start(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        finally:
            self.record = run.record  # a run inside this one has put its own here

    def _check_latent(self, latent: Tensor, denoise_mask: Tensor | None) -> None:
        shape = "several tensors" if getattr(latent, "is_nested", False) else list(latent.shape)
        frames = not isinstance(shape, str) and len(shape) == 5 and shape[2] > 1
        form = self.model_patcher.get_model_object("latent_format")
        if isinstance(shape, str) or frames or len(shape) != 2 + getattr(form, "latent_dimensions", 2):
            raise ValueError(
                f"{self.node}: the latent is {shape}. Noise fusion needs latents of single images as the scene model samples them, not of "
                "videos or sound. Connect an empty latent or an encoded image for this model, with a length of 1 frame."
            )
        if 0 in shape:
            raise ValueError(f"{self.node}: the latent is empty (shape {shape}). Connect a latent of at least one image.")
        if shape[1] != form.latent_channels:
            raise ValueError(
                f"{self.node}: the latent has {shape[1]} channels, but the scene model needs {form.latent_channels}. "
                "Encode the image with the VAE of the scene model."
            )
        for name, values in (("latent", latent), ("noise mask of the latent", denoise_mask)):
            if values is not None and not bool(torch.isfinite(values).all()):
                raise ValueError(f"{self.node}: the {name} contains NaN or infinite values. Check the node that it comes from.")
        if self.settings.smoothing == "average" and min(shape[-2:]) < 2:
            raise ValueError(
                f"{self.node}: a latent of {shape[-2]} x {shape[-1]} pixels is too small for the average smoothing; choose 'none'."
            )
        for subject in self.subjects:
            for name, mask in (("force_mask", subject.force), ("forbid_mask", subject.forbid)):
                if mask is not None:
                    inputs.check_batch(len(mask), shape[0], self.node, name)

    def _separate_weights(self) -> None:
        """Copy the weights of a subject model that is the same checkpoint as another model of the run, but with other LoRAs."""
        models = [(self.model_patcher, self.original_conds)]
        for number, subject in enumerate(self.subjects):
            patcher = self.subject_models[number]
            conditions = {name: comfy.sampler_helpers.convert_cond(value) for name, value in subject.conditions().items()}
            for other, other_conditions in models:
                if not patcher.is_clone(other):
                    continue
                if has_hooks(conditions) or has_hooks(other_conditions) or not shares_weights(patcher, other):
                    log.info("%s: scene and subject are one checkpoint with different LoRAs; its weights are copied.", self.node)
                    patcher = self.subject_models[number] = copy_weights(patcher, self.node)
            models.append((patcher, conditions))


def _checked(subject: Subject, scene: Any, node: str) -> Subject:
    """The subject with its masks as [f, h, w] float32. Raises ValueError for inputs that cannot be used with this scene model."""
    check_pair(scene, subject.model, node)
    inputs.check_number(subject.cfg, node, "subject_cfg")
    inputs.check_number(subject.text_guidance, node, "text_guidance")
    if subject.text_guidance != 1.0 and subject.negative is None:
        raise ValueError(f"{node}: text_guidance is {subject.text_guidance}; connect subject_negative, or set it to 1.")
    names = {"positive": "subject_positive", "negative": "subject_text", "null": "subject_negative"}
    for kind, conditioning in subject.conditions().items():
        check_conditioning(subject.model, conditioning, node, names[kind])
    force, forbid = subject.force, subject.forbid
    if force is not None:
        force = inputs.check_mask(force, node, "force_mask", allow_blank=False)
    if forbid is not None:
        forbid = inputs.check_mask(forbid, node, "forbid_mask")
        if not forbid.any():
            warn_user(f"{node}: forbid_mask is 0 everywhere, so nothing is forbidden to the subject model.")
    return replace(subject, force=force, forbid=forbid)


def build_guider(
    subject: Subject,
    settings: MaskSettings,
    overlay: bool,
    model: Any = None,
    positive: list | None = None,
    negative: list | None = None,
    cfg: float = 5.0,
    guider: Any = None,
) -> FusionGuider:
    """A guider for a scene and a subject, or `guider` with one more subject. Raises ValueError if neither or both are given."""
    given = {"model": model, "positive": positive, "negative": negative}
    missing = [name for name, value in given.items() if value is None]
    if guider is None:
        if missing:
            raise ValueError(
                f"{NODE}: {', '.join(missing)} is not connected. Connect model, positive and negative of the scene, or "
                f"another {NODE}."
            )
        return FusionGuider(model, positive or [], negative or [], cfg, [subject], settings, overlay)
    if len(missing) < len(given):
        raise ValueError(
            f"{NODE}: the scene is given twice, by guider and by {', '.join(n for n in given if n not in missing)}. "
            "Disconnect one of them."
        )
    if not isinstance(guider, FusionGuider):
        raise ValueError(
            f"{NODE}: the guider input is {type(guider).__name__}. A subject can only be added to the output of another {NODE}."
        )
    return FusionGuider(*guider.scene, (*guider.subjects, subject), settings, overlay)
