"""Rank exemplars for a semantic map: every candidate's map is compared with the target's.

The abstract of AM-Adapter (arXiv 2412.03150) names an automated exemplar retrieval, and its measure is not published. This one is Exemplary's
(specs/am_adapter.md, section 3), from shares of classes and from label maps of 32 x 32 cells. With t(c) and p(c) the shares of class c in
target and candidate, void not counted, and T the classes of the target:

    classes     = mean over T of min(1, p(c) / t(c))                   does the exemplar show enough of every class?
    proportions = sum over c of min(t, p) / sum over c of max(t, p)    are the classes mixed as in the target?
    layout      = mean over T of |t = c and p = c| / |t = c or p = c|  do the classes cover the same pixels?
    score       = their weighted mean; a map compared with itself scores 1

Pixels that are void in the target are ignored in `layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .pairs import nearest
from .palettes import VOID, Palette
from .remap import matching_table
from .semantic_map import SemanticMap, look_up

#: A map is seen as SAMPLES x SAMPLES points, for the shares, and as GRID x GRID cells, each with the label of most of its points.
SAMPLES = 128
GRID = 32
VOID_TARGET = "target: the map is void everywhere, so there is no class to compare. Paint or load a map with classes."
_ROWS = 1024  # candidates at a time: 1 MB of cells stays in the processor's cache
#: Candidates that compete in one tie at most: comparing images is slow.
_MOST_TIED = 32


@dataclass(frozen=True, eq=False)
class Summaries:
    """Summaries of n maps of one palette: `counts` [n, k] uint16, points of every class; `cells` [n, GRID * GRID] uint8, labels."""

    counts: np.ndarray
    cells: np.ndarray
    palette: Palette

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: np.ndarray) -> Summaries:
        """Some of the maps."""
        return Summaries(self.counts[rows], self.cells[rows], self.palette)

    def in_palette(self, palette: Palette) -> Summaries:
        """The same maps with their classes matched by name; those without a class of that name become void."""
        if palette.names == self.palette.names:
            return self
        table = matching_table(self.palette, palette)
        counts = np.zeros((len(self), len(palette.names)), dtype=np.uint16)
        for label, target in enumerate(table[: len(self.palette.names)].tolist()):
            if target != VOID:
                counts[:, target] += self.counts[:, label]
        return Summaries(counts, look_up(table, self.cells), palette)


def summarise_labels(labels: np.ndarray, palette: Palette) -> Summaries:
    """Summaries of labels [n, SAMPLES, SAMPLES] uint8."""
    n = len(labels)
    rows = np.arange(n, dtype=np.int32)[:, None] * 256
    counts = np.bincount((labels.reshape(n, -1) + rows).ravel(), minlength=256 * n).reshape(n, 256)
    points = SAMPLES // GRID
    blocks = labels.reshape(n, GRID, points, GRID, points).transpose(0, 1, 3, 2, 4).reshape(n, GRID * GRID, points * points)
    cells = torch.from_numpy(np.ascontiguousarray(blocks)).mode(dim=-1).values  # of equals the smallest, so void comes last
    return Summaries(counts[:, : len(palette.names)].astype(np.uint16), cells.numpy(), palette)


def summarise(maps: Sequence[SemanticMap]) -> Summaries:
    """Summaries of maps of any sizes, in the palette of the first; batches count as so many maps.

    Raises:
        ValueError: no map.
    """
    if not maps:
        raise ValueError("candidates: the list is empty. Give at least one semantic map.")
    palette = maps[0].palette
    parts = [summarise_labels(nearest(each.labels.numpy(), SAMPLES, SAMPLES), each.palette).in_palette(palette) for each in maps]
    return Summaries(np.concatenate([part.counts for part in parts]), np.concatenate([part.cells for part in parts]), palette)


@dataclass(frozen=True)
class Weights:
    """Weights of the measures; only their ratios matter.

    Raises:
        ValueError: a negative, infinite or NaN weight, or only zeros.
    """

    classes: float = 1.0
    proportions: float = 1.0
    layout: float = 1.0

    def __post_init__(self) -> None:
        values = (self.classes, self.proportions, self.layout)
        if not all(0.0 <= value < math.inf for value in values) or not any(values):
            raise ValueError(f"weights: {values}. Give numbers of at least 0, at least one of them above 0.")


@dataclass(frozen=True)
class Match:
    """One candidate and the reason for its rank. `missing`: classes of the target that it lacks, with their share in the target."""

    candidate: int
    score: float
    classes: float
    proportions: float
    layout: float
    missing: tuple[tuple[str, float], ...]

    def reasons(self) -> str:
        """`0.91 (classes 0.98, proportions 0.86, layout 0.88); lacks bus (2.1 %)`."""
        text = f"{self.score:.3f} (classes {self.classes:.2f}, proportions {self.proportions:.2f}, layout {self.layout:.2f})"
        lacking = ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in self.missing)
        return f"{text}; lacks {lacking}" if lacking else f"{text}; has every class"


@dataclass(frozen=True, eq=False)
class Ranking:
    """All candidates of one target. `order` [n] best first (equals stay in their order); the others in the candidates' own order."""

    order: np.ndarray
    scores: np.ndarray
    measures: np.ndarray  # [n, 3]: classes, proportions, layout
    has: np.ndarray  # [n, t]: whether it shows the target's classes, which are
    wanted: tuple[tuple[str, float], ...]

    def __len__(self) -> int:
        return len(self.order)

    def match(self, candidate: int) -> Match:
        """One candidate with its reasons."""
        missing = tuple(wanted for wanted, has in zip(self.wanted, self.has[candidate]) if not has)
        classes, proportions, layout = self.measures[candidate].tolist()
        return Match(candidate, float(self.scores[candidate]), classes, proportions, layout, missing)

    def best_first(self, similarity: Callable[[int], float] | None = None, margin: float = 0.0) -> Iterator[int]:
        """The candidates, best first; those whose scores lie within `margin` of the best of them tie, and `similarity` orders them.

        It is called only for ties, and only once they are reached; a tie has at most 32 candidates.
        """
        start = 0
        while start < len(self.order):
            end = start + 1
            if similarity is not None:
                least = self.scores[self.order[start]] - margin
                while end < min(len(self.order), start + _MOST_TIED) and self.scores[self.order[end]] >= least:
                    end += 1
            tied = self.order[start:end].tolist()
            if similarity is not None and len(tied) > 1:
                similarities = {candidate: similarity(candidate) for candidate in tied}
                tied.sort(key=lambda candidate: -similarities[candidate])
            yield from tied
            start = end


