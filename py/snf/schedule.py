"""The three stages of Face-diffuser (arXiv 2311.10329): scene alone, both fused, subject alone.

Percent runs from 0 (the first step, pure noise) to 1 (the last); for 1000 training timesteps it is 1 - t / 999. The published code
counts evaluations instead, with inclusive bounds: i <= start_merge_step scene, i <= final_step fusion, then subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """Whose noise counts. The numbers are the order in time."""

    SCENE = 0
    FUSION = 1
    SUBJECT = 2


@dataclass(frozen=True)
class SigmaStages:
    """The stages in a model's own noise levels, to ask at every evaluation.

    Args:
        start: sigma where the fusion begins; inf if there is no scene stage, -inf if there is no other.
        end: sigma where the subject model goes on alone; -inf if it never does, inf if it does from the beginning.
    """

    start: float
    end: float

    def at(self, sigma: float) -> Stage:
        """The stage of an evaluation at `sigma`. A bound itself belongs to the later stage."""
        return _stage(sigma > self.start, sigma > self.end)


@dataclass(frozen=True)
class Stages:
    """Two bounds in percent of the schedule, 0..1. Raises ValueError for others, and if the end is before the start.

        percent < start_percent      scene
        percent < end_percent        fusion
        otherwise                    subject

    The ends are closed exactly: with start_percent 0 no evaluation is the scene's alone, with end_percent 1 none is the subject's
    alone, with both 1 (or both 0) only the scene model (the subject model) is asked, whatever a scheduler rounds or overshoots.

    The defaults lie between the same two evaluations as the published demonstration's bounds (15 and 30 of 50 with its sampler,
    t = 701 | 681 and t = 401 | 381).
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
                "The fusion ends where the subject model goes on alone: raise end_percent or lower start_percent."
            )

    @classmethod
    def from_steps(cls, start_merge_step: int, final_step: int, percents: Sequence[float]) -> Stages:
        """The stages that the published code's two counters give.

        Args:
            start_merge_step: last evaluation (from 0) of the scene stage; -1 for none.
            final_step: last evaluation of the fusion.
            percents: the percent of every evaluation, ascending.

        Returns:
            Bounds halfway between the two evaluations that each counter parts. Two evaluations at one noise level (PNDM repeats its
            second) cannot be parted: both then belong to the later stage.
        """

        def bound(last: int) -> float:
            if last < 0:
                return 0.0
            return 1.0 if last + 1 >= len(percents) else 0.5 * (percents[last] + percents[last + 1])

        return cls(bound(start_merge_step), bound(final_step))

    def at(self, percent: float) -> Stage:
        """The stage of an evaluation at `percent`."""
        before_start, before_end = (
            bound >= 1.0 or (bound > 0.0 and percent < bound) for bound in (self.start_percent, self.end_percent)
        )
        return _stage(before_start, before_end)

    def in_sigmas(self, percent_to_sigma: Callable[[float], float]) -> SigmaStages:
        """The same bounds in sigmas, for a model whose schedule is `percent_to_sigma`; sigma falls while percent rises."""

        def bound(percent: float) -> float:
            if percent <= 0.0:
                return math.inf
            return -math.inf if percent >= 1.0 else float(percent_to_sigma(percent))

        return SigmaStages(bound(self.start_percent), bound(self.end_percent))


def _stage(before_start: bool, before_end: bool) -> Stage:
    if before_start:
        return Stage.SCENE
    return Stage.FUSION if before_end else Stage.SUBJECT
