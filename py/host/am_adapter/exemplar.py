"""Features of exemplars: before each call of the UNet, the same UNet processes the exemplars at the same noise level.

This is a separate pass, not rows of the target's batch: exemplars may have another size, and most steps find their features in the cache.
It runs without the patches, areas and ControlNets that are meant for the target; a LoRA is in the weights and acts on both, and
Exemplary's ControlNeXt gets the exemplar's own map.

    passes_of_call      one `FeaturePass` for each condition of a call: the prompt that exemplars are processed with
    lookup_features     the features of exemplars at a noise level, from the cache or recorded now
    FeaturePass.record  runs the UNet on the exemplars and records every layer's keys and values
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from .. import grids, hooks
from ..run import RUN, SamplingRun
from ..slots import plain_attention
from . import cache
from .cache import Features
from .controlnext import EXEMPLAR_MAP, controls_of

SOURCES = ("noise", "invert", "invert_cached", "clean")
INVERSION_STEPS = 20  # as published
NOISE_SEED = 0  # one fixed noise: the exemplar is the same image at every noise level


@dataclass(frozen=True, eq=False)
class EncodedExemplars:
    """Exemplars of one size, processed in one batch. Made once by a node and never changed.

    Args:
        latents: [n, c, h, w] in the model's own scale.
        labels: [n or 1, h, w], the classes numbered as in the target's palette. colours: the map in its palette, [n or 1, 3, h, w], 0..1.
        thumbnails: [n, h, w, 3], 0..1, for the preview.
        prompt: the CONDITIONING that describes them; None uses the target's own prompt.
        source: one of SOURCES. limit: bytes of the cache that they may use. token: equal for equal latents and maps.
    """

    latents: Tensor
    labels: Tensor
    colours: Tensor
    thumbnails: Tensor
    prompt: Any
    source: str
    limit: int
    token: str

    def __len__(self) -> int:
        return self.latents.shape[0]

    def __deepcopy__(self, memo: dict) -> EncodedExemplars:
        return self


@dataclass(frozen=True, eq=False)
class FeatureRecorder:
    """attn1 replacement of the exemplars' pass: records the layer's keys and values, computes what the layer always does."""

    layers: dict[Hashable, tuple[Tensor, Tensor, grids.Grid]]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        grid = grids.layer_grid(extra_options, k.shape[1])
        if grid is not None:
            self.layers[hooks.layer_key(extra_options)] = (k, v, grid)
        return plain_attention(q, k, v, extra_options)


@dataclass(frozen=True, eq=False)
class FeaturePass:
    """How to run a UNet on exemplars beside one condition of a call; all but the exemplars and the noise level.

    Args:
        like: the target's input, for its device and type. context: [1, m, c]. y: [1, c] or None.
        options: transformer_options of the call. uuid: of the condition. key: of prompt and model, for the cache; None caches nothing.
    """

    run: SamplingRun
    unet: Any
    like: Tensor
    context: Tensor
    y: Tensor | None
    options: dict
    uuid: Any
    key: Hashable

    @property
    def sampling(self) -> Any:
        return self.run.patcher.get_model_object("model_sampling")

    def sigmas(self, sigma: float, count: int) -> Tensor:
        return torch.full((count,), sigma, device=self.like.device, dtype=torch.float32)

    def record(self, exemplars: EncodedExemplars, latent: Tensor, sigma: float, time_sigma: float | None = None) -> Features:
        """Run the UNet on latents [n, c, h, w] of this noise level. `time_sigma`: embed the time of another level."""
        count, sampling = len(exemplars), self.sampling
        sigmas = self.sigmas(sigma, count)
        times = sampling.timestep(sigmas if time_sigma is None else self.sigmas(time_sigma, count)).float()
        layers: dict[Hashable, tuple[Tensor, Tensor, grids.Grid]] = {}
        recorder = FeatureRecorder(layers)
        options = {
            "patches": {"input_block_patch_after_skip": list(controls_of(self.options))},
            "patches_replace": {"attn1": dict.fromkeys(hooks.attention_blocks(self.unet), recorder)},
            "sigmas": sigmas[:1],
            # Packs that patch the host's blocks for all models look these up in every call.
            "cond_or_uncond": [0],
            "uuids": [self.uuid],
            RUN: self.run,
            EXEMPLAR_MAP: exemplars.colours,
        }
        for name in ("optimized_attention_override", "sample_sigmas"):
            if name in self.options:
                options[name] = self.options[name]
        pooled = {} if self.y is None else {"y": self.y.expand(count, -1)}
        x = sampling.calculate_input(sigmas, latent).to(self.like.dtype)
        out = self.unet(x, times, context=self.context.expand(count, -1, -1), transformer_options=options, **pooled)
        denoised = sampling.calculate_denoised(sigmas, out.float(), latent)
        return Features(layers, latent, (latent - denoised) / sigma)


def lookup_features(feature_pass: FeaturePass, exemplars: EncodedExemplars, sigma: float) -> Features:
    """The features of exemplars at a noise level: from the cache if they were recorded before, else recorded now."""
    latents = exemplars.latents.to(feature_pass.like.device, torch.float32)
    lookup = partial(_lookup_or_record, feature_pass, exemplars)
    if exemplars.source == "clean":
        lowest = float(feature_pass.sampling.sigmas[0])
        return lookup(("clean",), partial(feature_pass.record, exemplars, latents, lowest))
    if exemplars.source == "noise":
        noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(latents).expand_as(latents)
        noisy = feature_pass.sampling.noise_scaling(feature_pass.sigmas(sigma, len(exemplars)), noise, latents)
        return lookup(("noise", sigma), partial(feature_pass.record, exemplars, noisy, sigma))
    inversion = partial(lookup, ("walk",), partial(_invert, feature_pass, exemplars, latents))
    if exemplars.source == "invert_cached":
        return lookup(
            ("inverted", sigma),
            lambda: feature_pass.record(exemplars, _interpolate_inversion(feature_pass, inversion(), sigma), sigma),
        )
    # Lock-step: from the lowest level above this one that was recorded in this run, one Euler step along its slope.
    path: dict[float, tuple[tuple[float, ...], Tensor, Tensor]]
    path = feature_pass.run.get_or_make((exemplars, feature_pass.key, "path"), dict)
    if sigma in path:
        steps, latent, _ = path[sigma]
    elif above := [level for level in path if level > sigma]:
        before, latent, slope = path[min(above)]
        steps, latent = (*before, sigma), latent + (sigma - min(above)) * slope
    else:
        steps, latent = (sigma,), _interpolate_inversion(feature_pass, inversion(), sigma)
    found = lookup(("lock-step", steps), partial(feature_pass.record, exemplars, latent, sigma))
    path[sigma] = (steps, latent, found.slope)
    return found


def _lookup_or_record(
    feature_pass: FeaturePass, exemplars: EncodedExemplars, name: tuple, record: Callable[[], Features]
) -> Features:
    key = None if feature_pass.key is None else (name, exemplars.token, feature_pass.key)
    return cache.lookup_or_make(feature_pass.run.patcher.model, key, exemplars.limit, feature_pass.like.device, record)


def _inversion_levels(sampling: Any) -> Tensor:
    """The noise levels of an inversion, rising, [INVERSION_STEPS + 1]."""
    table = sampling.sigmas
    return table[torch.linspace(0, len(table) - 1, INVERSION_STEPS + 1).round().long()].float().cpu()


def _invert(feature_pass: FeaturePass, exemplars: EncodedExemplars, latents: Tensor) -> Features:
    """DDIM inversion: the noise that this model would turn into the exemplars. `latent` has all levels, [(INVERSION_STEPS + 1) * n, c, h, w].

    As published, the noise at a level is predicted from the latents of the level before with the time of the new one. Unlike there the
    prompt is the one that the exemplars are processed with, so that inversion and denoising follow the same path.
    """
    levels = _inversion_levels(feature_pass.sampling).tolist()
    walk = [latents]
    for before, level in itertools.pairwise(levels):
        slope = feature_pass.record(exemplars, walk[-1], before, time_sigma=level).slope
        walk.append(walk[-1] + (level - before) * slope)
    return Features({}, torch.cat(walk), walk[0].new_empty(0))


def _interpolate_inversion(feature_pass: FeaturePass, inversion: Features, sigma: float) -> Tensor:
    """The inverted latents at any noise level, linear between two levels of the inversion."""
    levels = _inversion_levels(feature_pass.sampling)
    latents = inversion.latent.unflatten(0, (len(levels), -1))
    high = int(torch.searchsorted(levels, sigma).clamp(1, len(levels) - 1))
    fraction = float(((sigma - levels[high - 1]) / (levels[high] - levels[high - 1])).clamp(0.0, 1.0))
    return torch.lerp(latents[high - 1], latents[high], fraction)


def passes_of_call(
    run: SamplingRun, unet: Any, arguments: dict, exemplars: EncodedExemplars, *, includes_negative: bool = False
) -> dict[int, FeaturePass]:
    """{chunk: pass} of a call of the UNet: positive conditions with the exemplars' prompt, or with their own if the exemplars have none.

    Args:
        arguments: of the UNet by name. includes_negative: also for negative conditions, with their own prompt.
    """
    options, x = arguments["transformer_options"], arguments["x"]
    found = {}
    for chunk, first, _, conditional in grids.chunks(options, x.shape[0]) or ():
        if not (conditional or includes_negative):
            continue
        uuid = (options.get("uuids") or [None] * (chunk + 1))[chunk]
        if exemplars.prompt is None or not conditional:
            context, y = arguments["context"], arguments.get("y")
            context, y = context[first : first + 1], None if y is None else y[first : first + 1]
            # A condition keeps its prompt during a run; a context window may have another frame of it.
            frame = grids.frame_indices(options, 1)[0]
            make = partial(_digests, context, y)
            prompt_key = make() if uuid is None else run.get_or_make((uuid, frame, "prompt"), make)
        else:
            make_prompt = partial(_encode_prompt, run, exemplars.prompt, x)
            context, y, prompt_key = run.get_or_make((exemplars.token, "prompt", x.dtype, x.device), make_prompt)
        key = features_key(run, options, x, prompt_key)
        found[chunk] = FeaturePass(run, unet, x, context, y, options, uuid, key)
    return found


def features_key(run: SamplingRun, options: dict, x: Tensor, prompt_key: Hashable) -> Hashable:
    """Everything besides exemplars and noise level that their features depend on; None if it is not known."""
    if run.weights_may_change() or torch.is_grad_enabled():
        return None
    patcher = run.patcher
    sampling = patcher.get_model_object("model_sampling")
    replaced = tuple(sorted((name, id(patch)) for name, patch in patcher.object_patches.items() if name != "model_sampling"))
    schedule = (type(sampling).__name__, run.get_or_make("schedule", lambda: cache.digest(sampling.sigmas)))
    controls = tuple(control.token(options) for control in controls_of(options))
    return (prompt_key, patcher.patches_uuid, replaced, schedule, controls, str(x.dtype))


def _digests(context: Tensor, y: Tensor | None) -> Hashable:
    return cache.digest(context), cache.digest(y)


def _encode_prompt(run: SamplingRun, prompt: Any, x: Tensor) -> tuple[Tensor, Tensor | None, Hashable]:
    """A CONDITIONING as the host gives it to the UNet: context [1, m, c], pooled vector [1, c] or None, and their digest."""
    conditions = comfy.sampler_helpers.convert_cond(prompt[:1])
    model = run.patcher.model
    shape = torch.zeros((1, *run.latent_shape[1:]), device=x.device)
    found = comfy.samplers.encode_model_conds(model.extra_conds, conditions, shape, x.device, "positive")[0]["model_conds"]
    context, y = (
        None if name not in found else found[name].process_cond(batch_size=1, device=x.device, area=None).cond.to(x)
        for name in ("c_crossattn", "y")
    )
    return context, y, _digests(context, y)  # type: ignore[return-value, arg-type]
