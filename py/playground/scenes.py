"""Any scene of the drawn world from its kind and one integer."""

from __future__ import annotations

import numpy as np

from .objects import draw_objects
from .portraits import draw_people, draw_portrait
from .scene import Scene
from .streets import draw_street

KINDS = ("objects", "street", "portrait", "people")
SIDE = 128  # pixels: 16x16 latents
#: Training draws seeds below, evaluation from here on: held-out scenes are never seen in training.
HELD_OUT = 1 << 30

_DRAW = {"objects": draw_objects, "street": draw_street, "portrait": draw_portrait, "people": draw_people}


def scene_rng(kind: str, seed: int) -> np.random.Generator:
    """The random numbers of one scene; the kind is part of the seed, so that kinds do not resemble each other."""
    return np.random.default_rng([KINDS.index(kind), seed])


def draw_scene(kind: str, seed: int, side: int = SIDE, **wish) -> Scene:
    """Draw scene number `seed` of a kind, always the same one.

    Args:
        kind: one of `KINDS`.
        seed: 0 .. 2**63 - 1; from `HELD_OUT` on for evaluation.
        side: pixels of the square image.
        wish: what the drawing function of the kind takes further (`count`, `who`, `place`).

    Raises:
        ValueError: the kind is not one of `KINDS`.
    """
    if kind not in _DRAW:
        raise ValueError(f"Playground scene: kind is {kind!r}; choose one of {', '.join(KINDS)}.")
    return _DRAW[kind](scene_rng(kind, seed), side, **wish)
