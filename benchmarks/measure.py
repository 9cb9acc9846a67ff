"""How the benchmarks take time and show what they found. Processor time on one thread, so that other programs do not count."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")  # where it is missing, memory is not measured


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch works on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds(run: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def resident() -> tuple[int, ...]:
    """Bytes of the process that are in memory."""
    return (4096 * int(STATM.read_text().split()[1]),)


def peak_growth(run: Callable[[], object], held: Callable[[], tuple[int, ...]] = resident) -> list[int]:
    """By how much each of these grows at most while a call runs; at least 1, to divide by."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is needed now
    done, before = threading.Event(), held()
    most = [1] * len(before)

    def watch() -> None:
        while not done.wait(0.002):
            most[:] = (max(high, now - old) for high, now, old in zip(most, held(), before))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return most


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The median cost of a call. If there are several, one before them builds tables."""
    if repeats > 1:
        run()
    costs = []
    for _ in range(repeats):
        costs.append(1000 * seconds(run))
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
