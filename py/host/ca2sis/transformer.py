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

DEFAULT_ISOLATE = 0.9  # of the node; workflows that were made for Stable Diffusion store it


@dataclass(frozen=True, eq=False)
class ClassTexts(Contribution):
    """The texts of classes; with `has_base` the first of `texts` takes the place of the sampler's positive prompt.

    w_0 = (1 - strength) + strength w_0        the prompt; w: `ca2sis.attention.class_weights`
    w_r = strength w_r early_gain(sigma)       the text of class r

    In Stable Diffusion `early` extrapolates the text attention. Here text and image share one softmax, so it scales the share of the
    text in it, which needs no second attention. Classes are kept apart in all layers or not at all (`isolate` of 1): the layers have one
    grid, that of the finished image, and a partial separation in all of them gives images that do not belong together.
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

    def text_gains(self, run: SamplingRun, sigma: float) -> tuple[float, ...] | None:
        early = self.application.settings.early
        if early == 1.0:
            return None
        gain, count = early_gain(sigma, early, run.is_flow()), len(self.texts) - self.has_base
        return (*(1.0,) * self.has_base, *(gain,) * count)

    def separation(self, run: SamplingRun, part: Rows) -> tuple[Tensor, Tensor] | None:
        """Cells of different classes, each counted to the class with the largest share: log(1 - strength) with an isolate of 1."""
        isolate = self.application.settings.strength
        if self.application.settings.isolate < 1:
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
    if settings.isolate not in (0.0, DEFAULT_ISOLATE, 1.0):
        notices.warn_user(
            f"{node}: isolate is {settings.isolate:g}; on this MODEL only 1 has an effect, it keeps the classes apart in all layers."
        )
    texts = [prompt.conditioning for prompt in application.prompts]
    texts = texts if base is None else [base, *texts]
    return install(model, ClassTexts(node, settings.percent, tuple(texts), application, base is not None))
