"""Noise fusion's room: a scene MODEL and subject MODELs share one sampling run, inside one GUIDER (`py/snf`, Face-diffuser).

Each subject model goes through the host's whole life of a sampling run (hooks, wrappers, ControlNets, memory, clean-up) as a guider of
its own whose sampler does not sample: it opens the next guider inside. The scene, the innermost, runs the real sampler, and at every
evaluation asks the models that the stage needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...snf.fusion import PUBLISHED, Prediction, Settings, fuse, log_saliency, model_shares
from ...snf.schedule import SigmaStages, Stage, Stages
from .. import grids
from .models import check_pair, distinct, has_hooks, running, same_weights, with_own_weights
from .preview import Record, overlaid

NODE = "SNF Guider"
KEY = "exemplary_snf"
PUBLISHED_STAGES = Stages()
NO_SAY = -1e4  # log P of a scene that only fills what is forbidden to the subjects; finite, since infinities subtract to NaN

log = logging.getLogger("exemplary")


class Branches(NamedTuple):
    """One model's answer to one latent, denoised pictures [b, c, h, w]: after guidance, with and without what the model is there for."""

    guided: Tensor
    full: Tensor
    base: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """A subject model and where in time and space it works.

    Args:
        model: its MODEL.
        positive: CONDITIONING with the person; text: the same prompt without; negative: only read if `text_guidance` is not 1.
        cfg: guidance from text to person. text_guidance: from negative to text.
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


class _Enter(comfy.samplers.Sampler):
    """A sampler that only lends the prepared model: while it "samples", everything inside happens."""

    def __init__(self, inside: Callable[[dict], None]):
        self.inside = inside

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.inside(extra_args["model_options"])
        return noise


class SubjectGuider(comfy.samplers.CFGGuider):
    """One subject model: "positive" is with the person, "negative" the same prompt without, "null" the negative prompt if it counts."""

    def __init__(self, subject: Subject):
        super().__init__(subject.model.clone())
        self.subject = subject
        self.set_cfg(subject.cfg)
        conditions: dict[str, list] = {"positive": subject.positive, "negative": subject.text}
        if subject.text_guidance != 1.0:
            conditions["null"] = subject.negative or []
            self.model_patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _two_kinds)
        self.inner_set_conds(conditions)

    def predict(self, x: Tensor, timestep: Tensor, options: dict, seed: int | None, both: bool) -> Branches:
        """As `predict`, with the term of the negative prompt: null + text_guidance (base - null) + cfg (full - base)."""
        amount = self.subject.text_guidance - 1.0
        if amount == 0.0:
            return predict(self, x, timestep, options, seed, both)
        null: list[Tensor] = []
        before = options.get("sampler_calc_cond_batch_function")

        def three(args: dict) -> list[Tensor]:
            args = {**args, "conds": [*args["conds"], self.conds["null"]]}
            if before is not None:
                found = before(args)
            else:
                found = comfy.samplers.calc_cond_batch(
                    args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
                )
            null.append(found[2])
            return found[:2]

        out = predict(self, x, timestep, {**options, "sampler_calc_cond_batch_function": three}, seed, True)
        return out if not null else out._replace(guided=out.guided + (out.base - null[0]) * amount)


def _two_kinds(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """APPLY_MODEL wrapper: patches know positive (0) and negative (1) rows; our third branch is of the negative kind."""
    options = kwargs.get("transformer_options") or next((a for a in args if isinstance(a, dict) and "cond_or_uncond" in a), {})
    if "cond_or_uncond" in options:
        options["cond_or_uncond"] = [min(kind, 1) for kind in options["cond_or_uncond"]]
    return executor(*args, **kwargs)


def predict(guider: Any, x: Tensor, timestep: Tensor, options: dict, seed: int | None, both: bool) -> Branches:
    """The host's own guided prediction of one guider, its CFG functions included, and the two branches that went into it.

    Args:
        both: evaluate the second branch at cfg 1 too; without it the response would be zero, whose map is flat and wins nearly everywhere.
    """
    caught: list[Tensor] = []
    # The host would have skipped the second branch: it is for the maps only, and guidance goes on with the zeros that it has then.
    only_for_maps = both and math.isclose(guider.cfg, 1.0) and not options.get("disable_cfg1_optimization", False)

    def catch(args: dict) -> list[Tensor]:
        caught[:] = out = args["conds_out"][:2]
        return [out[0], torch.zeros_like(out[1])] if only_for_maps else args["conds_out"]

    options = {**options, "sampler_pre_cfg_function": [*options.get("sampler_pre_cfg_function", ()), catch]}
    if both:
        options["disable_cfg1_optimization"] = True
    with running(guider.model_patcher):
        guided = guider.outer_predict_noise(x, timestep, options, seed)
    # A cache of another node may answer without asking the model: then there are no branches, and what it says counts as both.
    full, base = caught or (guided, guided)
    return Branches(guided, full, base)


class FusionGuider(comfy.samplers.CFGGuider):
    """GUIDER: the scene model and its subject models. Everywhere a guider goes: any sampler, scheduler, noise mask and preview.

    Raises:
        ValueError: models that do not fit together, or inputs that cannot work, before anything is sampled.
    """

    def __init__(
        self,
        model: Any,
        positive: list,
        negative: list,
        cfg: float,
        subjects: Sequence[Subject],
        settings: Settings = PUBLISHED,
        overlay: bool = False,
    ):
        super().__init__(model.clone())
        self.scene = (model, positive, negative, cfg)  # as given, for a guider that adds a subject
        self.set_conds(positive, negative)
        self.set_cfg(cfg)
        self.subjects = tuple(subjects)
        self.settings, self.overlay = settings, overlay
        for subject in self.subjects:
            check_pair(model, subject.model, NODE)
            if subject.text_guidance != 1.0 and subject.negative is None:
                raise ValueError(f"{NODE}: text_guidance is {subject.text_guidance}; connect subject_negative, or set it to 1.")
        self.sides = [SubjectGuider(subject) for subject in self.subjects]
        self.record = Record()

    # One run

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None):
        if sigmas.shape[-1] == 0:
            return latent_image
        self._check(latent_image)
        self._part_weights()
        self.record = Record(len(self.subjects) + 1)
        sampling = self.model_patcher.get_model_object("model_sampling")
        self._stages: list[SigmaStages] = [s.stages.in_sigmas(sampling.percent_to_sigma) for s in self.subjects]
        self._options: dict[int, dict] = {}
        self._models: dict[int, list] = {}
        self._ready: tuple[int, ...] | None = None
        if self.overlay:
            callback = overlaid(callback, self.model_patcher, lambda: self.record)
        # A subject whose time does not come is not even loaded.
        last = float(sigmas.min())  # schedules may run backwards
        needed = [number for number, stages in enumerate(self._stages, 1) if stages.at(last) is not Stage.SCENE]
        result: list[Any] = []

        def inside(loaded: list) -> None:
            self._serve(self.model_patcher, loaded)
            result.append(
                super(FusionGuider, self).sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
            )

        try:
            self._enter(needed, [], inside, noise, latent_image, sigmas, denoise_mask, seed)
            return result[0]
        finally:
            for patcher in (self.model_patcher, *(side.model_patcher for side in self.sides)):
                patcher.remove_additional_models(KEY)
            self._options, self._models, self._outside = {}, {}, []

    def _enter(self, numbers: list[int], loaded: list, inside: Callable[[list], None], noise, latent, sigmas, mask, seed) -> None:
        if not numbers:
            inside(loaded)
            return
        side = self.sides[numbers[0] - 1]

        def opened(options: dict) -> None:
            self._options[numbers[0]] = options
            self._models[numbers[0]] = [side.model_patcher, *distinct(side.loaded_models, loaded)]
            self._enter(numbers[1:], [*loaded, *self._models[numbers[0]]], inside, noise, latent, sigmas, mask, seed)

        self._serve(side.model_patcher, loaded)
        side.sample(noise, latent, _Enter(opened), sigmas, mask, None, True, seed)

    def _serve(self, patcher: Any, loaded: list) -> None:
        """What the guiders outside have loaded stays in memory while this one loads."""
        self._outside = loaded
        patcher.set_additional_models(KEY, distinct(loaded, [patcher]))

    def _check(self, latent: Tensor) -> None:
        if getattr(latent, "is_nested", False) or latent.ndim != 4:
            raise ValueError(
                f"{NODE}: noise fusion works on the latents of pictures, [batch, channels, height, width], not of videos or sound."
            )
        if self.settings.smoothing == "average" and min(latent.shape[-2:]) < 2:
            size = f"{latent.shape[-2]} x {latent.shape[-1]}"
            raise ValueError(f"{NODE}: a latent of {size} cells is too small for the average smoothing; choose another.")
        for subject in self.subjects:
            for name, mask in (("force_mask", subject.force), ("forbid_mask", subject.forbid)):
                frames = 1 if mask is None or mask.ndim == 2 else mask.shape[0]
                if frames not in (1, latent.shape[0]):
                    raise grids.batch_error(NODE, name, frames, latent.shape[0])

    def _part_weights(self) -> None:
        """Give each guider that shares a checkpoint with another, but not its LoRAs, weights of its own. They are kept for later runs."""
        guiders: list[Any] = [self, *self.sides]
        for place, side in enumerate(self.sides, 1):
            for other in guiders[:place]:
                if not side.model_patcher.is_clone(other.model_patcher):
                    continue
                hooked = has_hooks(side.original_conds) or has_hooks(other.original_conds)
                if hooked or not same_weights(side.model_patcher, other.model_patcher):
                    log.info(
                        "%s: scene and subject are one checkpoint with different LoRAs; the subject gets a copy of it.", NODE
                    )
                    side.model_patcher = with_own_weights(side.model_patcher)
                    side.model_options = side.model_patcher.model_options

    # One evaluation

    def __call__(self, x: Tensor, timestep: Tensor, model_options: dict = {}, seed: int | None = None) -> Tensor:  # noqa: B006
        """The fused denoised picture [b, c, h, w]. Called by samplers, as often as they like, in any order of sigmas."""
        sigma = float(timestep.flatten()[0])
        stages = {number: self._stages[number - 1].at(sigma) for number in self._options}
        subjects = [number for number, stage in stages.items() if stage is not Stage.SCENE]
        alone = any(stage is Stage.SUBJECT for stage in stages.values())
        # What a sampler adds for itself (CFG++ reads the branches there) must see the fused picture, not one model's.
        own = self.model_options.get("sampler_post_cfg_function", [])
        added = [f for f in model_options.get("sampler_post_cfg_function", []) if not any(f is known for known in own)]
        scene = {**model_options, "sampler_post_cfg_function": own}
        shares = self._shares_without_scene(x, subjects) if alone and any(self._forbids(n) for n in subjects) else None
        numbers = subjects if alone and (shares is None or not bool(shares[0].any())) else [0, *subjects]
        self._make_ready(numbers)

        both = len(numbers) > 1
        flag = model_options.get("disable_cfg1_optimization", False)
        found = {}
        for number in numbers:
            if number == 0:
                found[0] = predict(self, x, timestep, scene, seed, both)
                continue
            options = self._options[number]
            if flag:
                options = {**options, "disable_cfg1_optimization": True}
            found[number] = self.sides[number - 1].predict(x, timestep, options, seed, both)
        out = found[numbers[0]]
        if both:
            if shares is None or len(subjects) > 1:
                shares = self._shares(found, timestep, alone)
            kept = shares[numbers]
            out = Branches(*(fuse([getattr(found[n], part) for n in numbers], kept) for part in Branches._fields))
        self.record.add(sigma, shares if both and shares is not None else numbers[0], x.shape)
        return self._after(added, out, x, timestep, model_options)

    def _forbids(self, number: int) -> bool:
        return self.subjects[number - 1].forbid is not None

    def _shares_without_scene(self, x: Tensor, subjects: list[int]) -> Tensor:
        """[m, b, 1, h, w] after the fusion: the scene only fills what is forbidden to every subject."""
        b, _, h, w = x.shape
        maps = torch.full((len(self.subjects) + 1, b, 1, h, w), 2 * NO_SAY, device=x.device)
        maps[0] = NO_SAY
        maps[subjects] = 0.0
        return model_shares(maps, **self._regions(subjects))

    def _shares(self, found: Mapping[int, Branches], timestep: Tensor, alone: bool) -> Tensor:
        """[m, b, k, h, w] for all models; one that was not asked has no share."""
        some = next(iter(found.values())).full
        b, c, h, w = some.shape
        k = c if self.settings.per_channel else 1
        maps = torch.full((len(self.subjects) + 1, b, k, h, w), 2 * NO_SAY, device=some.device, dtype=torch.float32)
        for number, branches in found.items():
            if number == 0 and alone:
                continue
            guidance = self.cfg if number == 0 else self.subjects[number - 1].cfg
            response = Prediction(branches.base, branches.full, guidance).response(timestep, self.settings.saliency_scale)
            maps[number] = log_saliency(response, self.settings)
        if alone:
            maps[0] = NO_SAY
        return model_shares(maps, self.settings, **self._regions([n for n in found if n]))

    def _regions(self, numbers: list[int]) -> dict[str, Any]:
        subjects = {number: self.subjects[number - 1] for number in numbers}
        return {
            "force": {n: s.force for n, s in subjects.items() if s.force is not None},
            "forbid": {n: s.forbid for n, s in subjects.items() if s.forbid is not None},
        }

    def _make_ready(self, numbers: list[int]) -> None:
        """At each change of stage: bring the models that are asked now into memory, at the cost of the others where it is short."""
        if self._ready == tuple(numbers):
            return
        if self._ready is not None:
            self._models[0] = [self.model_patcher, *distinct(self.loaded_models, self._outside)]
            models = [model for number in numbers for model in self._models[number]]
            comfy.model_management.load_models_gpu(distinct(models))
            for patcher in models:
                if hasattr(patcher, "model_patches_to"):
                    patcher.model_patches_to(patcher.load_device)
        self._ready = tuple(numbers)

    def _after(self, added: list, out: Branches, x: Tensor, timestep: Tensor, options: dict) -> Tensor:
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


def guider_of(
    subject: Subject,
    settings: Settings,
    overlay: bool,
    model: Any = None,
    positive: list | None = None,
    negative: list | None = None,
    cfg: float = 5.0,
    guider: Any = None,
) -> FusionGuider:
    """A guider for a scene and a subject, or `guider` with one subject more. Raises ValueError if neither or both are given."""
    given = {"model": model, "positive": positive, "negative": negative}
    missing = [name for name, value in given.items() if value is None]
    if guider is None:
        if missing:
            raise ValueError(
                f"{NODE}: {', '.join(missing)} is not connected. Connect model, positive and negative of the scene, or "
                "another SNF Guider."
            )
        return FusionGuider(model, positive or [], negative or [], cfg, [subject], settings, overlay)
    if len(missing) < len(given):
        raise ValueError(
            f"{NODE}: the scene comes twice, from guider and from {', '.join(n for n in given if n not in missing)}. "
            "Disconnect one of them."
        )
    if not isinstance(guider, FusionGuider):
        raise ValueError(
            f"{NODE}: the guider input is {type(guider).__name__}. Only another SNF Guider has a scene to add a subject to."
        )
    return FusionGuider(*guider.scene, (*guider.subjects, subject), settings, overlay)