def rank(target: SemanticMap, candidates: Summaries | Sequence[SemanticMap], weights: Weights = Weights()) -> Ranking:
    """Every candidate's score for the target, and their order.

    Args:
        target: for a batch, one exemplar is ranked for all its maps: the measures are means over the maps that show a class.
        candidates: maps, or their summaries. Classes are matched by name where the palettes differ.

    Raises:
        ValueError: no candidate, or a target that is void everywhere.
    """
    if not isinstance(candidates, Summaries):
        candidates = summarise(candidates)
    if len(candidates) == 0:
        raise ValueError("candidates: the list is empty. Give at least one semantic map.")
    candidates = candidates.in_palette(target.palette)
    targets = summarise([target])
    asking = np.flatnonzero(targets.counts.any(axis=1))
    if len(asking) == 0:
        raise ValueError(VOID_TARGET)
    measures = np.zeros((len(candidates), 3))
    for row in asking:
        measures += _measures(targets.counts[row], targets.cells[row], candidates)
    measures /= len(asking)
    shares = targets.counts[asking].sum(axis=0) / targets.counts[asking].sum()
    labels = sorted(np.flatnonzero(shares), key=lambda label: -shares[label])
    scale = np.array([weights.classes, weights.proportions, weights.layout])
    scores = measures @ (scale / scale.sum())
    return Ranking(
        np.argsort(-scores, kind="stable"),
        scores,
        measures,
        candidates.counts[:, labels] > 0,
        tuple((target.palette.names[label], float(shares[label])) for label in labels),
    )


def _measures(counts: np.ndarray, cells: np.ndarray, candidates: Summaries) -> np.ndarray:
    """[n, 3] for a target's counts [k] and cells [GRID * GRID]."""
    labels = np.flatnonzero(counts)
    share = counts[labels] / counts.sum()
    regions = [(label, cells == label) for label in np.unique(cells[cells != VOID])]
    asked = cells != VOID
    result = np.empty((len(candidates), 3))
    for start in range(0, len(candidates), _ROWS):
        rows = slice(start, start + _ROWS)
        all_counts, seen = candidates.counts[rows], candidates.cells[rows]
        total = all_counts.sum(axis=1, dtype=np.int64)
        other = all_counts[:, labels] / np.maximum(total, 1)[:, None]
        result[rows, 0] = np.minimum(other / share, 1.0).mean(axis=1)
        common = np.minimum(other, share).sum(axis=1)
        result[rows, 1] = common / (2.0 - common)  # both sum to 1, so the maxima sum to 2 - common; a void candidate has 0
        agreement = np.zeros(len(seen))
        for label, region in regions:
            same = seen == label
            both = _true(same & region)
            agreement += both / (region.sum() + _true(same & asked) - both)
        result[rows, 2] = agreement / len(regions) if regions else 1.0
    return result


def _true(cells: np.ndarray) -> np.ndarray:
    """How many of bool [n, GRID * GRID] are true, [n]. Eight cells are added at once: a byte holds the 128 of its column."""
    return cells.view(np.uint64).sum(axis=1).view(np.uint8).reshape(len(cells), 8).sum(axis=1, dtype=np.int64)
