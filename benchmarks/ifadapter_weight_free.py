"""What the weight-free layout costs: one step of a full-size SD1.5 UNet with four instances, as a ratio to the plain step.

    python3 dev.py bench ifadapter_weight_free

Random weights, float32, one positive and one negative row, on the CPU. Plain and patched steps take turns, so that a busy machine slows
both; the figure is a ratio of medians of processor time, in which other programs do not count.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "host"))
if "pack" not in sys.modules:
    import conftest  # noqa: F401  puts the pack under its name

import comfy.supported_models
from pack.benchmarks.measure import at_most
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.ifadapter.instances import Instance, Instances
from tiny import SHAPES, TinyCLIP, conditioning, sample, tiny_model

SIZE = 512
MOST = 1.15


class FullSD15(comfy.supported_models.SD15):
    pass


SHAPES[FullSD15] = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}

# A quarter of the image each, two of them overlapping: more than a usual layout covers.
LAYOUT = Instances(
    (
        Instance((0.00, 0.00, 0.50, 0.50), "a red plaid sofa"),
        Instance((0.40, 0.10, 0.90, 0.60), "a striped cat"),
        Instance((0.05, 0.50, 0.55, 1.00), "a round wooden table"),
        Instance((0.60, 0.60, 1.00, 1.00), "a potted palm"),
    )
)


def step_seconds(model) -> float:
    """Processor time of one step."""
    positive, negative = conditioning(model, "a living room"), conditioning(model, "blurred")
    started = time.process_time()
    sample(model, positive, negative, steps=1, size=(SIZE // 8, SIZE // 8))
    return time.process_time() - started


def figures(quick: bool) -> Iterator[dict]:
    plain = tiny_model(FullSD15)
    patched = ifadapter.apply(plain, TinyCLIP(768), LAYOUT)
    times: dict[str, list[float]] = {"plain": [], "patched": []}
    for pair in range(2 if quick else 6):
        for name, model in (("plain", plain), ("patched", patched)):
            seconds = step_seconds(model)
            if pair:  # the first of each warms up
                times[name].append(seconds)
    ratio = statistics.median(times["patched"]) / statistics.median(times["plain"])
    yield at_most(
        f"weight-free boxes, {len(LAYOUT)} instances, a step of SD1.5 at {SIZE} px against the plain step", ratio, "times", MOST
    )
