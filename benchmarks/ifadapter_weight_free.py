"""What the weight-free layout costs: one step of a full-size SD1.5 UNet with four instances, as a ratio to the plain step.

    EXEMPLARY_HOST=<ComfyUI folder> python -P benchmarks/ifadapter_weight_free.py [--pairs 5] [--size 512] [--most 1.15]

Random weights, float32, one positive and one negative row, on the CPU. Plain and patched steps take turns, so that a busy machine slows
both; the figures are ratios of medians: of processor time, which decides because other programs do not count in it, and of the clock.
Exit status 1 if the first is above --most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "host")]

import comfy.supported_models  # noqa: E402
import conftest  # noqa: E402,F401  puts the pack and the host on the path
import torch  # noqa: E402
from pack.py.host import ifadapter  # noqa: E402
from pack.py.ifadapter.instances import Instance, Instances  # noqa: E402
from tiny import SHAPES, TinyCLIP, conditioning, sample, tiny_model  # noqa: E402


class FullSD15(comfy.supported_models.SD15):
    pass


SHAPES[FullSD15] = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}

# A quarter of the picture each, two of them overlapping: more than a usual layout covers.
LAYOUT = Instances(
    (
        Instance((0.00, 0.00, 0.50, 0.50), "a red plaid sofa"),
        Instance((0.40, 0.10, 0.90, 0.60), "a striped cat"),
        Instance((0.05, 0.50, 0.55, 1.00), "a round wooden table"),
        Instance((0.60, 0.60, 1.00, 1.00), "a potted palm"),
    )
)


def step_seconds(model, size: int) -> tuple[float, float]:
    """(processor time, clock) of one step."""
    cells = size // 8
    positive, negative = conditioning(model, "a living room"), conditioning(model, "blurred")
    started = time.process_time(), time.perf_counter()
    sample(model, positive, negative, steps=1, size=(cells, cells))
    return time.process_time() - started[0], time.perf_counter() - started[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="plain and patched steps to take, after one of each to warm up")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--most", type=float, default=1.15, help="the largest ratio that passes")
    parser.add_argument("--separate", type=float, default=0.0, help="also damp self-attention between instances")
    parser.add_argument("--background", default="", help="also use a background phrase")
    arguments = parser.parse_args()
    plain = tiny_model(FullSD15)
    settings = ifadapter.Settings(separate=arguments.separate)
    patched = ifadapter.apply(plain, TinyCLIP(768), LAYOUT, background=arguments.background, settings=settings)
    parameters = sum(p.numel() for p in plain.model.diffusion_model.parameters())
    print(
        f"SD1.5 UNet, {parameters / 1e6:.0f} M parameters, {arguments.size} px, 2 rows, float32, {torch.get_num_threads()} threads"
    )
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "patched": []}
    for pair in range(arguments.pairs + 1):
        for name, model in (("plain", plain), ("patched", patched)):
            seconds = step_seconds(model, arguments.size)
            if pair:
                times[name].append(seconds)
    ratios = []
    for kind, what in enumerate(("processor time", "clock")):
        base, ours = (statistics.median(step[kind] for step in times[name]) for name in ("plain", "patched"))
        ratios.append(ours / base)
        print(f"{what}: plain {base:.2f} s, with {len(LAYOUT)} instances {ours:.2f} s, ratio {ours / base:.3f}")
    print(f"ratio {ratios[0]:.3f} (at most {arguments.most})")
    return 0 if ratios[0] <= arguments.most else 1


if __name__ == "__main__":
    sys.exit(main())
