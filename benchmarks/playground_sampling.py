"""How long an image of the playground takes: 20 steps of one 128 x 128 image with guidance, and its decoding.

Wall-clock seconds on an otherwise idle machine of two cores; everything else in this folder is a ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from pack.lab.evaluate.setup import STEPS, Studio

MOST_SECONDS = 5.0


def figures(quick: bool) -> Iterator[dict]:
    studio = Studio()
    cond = studio.encode("a red ball and a blue star on a mint background")
    studio.sample(studio.model, cond, seed=0)  # the first run also loads the models
    times = []
    for seed in range(1 if quick else 5):
        start = time.perf_counter()
        studio.sample(studio.model, cond, seed=seed)
        times.append(time.perf_counter() - start)
    value = statistics.median(times)
    name = f"playground, {STEPS} steps of one 128 x 128 image"
    yield {"name": name, "value": value, "unit": "s", "target": f"<= {MOST_SECONDS:g} s", "ok": value <= MOST_SECONDS}
