"""One sampling run of several MODELs: what exists only while a FusionGuider samples.

Each subject model goes through the host's whole sampling life cycle (hooks, wrappers, ControlNets, memory, clean-up) as a guider whose
sampler does not sample: it opens the next guider inside. The scene model's guider, the innermost, runs the real sampler, and evaluates
at each step the models that the stage needs:

    FusionGuider.sample -> FusionRun.start
        SubjectGuider 1: sample -> _Enter          the host loads the subject model and prepares its conditioning
            SubjectGuider 2: sample -> _Enter
                FusionRun: sample -> the sampler   the host loads the scene model
                    FusionRun.__call__             one evaluation, as often as the sampler asks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...snf.fusion import MaskSettings, fuse, guidance_response, saliency_shares
from ...snf.schedule import SigmaStages, Stage, Stages
from .models import distinct, running, x0_per_epsilon
from .preview import FusionRecord

KEY = "exemplary_snf"
PUBLISHED_STAGES = Stages()
#: Masks that cannot be smoothed are not needed where no maps are compared.
UNSMOOTHED = MaskSettings(smoothing="none")


class Branches(NamedTuple):
    """One model's predictions for one latent, x0 [b, c, h, w]: after guidance, and with and without what the guidance is towards."""

    guided: Tensor
    full: Tensor
    base: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """A subject model and the part of the schedule and of the image in which it acts.

    Args:
        model: its MODEL.
        positive: CONDITIONING with the person; text: of the same prompt without; negative: used only if `text_guidance` is not 1.
        cfg: guidance scale from text to person. text_guidance: from negative to text.
        force, forbid: MASKs [f, h, w]; where the person must be and must not be.
    """

    model: Any
    positive: list
    text: list
    cfg: float = 5.0
    stages: Stages = PUBLISHED_STAGES
    negative: list | None = None
    text_guidance: float = 1.0
    force: Tensor | None = None
    forbid: Tensor | None = None

    def conditions(self) -> dict[str, list]:
        """Under the host's names: "positive" with the person, "negative" without, "null" the negative prompt if it is used."""
        found = {"positive": self.positive, "negative": self.text}
        return found if self.text_guidance == 1.0 else {**found, "null": self.negative or []}


class _Enter(comfy.samplers.Sampler):
    """A sampler that does not sample: it calls `inside` while the host keeps the model ready."""

    def __init__(self, inside: Callable[[dict], None]):
        self.inside = inside

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.inside(extra_args["model_options"])
        return noise


class SubjectGuider(comfy.samplers.CFGGuider):
    """One subject model in one run.

    Attributes:
        number: of the model in the run, from 1. stages: in sigmas of the scene model.
        options: the `model_options` that the host has prepared; None until the host has opened this guider.
        patchers: what the host has loaded for it, its own MODEL first.
    """

    def __init__(self, number: int, subject: Subject, model_patcher: Any, stages: SigmaStages):
        super().__init__(model_patcher)
        self.number, self.subject, self.stages = number, subject, stages
        self.options: dict | None = None
        self.patchers: list[Any] = []
        self.set_cfg(subject.cfg)
        self.inner_set_conds(subject.conditions())

    def evaluate(self, x: Tensor, timestep: Tensor, seed: int | None, both: bool, keep_uncond: bool) -> Branches:
        """As `evaluate`, with the term of the negative prompt: null + text_guidance (base - null) + cfg (full - base).

        Args:
            keep_uncond: the sampler asks for both branches at cfg 1 too.
        """
        options = self.options or {}
        if keep_uncond:
            options = {**options, "disable_cfg1_optimization": True}
        excess = self.subject.text_guidance - 1.0
        if excess == 0.0:
            return evaluate(self, x, timestep, options, seed, both)
        null: list[Tensor] = []
        before = options.get("sampler_calc_cond_batch_function")

        def evaluate_three(args: dict) -> list[Tensor]:
            args = {**args, "conds": [*args["conds"], self.conds["null"]]}
            if before is not None:
                found = before(args)
            else:
                found = comfy.samplers.calc_cond_batch(
                    args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
                )
            null.append(found[2])
            return found[:2]

        out = evaluate(self, x, timestep, {**options, "sampler_calc_cond_batch_function": evaluate_three}, seed, True)
        return out if not null else out._replace(guided=out.guided + (out.base - null[0]) * excess)


def with_two_kinds(model_patcher: Any) -> Any:
    """A clone of a subject MODEL whose attention patches see the third branch as a negative one; they know kinds 0 and 1 only."""
    clone = model_patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _limit_kinds)
    return clone


