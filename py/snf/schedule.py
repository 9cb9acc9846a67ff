"""The three stages of Face-diffuser (arXiv 2311.10329): scene model only, both models fused, subject model only.

Percent runs from 0 (the first step, pure noise) to 1 (the last); for 1000 training timesteps it is 1 - t / 999. The published code
counts evaluations instead, with inclusive bounds: i <= start_merge_step scene, i <= final_step fusion, then subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """Which models predict the noise. The numbers are the order in time."""

    SCENE = 0
    FUSION = 1
    SUBJECT = 2


@dataclass(frozen=True)
class SigmaStages:
    """The stages in a model's own noise levels, for use at every evaluation.

    Args:
        start: sigma at which the fusion begins; inf if there is no scene stage, -inf if there is no other.
        end: sigma at which the subject stage begins; -inf if there is none, inf if there is no other.
    """

    start: float
    end: float

    def stage_at(self, sigma: float) -> Stage:
        """The stage of an evaluation at `sigma`. A bound itself belongs to the later stage."""
        if sigma > self.start:
            return Stage.SCENE
        return Stage.FUSION if sigma > self.end else Stage.SUBJECT


@dataclass(frozen=True)
class Stages:
    """Two bounds in percent of the schedule, 0..1.

        percent < start_percent      scene
        percent < end_percent        fusion
        otherwise                    subject

    The ends are exact: with start_percent 0 there is no scene stage, with end_percent 1 no subject stage, with both 1 (or both 0) only
    the scene model (the subject model) is evaluated, whatever a scheduler rounds or overshoots.

    The defaults are between the same two evaluations as the published demonstration's bounds (15 and 30 of 50 with its sampler,
    t = 701 | 681 and t = 401 | 381).

    Raises:
        ValueError: a bound outside of 0..1, or an end before the start.
    """

    start_percent: float = 0.31
    end_percent: float = 0.61

    def __post_init__(self) -> None:
        for name, value in (("start_percent", self.start_percent), ("end_percent", self.end_percent)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; it must be a number from 0 to 1.")
        if self.end_percent < self.start_percent:
            raise ValueError(
                f"end_percent ({self.end_percent}) is before start_percent ({self.start_percent}). "
                "At end_percent the subject model continues without the scene model: raise end_percent or lower start_percent."
            )

    def to_sigmas(self, percent_to_sigma: Callable[[float], float]) -> SigmaStages:
        """The same bounds in sigmas, for a model whose schedule is `percent_to_sigma`; sigma falls while percent rises."""

        def bound(percent: float) -> float:
            if percent <= 0.0:
                return math.inf
            return -math.inf if percent >= 1.0 else float(percent_to_sigma(percent))

        return SigmaStages(bound(self.start_percent), bound(self.end_percent))
