"""What a running model sees in exemplars: before each call of the UNet, the same UNet reads them at the same noise level.

The reading is a pass of its own, not rows of the target's batch: exemplars may have another size, and most steps find it in the store.
It runs without the patches, areas and ControlNets that are meant for the target; a LoRA is in the weights and acts on both, and a
ControlNeXt of ours is given the exemplar's own map.
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
from . import cache as am_adapter_cache
from .cache import Features
from .controlnext import EXEMPLAR_MAP, controls_of

SOURCES = ("noise", "invert", "invert_cached", "clean")
WALK = 20  # steps of an inversion, as published
NOISE_SEED = 0  # one fixed noise: the exemplar is the same picture at every noise level


@dataclass(frozen=True, eq=False)
class Pictures:
    """Exemplars of one size, read in one batch. Made once by a node and only ever read.

    Args:
        latents: [n, c, h, w] in the model's own scale.
        labels: [n or 1, h, w], the classes in the target's alphabet. colours: the map in its palette, [n or 1, 3, h, w], 0..1.
        thumbnails: [n, h, w, 3], 0..1, to show.
        prompt: the CONDITIONING that describes them; None reads them with the target's own prompt.
        source: one of SOURCES. limit: bytes of the store that they may use.
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

    def __deepcopy__(self, memo: dict) -> Pictures:
        return self


@dataclass(frozen=True, eq=False)
class Recorder:
    """attn1 replacement of the reading pass: writes down the layer's keys and values, computes what the layer always does."""

    layers: dict[Hashable, tuple[Tensor, Tensor, grids.Grid]]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        grid = grids.layer_grid(extra_options, k.shape[1])
        if grid is not None:
            self.layers[hooks.layer_key(extra_options)] = (k, v, grid)
        return plain_attention(q, k, v, extra_options)


@dataclass(frozen=True, eq=False)
class _Reading:
    """One call of the UNet that is about to happen, and what to read exemplars with: everything but the exemplars and the level."""

    run: SamplingRun
    unet: Any
    like: Tensor  # the target's input, for its device and type
    context: Tensor  # [1, m, c]
    y: Tensor | None
    options: dict
    key: Hashable  # of prompt and model

    @property
    def sampling(self) -> Any:
        return self.run.patcher.get_model_object("model_sampling")

    def sigmas(self, sigma: float, count: int) -> Tensor:
        return torch.full((count,), sigma, device=self.like.device, dtype=torch.float32)

    def read(self, pictures: Pictures, latent: Tensor, sigma: float, time_sigma: float | None = None) -> Features:
        """Run the UNet on latents [n, c, h, w] of this noise level."""
        count, sampling = len(pictures), self.sampling
        sigmas = self.sigmas(sigma, count)
        times = sampling.timestep(sigmas if time_sigma is None else self.sigmas(time_sigma, count)).float()
        layers: dict[Hashable, tuple[Tensor, Tensor, grids.Grid]] = {}
        recorder = Recorder(layers)
        options = {
            "patches": {"input_block_patch_after_skip": list(controls_of(self.options))},
            "patches_replace": {"attn1": dict.fromkeys(hooks.attention_blocks(self.unet), recorder)},
            "sigmas": sigmas[:1],
            "cond_or_uncond": [0],
            RUN: self.run,
            EXEMPLAR_MAP: pictures.colours,
        }
        if "optimized_attention_override" in self.options:
            options["optimized_attention_override"] = self.options["optimized_attention_override"]
        more = {} if self.y is None else {"y": self.y.expand(count, -1)}
        given = sampling.calculate_input(sigmas, latent).to(self.like.dtype)
        out = self.unet(given, times, context=self.context.expand(count, -1, -1), transformer_options=options, **more)
        denoised = sampling.calculate_denoised(sigmas, out.float(), latent)
        return Features(layers, latent, (latent - denoised) / sigma)


def read(reading: _Reading, pictures: Pictures, sigma: float) -> Features:
    """The features of exemplars at a noise level, from the store if they were read before."""
    latents = pictures.latents.to(reading.like.device, torch.float32)
    lowest = float(reading.sampling.sigmas[0])
    if pictures.source == "clean":
        return _kept(reading, pictures, ("clean",), partial(reading.read, pictures, latents, lowest))
    if pictures.source == "noise":
        noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(latents).expand_as(latents)
        noisy = reading.sampling.noise_scaling(reading.sigmas(sigma, len(pictures)), noise, latents)
        return _kept(reading, pictures, ("noise", sigma), partial(reading.read, pictures, noisy, sigma))
    walk = partial(_kept, reading, pictures, ("walk",), partial(_inverted, reading, pictures, latents))
    if pictures.source == "invert_cached":
        return _kept(
            reading, pictures, ("inverted", sigma), lambda: reading.read(pictures, _along(reading, walk(), sigma), sigma)
        )
    # Lock-step: from the lowest level above this one that was read in this run, one Euler step along its slope.
    path: dict[float, tuple[tuple[float, ...], Tensor, Tensor]] = reading.run.get_or_make((pictures, reading.key, "path"), dict)
    if sigma in path:
        steps, latent, _ = path[sigma]
    elif above := [level for level in path if level > sigma]:
        before, latent, slope = path[min(above)]
        steps, latent = (*before, sigma), latent + (sigma - min(above)) * slope
    else:
        steps, latent = (sigma,), _along(reading, walk(), sigma)
    found = _kept(reading, pictures, ("lock-step", steps), partial(reading.read, pictures, latent, sigma))
    path[sigma] = (steps, latent, found.slope)
    return found


