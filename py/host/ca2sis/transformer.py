"""Class-adaptive attention on transformer (DiT) bases: cells of a class attend to its text inside the joint attention (`py/joint`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ca2sis.regional import NEVER, VARIANTS, early_gain
from .. import notices
from ..grids import Rows
from ..joint.apply import install
from ..joint.contribution import Contribution
from ..run import SamplingRun


@dataclass(frozen=True, eq=False)
class ClassTexts(Contribution):
    """The texts of classes; with `has_base` the first of `texts` takes the place of the sampler's positive prompt.

    w_0 = (1 - strength) + strength w_0        the prompt; w: `ca2sis.attention.class_weights`
    w_r = strength w_r                         the text of class r
    """

    application: Any = None
    has_base: bool = False

    def before_run(self, run: SamplingRun) -> None:
        super().before_run(run)
        self.application.check(run)

    def region_weights(self, run: SamplingRun, part: Rows) -> Tensor:
        masks = self.application.masks(run, part.grid, part.view)
        weights = self.application.weights(run, part.grid, part.view, masks.device).unflatten(-1, part.grid)
        weights = self.application.settings.strength * weights
        prompt = torch.full_like(weights[:, :1], 1 - self.application.settings.strength)
        if self.has_base:
            return torch.cat([prompt, weights], dim=1)
        return torch.cat([prompt + weights[:, :1], weights[:, 1:]], dim=1)

    def gain(self, run: SamplingRun, part: Rows, sigma: float) -> float:
        return early_gain(sigma, self.application.settings.early, run.is_flow())

    def separation(self, run: SamplingRun, part: Rows) -> tuple[Tensor, Tensor] | None:
        """Cells of different classes, each counted to the class with the largest share: log(1 - isolate)."""
        isolate = self.application.settings.isolate * self.application.settings.strength
        if isolate == 0.0:
            return None
        masks = self.application.masks(run, part.grid, part.view)
        rest = (1 - masks.sum(dim=1, keepdim=True)).clamp(0, 1)
        owner = torch.cat([masks, rest], dim=1).argmax(dim=1)
        count = masks.shape[1] + 1
        apart = max(NEVER, math.log1p(-isolate)) if isolate < 1 else NEVER
        return owner, torch.full((count, count), apart).fill_diagonal_(0.0)


def apply(model: Any, application: Any, base: Any, node: str) -> Any:
    """A MODEL whose cells attend to the texts of their classes; `application` is an `attention.Application`. Raises ValueError."""
    settings = application.settings
    if settings.variant != VARIANTS[0] or settings.layers != "all":
        notices.warn_user(
            f"{node}: variant and layers are for Stable Diffusion; on this MODEL all texts share one softmax, in all layers."
        )
    texts = [prompt.conditioning for prompt in application.prompts]
    texts = texts if base is None else [base, *texts]
    return install(model, ClassTexts(node, settings.percent, tuple(texts), application, base is not None))