def _limit_kinds(executor: Any, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("transformer_options") or next((a for a in args if isinstance(a, dict) and "cond_or_uncond" in a), {})
    if "cond_or_uncond" in options:
        options["cond_or_uncond"] = [min(kind, 1) for kind in options["cond_or_uncond"]]
    return executor(*args, **kwargs)


def evaluate(guider: Any, x: Tensor, timestep: Tensor, options: dict, seed: int | None, both: bool) -> Branches:
    """The host's guided prediction of one guider, its CFG functions included, and the two branches that it was computed from.

    Args:
        both: evaluate the second branch at cfg 1 too. Without it the response would be 0 everywhere, whose flat map wins nearly everywhere.
    """
    caught: list[Tensor] = []
    # The host would have skipped the second branch: it is for the maps only, so the guidance continues with the host's zeros.
    only_for_maps = both and math.isclose(guider.cfg, 1.0) and not options.get("disable_cfg1_optimization", False)

    def catch(args: dict) -> list[Tensor]:
        caught[:] = out = args["conds_out"][:2]
        return [out[0], torch.zeros_like(out[1])] if only_for_maps else args["conds_out"]

    options = {**options, "sampler_pre_cfg_function": [*options.get("sampler_pre_cfg_function", ()), catch]}
    if both:
        options["disable_cfg1_optimization"] = True
    with running(guider.model_patcher):
        guided = guider.outer_predict_noise(x, timestep, options, seed)
    # A caching node may answer without evaluating the model: then there are no branches, and its answer serves as both.
    full, base = caught or (guided, guided)
    return Branches(guided, full, base)


class FusionRun(comfy.samplers.CFGGuider):
    """The scene model's guider in one run, and the state of the run. A FusionGuider makes a new one each time it samples.

    Attributes:
        subjects: one SubjectGuider per subject model; those whose stage never comes are not loaded (`SubjectGuider.options` is None).
        record: shares of every evaluation, for the preview.
        in_memory: numbers of the models that were evaluated last; None before the first evaluation.
        outside: models that the subject guiders have loaded when the scene model is loaded.
    """

    def __init__(self, guider: Any, subject_models: Sequence[Any], settings: MaskSettings):
        super().__init__(guider.model_patcher)
        self.model_options = guider.model_options
        self.original_conds, self.cfg = guider.original_conds, guider.cfg
        self.settings = settings
        self.sampling = self.model_patcher.get_model_object("model_sampling")
        self.subjects = [
            SubjectGuider(number, subject, patcher, subject.stages.to_sigmas(self.sampling.percent_to_sigma))
            for number, (subject, patcher) in enumerate(zip(guider.subjects, subject_models, strict=True), 1)
        ]
        self.record = FusionRecord(len(self.subjects) + 1)
        self.in_memory: tuple[int, ...] | None = None
        self.outside: list[Any] = []
        self.key = f"{KEY}_{id(self)}"  # of what this run adds to the MODELs: runs may be nested

    # One run

    def start(self, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed) -> Tensor:
        """Open the subject guiders around each other, sample inside, and leave nothing behind."""
        last = float(sigmas.min())  # schedules may run backwards
        needed = [side for side in self.subjects if side.stages.stage_at(last) is not Stage.SCENE]
        result: list[Tensor] = []

        def inside() -> None:
            self._keep_in_memory(self.model_patcher)
            result.append(self.sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed))

        try:
            self._enter(needed, inside, noise, latent_image, sigmas, denoise_mask, seed)
            return result[0]
        finally:
            for patcher in (self.model_patcher, *(side.model_patcher for side in self.subjects)):
                patcher.remove_additional_models(self.key)
            for side in self.subjects:
                side.options, side.patchers = None, []
            self.outside = []

    def _enter(self, sides: Sequence[SubjectGuider], inside: Callable[[], None], noise, latent, sigmas, mask, seed) -> None:
        if not sides:
            inside()
            return
        side = sides[0]

        def opened(options: dict) -> None:
            side.options = options
            side.patchers = [side.model_patcher, *distinct(side.loaded_models, self.outside)]
            self.outside = [*self.outside, *side.patchers]
            self._enter(sides[1:], inside, noise, latent, sigmas, mask, seed)

        self._keep_in_memory(side.model_patcher)
        side.sample(noise, latent, _Enter(opened), sigmas, mask, None, True, seed)

    def _keep_in_memory(self, patcher: Any) -> None:
        """What the guiders outside have loaded stays in memory while this MODEL is loaded."""
        patcher.set_additional_models(self.key, distinct(self.outside, [patcher]))

    # One evaluation

    def __call__(self, x: Tensor, timestep: Tensor, model_options: dict = {}, seed: int | None = None) -> Tensor:  # noqa: B006
        """The fused x0 [b, c, h, w]. Called by samplers, any number of times and in any order of sigmas."""
        sigma = float(timestep.flatten()[0])
        stages = {side.number: side.stages.stage_at(sigma) for side in self.subjects if side.options is not None}
        active = [number for number, stage in stages.items() if stage is not Stage.SCENE]
        scene_is_over = any(stage is Stage.SUBJECT for stage in stages.values())
        shares = None
        if scene_is_over and any(self.subjects[number - 1].subject.forbid is not None for number in active):
            shares = self._shares_without_maps(x, active)
        scene_is_needed = not scene_is_over or (shares is not None and bool(shares[0].any()))
        numbers = [0, *active] if scene_is_needed else active
        self._load(numbers)

        # What a sampler adds for itself (CFG++ gets the branches there) must see the fused prediction, not one model's.
        own = self.model_options.get("sampler_post_cfg_function", [])
        added = [f for f in model_options.get("sampler_post_cfg_function", []) if not any(f is known for known in own)]
        both = len(numbers) > 1
        found: dict[int, Branches] = {}
        for number in numbers:
            if number == 0:
                found[0] = evaluate(self, x, timestep, {**model_options, "sampler_post_cfg_function": own}, seed, both)
            else:
                keep_uncond = bool(model_options.get("disable_cfg1_optimization", False))
                found[number] = self.subjects[number - 1].evaluate(x, timestep, seed, both, keep_uncond)
        out = found[numbers[0]]
        if both:
            if shares is None or len(active) > 1:
                shares = self._shares(found, timestep, scene_is_over)
            out = Branches(*(_fuse([getattr(found[n], part) for n in numbers], shares[numbers]) for part in Branches._fields))
        self.record.add(sigma, shares if both and shares is not None else numbers[0], x.shape)
        return self._apply_post_cfg(added, out, x, timestep, model_options)

    def _shares_without_maps(self, x: Tensor, active: Sequence[int]) -> Tensor:
        """[m, b, 1, h, w] in the subject stage: the scene model only fills what is forbidden to every subject model."""
        flat = torch.zeros_like(_without_frame(x)[:, :1])
        responses = [flat if number in active else None for number in range(len(self.subjects) + 1)]
        return saliency_shares(responses, UNSMOOTHED, scene_is_last_resort=True, **self._masks(active))

    def _shares(self, found: dict[int, Branches], timestep: Tensor, scene_is_over: bool) -> Tensor:
        """[m, b, k, h, w] of all models; those that were not evaluated have none."""
        unit = x0_per_epsilon(self.sampling, timestep)
        responses: list[Tensor | None] = [None] * (len(self.subjects) + 1)
        for number, branches in found.items():
            cfg = self.cfg if number == 0 else self.subjects[number - 1].cfg
            scale = cfg if self.settings.saliency_scale is None else self.settings.saliency_scale
            responses[number] = guidance_response(_without_frame(branches.full), _without_frame(branches.base), scale, unit)
        masks = self._masks([number for number in found if number])
        return saliency_shares(responses, self.settings, scene_is_last_resort=scene_is_over, **masks)

    def _masks(self, numbers: Sequence[int]) -> dict[str, dict[int, Tensor]]:
        subjects = {number: self.subjects[number - 1].subject for number in numbers}
        return {
            "force": {n: s.force for n, s in subjects.items() if s.force is not None},
            "forbid": {n: s.forbid for n, s in subjects.items() if s.forbid is not None},
        }

    def _load(self, numbers: Sequence[int]) -> None:
        """At each change of stage: load the models that are evaluated now; where memory is short the others are unloaded."""
        if self.in_memory == tuple(numbers):
            return
        if self.in_memory is not None:
            scene = [self.model_patcher, *distinct(self.loaded_models, self.outside)]
            models = [model for number in numbers for model in (self.subjects[number - 1].patchers if number else scene)]
            comfy.model_management.load_models_gpu(distinct(models))
            for patcher in models:
                if hasattr(patcher, "model_patches_to"):
                    patcher.model_patches_to(patcher.load_device)
        self.in_memory = tuple(numbers)

    def _apply_post_cfg(self, added: list, out: Branches, x: Tensor, timestep: Tensor, options: dict) -> Tensor:
        result = out.guided
        for function in added:
            result = function(
                {
                    "denoised": result,
                    "cond": self.conds["positive"],
                    "uncond": self.conds["negative"],
                    "cond_scale": self.cfg,
                    "model": self.inner_model,
                    "uncond_denoised": out.base,
                    "cond_denoised": out.full,
                    "sigma": timestep,
                    "model_options": options,
                    "input": x,
                }
            )
        return result


def _without_frame(x: Tensor) -> Tensor:
    """[b, c, h, w] of a latent whose model has an axis of one frame, [b, c, 1, h, w]; others unchanged."""
    return x[:, :, 0] if x.ndim == 5 else x


def _fuse(predictions: Sequence[Tensor], shares: Tensor) -> Tensor:
    """`fuse`, with the axis of one frame where the models have it."""
    fused = fuse([_without_frame(prediction) for prediction in predictions], shares)
    return fused[:, :, None] if predictions[0].ndim == 5 else fused
