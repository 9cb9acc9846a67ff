"""Apply IFAdapter: phrases in boxes become hooks on the host's MODEL.

Here: the choice between the ways, and the weight-free one on a UNet (`py/ifadapter/regional.py`). With weights: `trained.py`; on a
transformer: `transformer.py`.
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
from .. import grids, hooks, inputs, notices
from ..projections import keys_and_values
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import attention_of_own_rows
from . import trained, transformer
from .inputs import MOST_STRENGTH, NODE, PhraseTokens, check_mask_batches, check_width, encode_phrases
from .trained import PUBLISHED, LoadedAdapter, Variant

DEFAULTS = Settings()
MOST_SEPARATION = 10.0
MOST_SEPARATED = 64  # each instance costs a channel per head in self-attention


@dataclass(frozen=True, eq=False)
class Layout:
    """Instances with their encoded phrases. Made once by the node and never changed.

    Args:
        texts: one per instance, and one more for the cells outside of all boxes if `background` (its weight, 0..1) is above 0.
    """

    instances: Instances
    texts: tuple[PhraseTokens, ...]
    strength: float
    percent: PercentRange
    background: float
    settings: Settings

    def weights(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor:
        """[f, i, h, w] on one grid, computed once per run."""
        make = partial(fusion_weights, self.instances.items, *grid, background=self.background, view=view, settings=self.settings)
        return run.get_or_make((self, "weights", grid, view), make)

    def __deepcopy__(self, memo: dict) -> Layout:
        return self


@dataclass(frozen=True, eq=False)
class _LayoutAttention(ABC):
    """What both hooks share: the part of the schedule, and the conditional rows of a call."""

    layout: Layout

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def before_run(self, run: SamplingRun) -> None:
        check_mask_batches(self.layout.instances, run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and run.inside(self.layout.percent, options)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # not None where `active` is True
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
        """What to add to the attention of these rows; None for nothing."""


class RegionalTextAttention(_LayoutAttention):
    """attn2: the cells of an instance attend to its own phrase."""

    def change(self, run, part, q, k, v, options, text):
        block = hooks.running_block(options)
        if block is None:
            return None
        # Which entries of scheduled texts are used; with plain phrases this is the same in every call.
        active = tuple(phrase.find_active(run, options) for phrase in self.layout.texts)
        key = (self, part.grid, part.view, active)
        groups = run.get_or_make((key, "groups", q.device, q.dtype), partial(self._plan, run, part, active, q))
        if not groups:
            return None
        keys, values = keys_and_values(run, key, block, partial(self._tokens, groups, active), q)
        return regional_change(q, text, groups, keys, values, part.frames, attention_of_own_rows(options))

    def _plan(self, run: SamplingRun, part: grids.Rows, active: tuple[tuple[int, ...], ...], q: Tensor) -> list[Group]:
        weights = self.layout.strength * self.layout.weights(run, part.grid, part.view)
        used = torch.tensor([bool(indices) for indices in active])
        weights = weights * used[:, None, None] if not bool(used.all()) else weights
        lengths = [len(text.join(indices)) if indices else 0 for text, indices in zip(self.layout.texts, active)]
        return [group.to(q.device, q.dtype) for group in plan_groups(weights, lengths)]

    def _tokens(self, groups: list[Group], active: tuple[tuple[int, ...], ...]) -> list[Tensor]:
        texts = self.layout.texts
        return [torch.stack([texts[i].join(active[i]) for i in group.members.tolist()]) for group in groups]


class SeparatedSelfAttention(_LayoutAttention):
    """attn1: the cells of different instances attend to each other less."""

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
    adapter: LoadedAdapter | None = None,
    settings: Settings = DEFAULTS,
    variant: Variant = PUBLISHED,
) -> Any:
    """A MODEL that draws each instance in its box. The given one is not changed; if there is nothing to do it is returned itself.

    `background` and `settings` are for the weight-free way, `variant` for the trained one.

    Raises:
        ValueError: before sampling, naming the input, what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    inputs.check_number(strength, NODE, "strength", 0.0, MOST_STRENGTH)
    inputs.check_number(settings.separate, NODE, "separate", 0.0, MOST_SEPARATION)
    background = inputs.check_text(background, NODE, "background").strip()
    variant.check()
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
        if background or settings != DEFAULTS:
            notices.warn_user(
                f"{NODE}: background and separate are for the weight-free method; with an adapter they are not used."
            )
        return trained.apply(model, clip, instances, strength, percent, adapter, variant)
    outside = 1.0 if background else settings.quiet_outside
    texts = encode_phrases(clip, instances, background if outside > 0 else None)
    check_width(model, keys, texts)
    layout = Layout(instances, texts, strength, percent, outside, settings)
    patched = hooks.install(model, {"attn2": RegionalTextAttention(layout)}, keys)
    if not (settings.separate or settings.separate_outside):
        return patched
    if len(instances) > MOST_SEPARATED:
        notices.warn_user(
            f"{NODE}: {len(instances)} instances are too many to isolate in self-attention (at most {MOST_SEPARATED}); "
            "only their phrases are applied."
        )
        return patched
    return hooks.install(patched, {"attn1": SeparatedSelfAttention(layout)}, keys)
