"""Start and end percent of an effect, converted to the sigmas that the host compares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PercentRange:
    """A part of the schedule, 0 the first step and 1 the last, both ends included as everywhere in ComfyUI."""

    start: float = 0.0
    end: float = 1.0

    @classmethod
    def checked(cls, start: float, end: float, node: str) -> PercentRange:
        """The range of a node's widgets. Raises ValueError that names the node and the widget."""
        for name, value in (("start_percent", start), ("end_percent", end)):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0.0 <= value <= 1.0):
                raise ValueError(f"{node}: {name} is {value}; it must be a number from 0 to 1.")
        return cls(float(start), float(end))

    @property
    def empty(self) -> bool:
        return self.start >= self.end

    def sigmas(self, model_sampling: Any) -> tuple[float, float]:
        """(first, last): the effect is on while last <= sigma <= first. Sigma falls while percent rises.

        0 and 1 are open to infinity: flow models start at exactly 1.0 and zero-terminal-SNR ones in the thousands, and
        neither rounding nor a scheduler that overshoots may exclude the first or the last step.
        """
        first = math.inf if self.start <= 0.0 else float(model_sampling.percent_to_sigma(self.start))
        last = -math.inf if self.end >= 1.0 else float(model_sampling.percent_to_sigma(self.end))
        return first, last
