"""The weight-free method on transformer (DiT) bases: every region attends to its own phrase inside the joint attention (`py/joint`).

w_0(p) = 1 - min(1, strength sum_i w_i(p))       the prompt        w_i: `ifadapter.regional.fusion_weights`
w_i(p) = strength w_i(p) / max(1, strength sum_j w_j(p))           the phrase of instance i
gain   = max(1, strength sum_i w_i(p))                             a strength above 1 goes beyond the attention with phrases
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ifadapter.instances import Instances
from ...ifadapter.regional import Settings, fusion_weights, owners
from .. import hooks, notices
from ..grids import Rows
from ..joint import families, texts
from ..joint.apply import install
from ..joint.contribution import Contribution
from ..run import SamplingRun
from ..schedule import PercentRange
from .inputs import NODE, check_clip, check_mask_batches
from .trained import LoadedAdapter

NOBODY, DEFAULTS = Instances(), Settings()


@dataclass(frozen=True, eq=False)
class RegionalPhrases(Contribution):
    """Phrases in boxes. `texts` has one CONDITIONING per instance, and one more if `background` (its weight, 0 to 1) is above 0."""

    instances: Instances = NOBODY
    strength: float = 1.0
    background: float = 0.0
    settings: Settings = DEFAULTS

    def before_run(self, run: SamplingRun) -> None:
        super().before_run(run)
        check_mask_batches(self.instances, run)

    def fusion(self, run: SamplingRun, part: Rows) -> Tensor:
        """[f, i, h, w] fusion weights times the strength, made once per run."""
        make = partial(
            fusion_weights, self.instances.items, *part.grid, background=self.background, view=part.view, settings=self.settings
        )
        return self.strength * run.get_or_make((self, "weights", part.grid, part.view), make)

    def region_weights(self, run: SamplingRun, part: Rows) -> Tensor:
        weights = self.fusion(run, part)
        total = weights.sum(dim=1, keepdim=True)
        return torch.cat([(1 - total).clamp(min=0), weights / total.clamp(min=1)], dim=1)

    def gain(self, run: SamplingRun, part: Rows, sigma: float) -> Tensor | None:
        total = self.fusion(run, part).sum(dim=1)
        # Weights that sum to 1 but for rounding need no second attention.
        return torch.where(total > 1 + 1e-4, total, 1.0) if bool((total > 1 + 1e-4).any()) else None

    def separation(self, run: SamplingRun, part: Rows) -> tuple[Tensor, Tensor] | None:
        inside, outside = self.settings.separate, self.settings.separate_outside
        if not (inside or outside):
            return None
        count = len(self.instances)
        owner = owners(self.fusion(run, part), count).unflatten(-1, part.grid)
        between = torch.full((count + 1, count + 1), -inside)
        between[-1, :] = between[:, -1] = -outside
        return torch.where(owner < 0, count, owner), between.fill_diagonal_(0.0)


def apply(
    model: Any,
    clip: Any,
    instances: Instances,
    strength: float,
    percent: PercentRange,
    background: str,
    adapter: LoadedAdapter | None,
    settings: Settings,
) -> Any:
    """A MODEL that draws each instance in its box. Strength and range are checked already; with nothing to do the MODEL is returned.

    Raises:
        ValueError: before sampling: an unsupported MODEL, trained weights, or no CLIP.
    """
    families.require_family(model, NODE)
    if adapter is not None:
        raise ValueError(
            f"{NODE}: {adapter.name!r} has trained weights for a Stable Diffusion UNet, but this MODEL is {hooks.model_name(model)}. "
            "Disconnect adapter: the weight-free method works on this MODEL."
        )
    if not len(instances):
        notices.warn_user(f"{NODE}: there are no instances, so the model is passed on unchanged.")
        return model
    if strength == 0.0 or percent.empty:
        return model
    outside = 1.0 if background.strip() else settings.quiet_outside
    phrases = [None if i.conditioning is not None else i.phrase for i in instances] + ([background] if outside > 0 else [])
    encoded: dict[str, Any] = {}
    for phrase in phrases:
        if phrase is not None and phrase not in encoded:
            check_clip(clip)
            encoded[phrase] = texts.encode_phrase(clip, phrase)
    given = [i.conditioning for i in instances] + [None]
    conditionings = tuple(own if phrase is None else encoded[phrase] for own, phrase in zip(given, phrases))
    return install(model, RegionalPhrases(NODE, percent, conditionings, instances, strength, outside, settings))
