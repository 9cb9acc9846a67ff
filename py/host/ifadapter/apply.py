"""IFAdapter's room: phrases in boxes -> hooks on the host's MODEL.

Here: what both ways share, and the weight-free one (`py/ifadapter/attention.py`). With weights: `trained.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ifadapter.instances import Instances
from ...ifadapter.regional import Group, Settings, attend_by_owner, fusion_weights, owners, plan_groups, regional_change
from .. import grids, hooks, notices, padding
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import attention_of_own_rows
from . import trained, transformer
from .trained import NODE, UPSTREAM, Adapter, Variant

DEFAULTS = Settings()
MOST_SEPARATED = 64  # each instance costs a channel per head in self-attention


@dataclass(frozen=True, eq=False)
class Layout:
    """Instances with their encoded phrases. Like a CONDITIONING it is made once by a node and only ever read.

    Args:
        texts: one [m, c] per instance, and one more for what is outside of them, if `background` (its weight, 0..1) is above 0.
    """

    instances: Instances
    texts: tuple[Tensor, ...]
    strength: float
    percent: PercentRange
    background: float
    settings: Settings

    @property
    def frames(self) -> int:
        return max((i.mask.shape[0] for i in self.instances if i.mask is not None), default=1)

    def weights(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor:
        """[f, i, h, w] of one grid, made once per run."""
        make = partial(fusion_weights, self.instances.items, *grid, background=self.background, view=view, settings=self.settings)
        return run.get_or_make((self, "weights", grid, view), make)

    def __deepcopy__(self, memo: dict) -> Layout:
        return self


@dataclass(frozen=True, eq=False)
class _LayoutTechnique(ABC):
    """What both hooks share: the window of the schedule, the rows and places of a call."""

    layout: Layout

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def before_run(self, run: SamplingRun) -> None:
        trained.check_masks(self.layout.instances, run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and run.inside(self.layout.percent, options)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has asked
        change = None
        for part in grids.conditional_rows(run, options, q, NODE, "the boxes are not applied"):
            rows = part.rows
            found = self.change(run, part, q[rows], k[rows], v[rows], options, text[rows])
            if found is not None:
                change = torch.zeros_like(text) if change is None else change
                change[rows] = found
        return change

    @abstractmethod
    def change(
        self, run: SamplingRun, part: grids.Rows, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor
    ) -> Tensor | None:
        """What to add to the text attention of these rows; None for nothing."""


class RegionalText(_LayoutTechnique):
    """attn2: the places of an instance read their own phrase."""

    def change(self, run, part, q, k, v, options, text):
        block = hooks.running_block(options)
        if block is None:
            return None
        grid, view = part.grid, part.view
        groups = run.get_or_make((self, "groups", grid, view, q.device, q.dtype), partial(self._groups, run, grid, view, q))
        if not groups:
            return None
        project = partial(self._projected, block, groups, q)
        # With gradients each step needs a graph of its own.
        changing = run.weights_may_change() or torch.is_grad_enabled()
        keys, values = (
            project() if changing else run.get_or_make((self, "projected", block, grid, view, q.device, q.dtype), project)
        )
        return regional_change(q, text, groups, keys, values, part.frames, attention_of_own_rows(options))

    def _groups(self, run: SamplingRun, grid: grids.Grid, view: grids.View, q: Tensor) -> list[Group]:
        weights = self.layout.strength * self.layout.weights(run, grid, view)
        return [group.to(q.device, q.dtype) for group in plan_groups(weights, [len(text) for text in self.layout.texts])]

    def _projected(self, block: Any, groups: list[Group], q: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        # The layers are called, never their weights read: they may be quantised, offloaded or carry a LoRA.
        tokens = [grids.to_like(torch.stack([self.layout.texts[i] for i in group.members.tolist()]), q) for group in groups]
        return [block.attn2.to_k(t) for t in tokens], [block.attn2.to_v(t) for t in tokens]


class SeparateInstances(_LayoutTechnique):
    """attn1: the places of different instances look at each other less."""

    def change(self, run, part, q, k, v, options, text):
        settings, grid, view = self.layout.settings, part.grid, part.view
        if grid[0] * grid[1] > settings.separate_max_cells or k.shape[1] != q.shape[1]:
            return None
        owner = run.get_or_make((self, "owners", grid, view, q.device), lambda: self._owners(run, grid, view).to(q.device))
        rows = [0 if owner.shape[0] == 1 else frame for frame in part.frames]
        return attend_by_owner(q, k, v, options["n_heads"], owner[rows], settings, attention_of_own_rows(options)) - text

    def _owners(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor:
        return owners(self.layout.weights(run, grid, view), len(self.layout.instances))


def apply(
    model: Any,
    clip: Any,
    instances: Instances,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    background: str = "",
    adapter: Adapter | None = None,
    settings: Settings = DEFAULTS,
    variant: Variant = UPSTREAM,
) -> Any:
    """A MODEL that draws each instance in its box. The given one is not changed; with nothing to do it is returned as it is.

    With an adapter, `background` and `settings` have no meaning; `variant` has none without.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    if not 0.0 <= strength <= 2.0:  # also refuses NaN
        raise ValueError(f"{NODE}: strength is {strength}; it must be a number from 0 to 2.")
    if not hooks.has_unet(model):
        return transformer.apply(model, clip, instances, strength, percent, background, adapter, settings)
    keys = hooks.text_layers(model, NODE)
    if adapter is not None:
        trained.check_base(model, adapter)
    if not len(instances):
        notices.warn_user(f"{NODE}: there are no instances, so the model is passed on unchanged.")
        return model
    if strength == 0.0 or percent.empty:
        return model
    if adapter is not None:
        if background.strip() or settings != DEFAULTS:
            notices.warn_user(
                f"{NODE}: background and separate belong to the weight-free method; with an adapter they are not used."
            )
        return trained.apply(model, clip, instances, strength, percent, adapter, variant)
    if clip is None:
        raise ValueError(
            f"{NODE}: the CLIP input is empty. Connect the CLIP of the checkpoint; a diffusion model file has none inside."
        )
    outside = 1.0 if background.strip() else settings.quiet_outside
    phrases = [instance.phrase for instance in instances] + ([background] if outside > 0 else [])
    layout = Layout(instances, _encoded(clip, phrases), strength, percent, outside, settings)
    _check_width(model, keys, layout.texts[0].shape[-1])
    patched = hooks.install(model, {"attn2": RegionalText(layout)}, keys)
    if not (settings.separate or settings.separate_outside):
        return patched
    if len(instances) > MOST_SEPARATED:
        notices.warn_user(
            f"{NODE}: {len(instances)} instances are too many to separate in self-attention (at most {MOST_SEPARATED}); "
            "only their phrases are applied."
        )
        return patched
    return hooks.install(patched, {"attn1": SeparateInstances(layout)}, keys)


def _encoded(clip: Any, phrases: list[str]) -> tuple[Tensor, ...]:
    """Each phrase alone, [m, c]; one that occurs twice is encoded once."""
    done = {phrase: padding.encoded(clip, phrase) for phrase in dict.fromkeys(phrases)}
    return tuple(done[phrase] for phrase in phrases)


def _check_width(model: Any, keys: list[hooks.LayerKey], found: int) -> None:
    blocks = hooks.attention_blocks(model.get_model_object("diffusion_model"))
    needed = getattr(blocks[keys[0]].attn2.to_k, "in_features", None)
    if needed is not None and needed != found:
        raise ValueError(
            f"{NODE}: this CLIP gives text of width {found}, but the MODEL ({hooks.model_name(model)}) reads width {needed}. "
            "Connect the CLIP that came with the same checkpoint."
        )