def _kept(reading: _Reading, pictures: Pictures, name: tuple, make: Callable[[], Features]) -> Features:
    key = None if reading.key is None else (name, pictures.token, reading.key)
    return am_adapter_cache.kept(reading.run.patcher.model, key, pictures.limit, reading.like.device, make)


def _levels(sampling: Any) -> Tensor:
    """The noise levels of an inversion, rising, [WALK + 1]."""
    table = sampling.sigmas
    return table[torch.linspace(0, len(table) - 1, WALK + 1).round().long()].float().cpu()


def _inverted(reading: _Reading, pictures: Pictures, latents: Tensor) -> Features:
    """DDIM inversion: the noise that this model would make the exemplars of. `latent` holds all levels, [(WALK + 1) * n, c, h, w].

    As published, the noise at a level is predicted from the latents of the level before with the time of the new one. Unlike there the
    prompt is the one that the exemplars are read with, so that both ways are the same road.
    """
    levels = _levels(reading.sampling).tolist()
    walk = [latents]
    for before, level in itertools.pairwise(levels):
        slope = reading.read(pictures, walk[-1], before, time_sigma=level).slope
        walk.append(walk[-1] + (level - before) * slope)
    return Features({}, torch.cat(walk), walk[0].new_empty(0))


def _along(reading: _Reading, walk: Features, sigma: float) -> Tensor:
    """The inverted latents at any noise level, linear between two of the walk."""
    levels = _levels(reading.sampling)
    latents = walk.latent.unflatten(0, (len(levels), -1))
    high = int(torch.searchsorted(levels, sigma).clamp(1, len(levels) - 1))
    share = float(((sigma - levels[high - 1]) / (levels[high] - levels[high - 1])).clamp(0.0, 1.0))
    return torch.lerp(latents[high - 1], latents[high], share)


def readings(run: SamplingRun, unet: Any, arguments: dict, prompt: Any, token: str) -> dict[int, _Reading]:
    """For each conditional chunk of a call how to read exemplars beside it: with its own prompt, or with the exemplars' if there is one."""
    options, x = arguments["transformer_options"], arguments["x"]
    found = {}
    for chunk, first, _ in grids.conditional_chunks(options, x.shape[0]) or ():
        if prompt is None:
            context, y = arguments["context"], arguments.get("y")
            context, y = context[first : first + 1], None if y is None else y[first : first + 1]
            # A condition keeps its prompt during a run; a context window may show another frame of it.
            frame = grids.frame_indices(options, 1)[0]
            uuid = (options.get("uuids") or [None] * (chunk + 1))[chunk]
            said = (
                _digests(context, y) if uuid is None else run.get_or_make((uuid, frame, "prompt"), partial(_digests, context, y))
            )
        else:
            context, y, said = run.get_or_make((token, "prompt", x.dtype, x.device), partial(_encoded, run, prompt, x))
        found[chunk] = _Reading(run, unet, x, context, y, options, features_key(run, options, x, said))
    return found


def features_key(run: SamplingRun, options: dict, x: Tensor, said: Hashable) -> Hashable:
    """Everything besides exemplars and noise level that their features depend on; None if that cannot be said."""
    if run.weights_may_change() or torch.is_grad_enabled():
        return None
    patcher = run.patcher
    sampling = patcher.get_model_object("model_sampling")
    replaced = tuple(sorted((name, id(patch)) for name, patch in patcher.object_patches.items() if name != "model_sampling"))
    schedule = (type(sampling).__name__, run.get_or_make("schedule", lambda: am_adapter_cache.digest(sampling.sigmas)))
    controls = tuple(control.token(options) for control in controls_of(options))
    return (said, patcher.patches_uuid, replaced, schedule, controls, str(x.dtype))


def _digests(context: Tensor, y: Tensor | None) -> Hashable:
    return am_adapter_cache.digest(context), am_adapter_cache.digest(y)


def _encoded(run: SamplingRun, prompt: Any, x: Tensor) -> tuple[Tensor, Tensor | None, Hashable]:
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
