"""Batches of drawn scenes for training: drawn in parallel once, kept in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...py.playground.scene import Scene
from ...py.playground.scenes import SIDE, draw_scene

log = logging.getLogger("exemplary")
Key = TypeVar("Key")
Drawn = TypeVar("Drawn")

#: One round of kinds: half of the scenes are objects, since exactly these are judged word by word.
MIX = ("objects", "street", "objects", "portrait", "objects", "people")


def training_keys(count: int, first: int = 0) -> list[tuple[str, int]]:
    """The kinds and seeds of `count` training scenes, from number `first` on."""
    return list(islice(zip(cycle(MIX), range(first, first + count)), count))


def _draw(key: tuple[str, int]) -> Scene:
    return draw_scene(key[0], key[1], SIDE)


def draw_many(keys: list[tuple[str, int]], workers: int | None = None) -> list[Scene]:
    """Draw scenes, in order, on all cores."""
    log.info("drawing %d scenes", len(keys))
    return in_parallel(_draw, keys, workers)


def in_parallel(draw: Callable[[Key], Drawn], keys: Sequence[Key], workers: int | None = None) -> list[Drawn]:
    """`draw` of every key, in order, on all cores; `draw` is a function of a module."""
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(keys) < 64:
        return [draw(key) for key in keys]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(draw, keys, chunksize=64))


def in_chunks(
    folder: Path, name: str, first: int, count: int, chunk: int, prepare: Callable[[int, int], dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """What `prepare(first, number)` computes of `count` examples from number `first` on, in chunks that are kept as files in `folder`."""
    chunks = []
    for begin in range(first, first + count, chunk):
        number = min(chunk, first + count - begin)
        path = folder / f"{name}_{begin:07d}_{number}.pt"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(prepare(begin, number), path)
            log.info("%s: %d of %d", name, begin - first + number, count)
        chunks.append(torch.load(path, weights_only=True))
    return chunks


def pictures(scenes: list[Scene]) -> np.ndarray:
    """[n, side, side, 3] uint8."""
    return np.stack([scene.image for scene in scenes])
