"""How the benchmarks take time and show what they found. Processor time on one thread, so that other programs do not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch works on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The median cost of a call. If there are several, one before them builds tables."""
    if repeats > 1:
        run()
    costs = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        costs.append(1000 * (time.process_time() - start))
    return statistics.median(costs)


def at_most(name: str, value: float, unit: str, bound: float) -> dict:
    """A figure that may not be above its bound."""
    return {"name": name, "value": value, "unit": unit, "target": f"<= {bound:g}", "ok": value <= bound}


def ratio(name: str, value: float) -> dict:
    """A plain form's cost over ours; ours may not be the slower one."""
    return {"name": name, "value": value, "unit": "x", "target": ">= 1", "ok": value >= 1}


def show(figures: Iterable[dict]) -> None:
    """Print figures as a table, as they come."""
    for figure in figures:
        missed = "" if figure["ok"] else "  MISSED"
        print(f"{figure['name']:64} {figure['value']:8.2f} {figure['unit']:6}  {figure['target']}{missed}", flush=True)
