"""Are the asked things there, in their boxes? Instance success, IoU and average precision from what a judge finds.

Instance success is the IFG task's measure (IFAdapter, arXiv 2409.08240): a thing succeeds if the best found box has at least 0.5 IoU with
the asked one and what is in it is what the phrase says. Average precision is COCO's (mean over IoU 0.5 to 0.95, 101 recall points), each
phrase of each picture being a class of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Box = tuple[float, float, float, float]  # x0 y0 x1 y1 in 0..1
OVERLAPS = tuple(0.5 + 0.05 * step for step in range(10))


@dataclass(frozen=True)
class Detection:
    """A thing that a judge sees when asked for a phrase."""

    box: Box
    score: float


class Judge(Protocol):
    """What looks at a picture [3, h, w] in 0..1."""

    def detect(self, picture: Tensor, phrase: str) -> Sequence[Detection]:
        """Candidates for this phrase anywhere in the picture; too many do no harm."""
        ...

    def matches(self, picture: Tensor, box: Box, phrase: str) -> bool:
        """Is what stands in this box what the phrase says?"""
        ...


@dataclass(frozen=True)
class Wanted:
    """One thing that was asked for."""

    box: Box
    phrase: str


@dataclass(frozen=True)
class Outcome:
    """What became of one wanted thing: IoU of the best candidate, whether it succeeded, all candidates."""

    wanted: Wanted
    overlap: float
    success: bool
    candidates: tuple[Detection, ...]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def outcomes(judge: Judge, picture: Tensor, wanted: Iterable[Wanted], overlap: float = 0.5) -> list[Outcome]:
    """Look for every wanted thing of one picture."""
    found = []
    for thing in wanted:
        candidates = tuple(judge.detect(picture, thing.phrase))
        best = max(candidates, key=lambda each: iou(each.box, thing.box), default=None)
        share = 0.0 if best is None else iou(best.box, thing.box)
        success = best is not None and share >= overlap and judge.matches(picture, best.box, thing.phrase)
        found.append(Outcome(thing, share, success, candidates))
    return found


def success_rate(found: Sequence[Outcome]) -> float:
    """The share of things that succeeded; 0 of none."""
    return sum(each.success for each in found) / len(found) if found else 0.0


def mean_overlap(found: Sequence[Outcome]) -> float:
    """The mean best IoU; 0 of none."""
    return sum(each.overlap for each in found) / len(found) if found else 0.0


def average_precision(found: Sequence[Outcome], overlaps: Sequence[float] = OVERLAPS) -> float:
    """Mean over the thresholds of the area under the precision-recall curve of all candidates; 0..1."""
    return sum(_precision(found, each) for each in overlaps) / len(overlaps) if found else 0.0


def _precision(found: Sequence[Outcome], overlap: float) -> float:
    ranked: list[tuple[float, bool]] = []
    for each in found:
        taken = False
        for candidate in sorted(each.candidates, key=lambda one: -one.score):
            hit = not taken and iou(candidate.box, each.wanted.box) >= overlap
            taken = taken or hit
            ranked.append((candidate.score, hit))
    if not ranked:
        return 0.0
    ranked.sort(key=lambda pair: -pair[0])
    hits = torch.tensor([float(hit) for _, hit in ranked]).cumsum(0)
    recall = hits / len(found)
    precision = hits / torch.arange(1, len(ranked) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)  # the best precision at this recall or more
    points = torch.linspace(0, 1, 101)
    place = torch.searchsorted(recall, points - 1e-6)
    return float(torch.where(place < len(recall), precision[place.clamp(max=len(recall) - 1)], torch.zeros(())).mean())
