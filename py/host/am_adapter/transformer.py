"""The weight-free modes on transformer (DiT) bases: image cells attend to exemplar keys beside their own, in the joint attention.

    own cells        log(k / (k + s))                              k = 1; for masactrl 1 - s
    exemplar cells   log(s / (k + s)) + log(N / N_x) + g           s: strength * weight * mask of the cell; N, N_x numbers of cells
    text             as without exemplars, in both directions

g is that of `am_adapter.attention`: b (C - 1/4), or minus infinity between cells of different classes. Own and exemplar weights add up to 1:
in a joint softmax, plain concatenation would take attention away from the text. An exemplar that is the image itself changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...am_adapter.agreement import PAPER_FORMULAS, ClassAgreement, compare_classes
from ...am_adapter.attention import Settings
from ...joint.bias import NEVER
from ...semantic.palettes import VOID
from .. import hooks, notices
from ..grids import Rows, batch_error, part_of
from ..joint import families, recording
from ..joint.apply import install
from ..joint.call import ModelCall
from ..joint.contribution import Contribution, Exemplar
from ..run import SamplingRun
from ..schedule import PercentRange
from . import cache
from .cache import Features
from .exemplar import EncodedExemplars, features_key, lookup_features
from .inputs import Target

HARD = ("hard_mask", "masactrl")


@dataclass(frozen=True, eq=False)
class Reading:
    """How to run a model on exemplars beside one condition of a call, for `exemplar.lookup_features`."""

    call: ModelCall
    row: int
    prompt: Any

    @property
    def run(self) -> SamplingRun:
        return self.call.run

    @property
    def like(self) -> Tensor:
        return self.call.latent

    @property
    def sampling(self) -> Any:
        return self.run.patcher.get_model_object("model_sampling")

    @cached_property
    def inputs(self) -> tuple[Tensor, dict[str, Any]]:
        return recording.conditions_of(self.call, self.row, self.prompt)

    @cached_property
    def key(self) -> Hashable:
        text, conditions = self.inputs
        tensors = sorted((name, cache.digest(value)) for name, value in conditions.items() if isinstance(value, Tensor))
        return features_key(self.run, self.call.options, self.like, (cache.digest(text), *tensors))

    def sigmas(self, sigma: float, count: int) -> Tensor:
        return torch.full((count,), sigma, device=self.like.device, dtype=torch.float32)

    def record(self, exemplars: EncodedExemplars, latent: Tensor, sigma: float, time_sigma: float | None = None) -> Features:
        """Keys and values of latents [n, c, ...] of this noise level, and the way to the next one."""
        level = sigma if time_sigma is None else time_sigma
        found = recording.record(self.call, latent, level, *self.inputs)
        family, network = self.call.family, self.call.model.diffusion_model
        grid = families.image_grid(family, network, latent)
        layers: dict[Hashable, tuple[Tensor, Tensor, tuple[int, int]]] = {
            name: (keys, values, grid) for name, (keys, values) in found.layers.items()
        }
        return Features(layers, latent, (latent - found.denoised) / level)


@dataclass(frozen=True, eq=False)
class ExemplarImages(Contribution):
    """One Apply node: exemplars, the map they are used for, and how."""

    images: Any = None
    target: Any = None
    settings: Any = None
    match_void: bool = False

    def before_run(self, run: SamplingRun) -> None:
        super().before_run(run)
        cache.store().begin_run()
        latents = run.latent_shape[0]
        for name, batch in (("target_map", self.target.labels), ("mask", self.target.mask)):
            if batch is not None and batch.shape[0] not in (1, latents):
                raise batch_error(self.node, name, batch.shape[0], latents)

    def exemplars(self, run: SamplingRun, part: Rows, call: ModelCall) -> tuple[Exemplar, ...]:
        if call.arguments.get("c_concat") is not None:
            raise ValueError(_MORE_CHANNELS.format(node=self.node, model="a model with further image channels"))
        features = lookup_features(Reading(call, part.rows.start, self.images.prompt), self.images, call.sigma)  # type: ignore[arg-type]
        return tuple(self._exemplar(run, part, features, index) for index in range(len(self.images)))

    def _exemplar(self, run: SamplingRun, part: Rows, features: Features, index: int) -> Exemplar:
        grid = next(iter(features.layers.values()))[2]
        layers = {name: (k[index : index + 1], v[index : index + 1]) for name, (k, v, _) in features.layers.items()}
        key = (self, "exemplar", index, part.grid, grid, part.view, part.frames)
        share, own, cells, keys = run.get_or_make(key, lambda: self._weights(run, part, grid, index))
        return Exemplar(layers, grid[0] * grid[1], share, cells, keys, own)

    def _weights(
        self, run: SamplingRun, part: Rows, grid: tuple[int, int], index: int
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """s [f, n], k [f, n] or None, and the class factors [f, n, c] and [m, c]."""
        settings: Settings = self.settings
        labels = self.images.labels[index if len(self.images.labels) > 1 else 0][None]
        void = None if self.match_void else VOID
        same = compare_classes(
            part_of(self.target.labels, part.view), labels, part.grid, grid, behaviour=PAPER_FORMULAS, void=void
        )
        same = same.select(list(part.frames))
        share = torch.full(same.rows.shape[:2], settings.strength / len(self.images))
        where = self.target.mask_on(run, part.grid, part.view)
        if where is not None:
            share = share * part.of(where)
        if settings.mode == "class_bias":
            share = share * math.exp(-settings.class_strength / 4)
        own = None
        if settings.mode in HARD:
            same = same.harden()
            present = same.keys.amax(dim=1).float()
            share = share * (same.rows.float() @ rearrange(present, "b k -> b k 1")).squeeze(-1)
        if settings.mode == "masactrl":
            share = share.clamp(max=1.0)
            own = 1 - share
        cells, keys = _class_factors(same, settings)
        return share, own, cells, keys


def _class_factors(same: ClassAgreement, settings: Settings) -> tuple[Tensor, Tensor]:
    """What agreement adds to the logits, as factors [f, n, c] and [m, c]; c may be 0."""
    rows, keys = same.rows.float(), same.keys[0].float()
    parts = [(rows[..., :0], keys[:, :0])]
    if settings.mode == "class_bias":
        parts.append((settings.class_strength * rows, keys))
    elif settings.mode in HARD:
        # A cell without a class matches nothing: one more class on the exemplar's side, which no cell has.
        none = 1 - keys.sum(dim=1, keepdim=True)
        never = torch.cat([NEVER * (1 - rows), torch.full_like(rows[..., :1], NEVER)], dim=-1)
        parts.append((never, torch.cat([keys, none], dim=1)))
    if settings.balance != 0.0:
        parts.append((torch.full_like(rows[..., :1], settings.balance), same.size_correction()[0].float()[:, None]))
    return torch.cat([part[0] for part in parts], dim=-1), torch.cat([part[1] for part in parts], dim=-1)


_MORE_CHANNELS = (
    "{node}: this MODEL ({model}) has further input channels beside the image (an inpainting model). Load a text-to-image model."
)


def check(model: Any, node: str, adapter: Any, mode: str) -> None:
    """Raise ValueError, with what to do, if this MODEL or choice cannot be used."""
    families.require_family(model, node)
    if adapter is not None or mode == "matcher":
        raise ValueError(
            f"{node}: a trained matcher works on Stable Diffusion only, but this MODEL is {hooks.model_name(model)}. Disconnect adapter and "
            "choose the mode class_bias."
        )
    config = model.model.model_config.unet_config
    for given, made in (("in_channels", "out_channels"), ("in_dim", "out_dim")):
        patches = 4 if config.get("image_model") == "qwen_image" else 1  # its number of channels counts those of a whole patch
        if given in config and made in config and config[given] > patches * config[made]:
            raise ValueError(_MORE_CHANNELS.format(node=node, model=hooks.model_name(model)))


def apply(
    model: Any,
    images: EncodedExemplars,
    target: Target,
    settings: Settings,
    percent: PercentRange,
    match_void: bool,
    is_all: bool,
    node: str,
) -> Any:
    """A MODEL that paints the target map in the exemplars' look; everything is checked already.

    Args:
        is_all: all parts and levels of the UNet are chosen, as is the default.
    """
    if not is_all:
        notices.warn_user(f"{node}: parts and levels are for Stable Diffusion; on this MODEL all layers use the exemplar.")
    patch = families.require_family(model, node).patch(families.plain_network(model.get_model_object("diffusion_model")))
    height, width = (side - side % patch for side in images.latents.shape[-2:])
    images = replace(images, latents=images.latents[..., :height, :width])  # whole patches only
    clone = install(model, ExemplarImages(node, percent, (), images, target, settings, match_void))
    cache.register_store(clone)
    return clone
