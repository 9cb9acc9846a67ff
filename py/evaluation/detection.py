"""Whether the requested objects are in their boxes: instance success, IoU and average precision from the detections of a model.

Instance success is the measure of the IFG task (IFAdapter, arXiv 2409.08240): an object succeeds if the best detected box has at least 0.5
IoU with the requested one and its content matches the phrase. Average precision is COCO's (mean over IoU 0.5 to 0.95, 101 recall points),
where each phrase of each image is a separate class.
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
    """An object that was detected for a phrase."""

    box: Box
    score: float


class Judge(Protocol):
    """Detects and checks objects in an image [3, h, w] in 0..1."""

    def detect(self, image: Tensor, phrase: str) -> Sequence[Detection]:
        """Candidates for this phrase anywhere in the image; additional ones do no harm."""
        ...

    def matches(self, image: Tensor, box: Box, phrase: str) -> bool:
        """Whether the content of this box matches the phrase."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One requested object."""

    box: Box
    phrase: str


@dataclass(frozen=True)
class Outcome:
    """The result for one requested object: IoU of the best candidate, whether it succeeded, all candidates."""

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


def find_outcomes(judge: Judge, image: Tensor, wanted: Iterable[Wanted], overlap: float = 0.5) -> list[Outcome]:
    """Look for every requested object in one image."""
    found = []
    for requested in wanted:
        candidates = tuple(judge.detect(image, requested.phrase))
        best = max(candidates, key=lambda each: iou(each.box, requested.box), default=None)
        share = 0.0 if best is None else iou(best.box, requested.box)
        success = best is not None and share >= overlap and judge.matches(image, best.box, requested.phrase)
        found.append(Outcome(requested, share, success, candidates))
    return found


def success_rate(found: Sequence[Outcome]) -> float:
    """The share of objects that succeeded; 0 if there are none."""
    return sum(each.success for each in found) / len(found) if found else 0.0


def mean_overlap(found: Sequence[Outcome]) -> float:
    """The mean best IoU; 0 if there are none."""
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
    index = torch.searchsorted(recall, points - 1e-6)
    return float(torch.where(index < len(recall), precision[index.clamp(max=len(recall) - 1)], torch.zeros(())).mean())
