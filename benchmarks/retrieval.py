"""What a query for an exemplar costs among 100,000 indexed maps, in processor time on one thread.

    python -P benchmarks/retrieval.py [--quick]

Naive: the same three measures for one candidate after the other, with one comparison a class; timed on a part of the candidates. Processor
time, so that other programs do not count. Looking for changed files is not part of it: that is the file system's time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

if "pack" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest  # noqa: F401  puts the pack under its name

from pack.py.semantic import exemplar_index
from pack.py.semantic.exemplar_index import ExemplarIndex, file_name, update
from pack.py.semantic.pairs import Pairs
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.retrieval import GRID, SAMPLES, Summaries, rank
from pack.py.semantic.semantic_map import SemanticMap

CANDIDATES = 100_000
MOST_MS = 1000.0
CITY = named_palette("Cityscapes / BDD100K")


def figures(quick: bool) -> Iterator[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _figures(1 if quick else 5)
    finally:
        torch.set_num_threads(threads)


def _figures(repeats: int) -> Iterator[dict]:
    candidates = _stripes(seed=0)
    target = SemanticMap(torch.from_numpy(candidates.cells[777].reshape(1, GRID, GRID)), CITY)
    count = f"{CANDIDATES:,} maps"
    ours = _milliseconds(lambda: rank(target, candidates), repeats)
    yield _at_most(f"exemplar retrieval, ranking {count}", ours)
    part = 500
    naive = _milliseconds(lambda: _naive(target, candidates, part), 1) * CANDIDATES / part
    yield {
        "name": "exemplar retrieval, naive form / ours",
        "value": naive / ours,
        "unit": "x",
        "target": ">= 10",
        "ok": naive >= 10 * ours,
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / file_name(CITY, 32.0)
        names = tuple(f"{number:06}_map.png" for number in range(CANDIDATES))
        stamps = np.ones((CANDIDATES, 4), dtype=np.int64)
        pairs = Pairs(Path(folder), names, names, stamps, ())
        exemplar_index._save(ExemplarIndex(names, stamps[:, 2:], candidates, {}), [place])
        whole = _milliseconds(lambda: rank(target, update(pairs, CITY, 32.0, [place]).index.summaries), repeats)
        yield _at_most(f"exemplar retrieval, query: index read from disk, {count} ranked", whole)
        size = place.stat().st_size / CANDIDATES
        yield {"name": "exemplar retrieval, index on disk", "value": size, "unit": "bytes a pair", "target": "-", "ok": True}


def _stripes(seed: int) -> Summaries:
    """Maps of one class a row of cells, so most show fifteen of the nineteen classes."""
    rows = np.random.default_rng(seed).integers(0, len(CITY.names), (CANDIDATES, GRID), dtype=np.uint8)
    places = rows + len(CITY.names) * np.arange(CANDIDATES)[:, None]
    counts = np.bincount(places.ravel(), minlength=CANDIDATES * len(CITY.names)).reshape(CANDIDATES, -1)
    return Summaries((counts * (SAMPLES * SAMPLES // GRID)).astype(np.uint16), np.repeat(rows, GRID, axis=1), CITY)


def _naive(target: SemanticMap, candidates: Summaries, part: int) -> list[float]:
    wanted = target.labels[0].numpy().ravel()
    share = np.bincount(wanted, minlength=len(CITY.names)) / wanted.size
    scores = []
    for cells, counts in zip(candidates.cells[:part], candidates.counts):
        other = counts / counts.sum()
        classes, layout = [], []
        for label in np.unique(wanted):
            classes.append(min(1.0, other[label] / share[label]))
            layout.append(((wanted == label) & (cells == label)).sum() / ((wanted == label) | (cells == label)).sum())
        proportions = np.minimum(share, other).sum() / np.maximum(share, other).sum()
        scores.append((np.mean(classes) + proportions + np.mean(layout)) / 3)
    return scores


def _at_most(name: str, cost: float) -> dict:
    return {"name": name, "value": cost, "unit": "ms", "target": f"<= {MOST_MS:.0f}", "ok": cost <= MOST_MS}


def _milliseconds(run: Callable, repeats: int) -> float:
    run()
    costs = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        costs.append(1000 * (time.process_time() - start))
    return statistics.median(costs)


if __name__ == "__main__":
    for figure in figures("--quick" in sys.argv[1:]):
        print(
            f"{figure['name']:72} {figure['value']:8.1f} {figure['unit']:2}  {figure['target']}{'' if figure['ok'] else '  MISSED'}"
        )
