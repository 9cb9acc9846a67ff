"""What regions cost on a transformer base: a step with four phrases at 1,216 tokens, and the memory of long sequences.

    python3 dev.py bench joint

A Z-Image-shaped network of the host with random weights, float32, one positive row, on the CPU: 1,024 image tokens, a prompt of 64 and
four phrases of 32. The plain step reads a prompt as long as all these texts, so that the ratio shows what joining costs; what the
tokens of the phrases cost besides is shown against a prompt of 64. Steps take turns, and the figures are ratios of medians of processor
time, in which other programs do not count.
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

import torch
from pack.benchmarks.measure import at_most, peak_growth
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.host.joint import attention
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.joint.bias import Bias, sequence_bias
from pack.py.joint.layout import Layout
from tiny_dit import conditioning, sample, tiny_dit

NAME = "z_image"
NETWORK = {"dim": 768, "n_heads": 6, "n_kv_heads": 6, "n_layers": 4, "n_refiner_layers": 1, "axes_dims": [32, 48, 48]}
PROMPT, PHRASE = 64, 32
SIZE = (64, 64)  # of the latent; patches of 2
MOST = 1.10
LONG = 128, 128  # image tokens of 2048 px
LONG_TEXTS = (64, 32, 32, 32, 32)

# A quarter of the image each, two of them overlapping: more than a usual layout covers.
LAYOUT = Instances(
    (
        Instance((0.00, 0.00, 0.50, 0.50), "a red plaid sofa"),
        Instance((0.40, 0.10, 0.90, 0.60), "a striped cat"),
        Instance((0.05, 0.50, 0.55, 1.00), "a round wooden table"),
        Instance((0.60, 0.60, 1.00, 1.00), "a potted palm"),
    )
)


class Phrases:
    """A CLIP whose texts all have PHRASE tokens."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str):
        return conditioning(NAME, len(tokens), PHRASE)


def step_seconds(model, tokens: int) -> float:
    """Processor time of one step with a prompt of so many tokens."""
    started = time.process_time()
    sample(model, NAME, conditioning(NAME, 1, tokens), steps=2, cfg=1.0, size=SIZE)
    return (time.process_time() - started) / 2


def figures(quick: bool) -> Iterator[dict]:
    plain = tiny_dit(NAME, **NETWORK)
    patched = ifadapter.apply(plain, Phrases(), LAYOUT)
    total = PROMPT + len(LAYOUT) * PHRASE
    forms = {"regions": (patched, PROMPT), "as long": (plain, total), "short": (plain, PROMPT)}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(3 if quick else 9):
        for name, (model, tokens) in forms.items():
            seconds = step_seconds(model, tokens)
            if turn:  # the first of each warms up
                times[name].append(seconds)
    cost = {name: statistics.median(values) for name, values in times.items()}
    tokens = SIZE[0] * SIZE[1] // 4 + total
    yield at_most(
        f"{len(LAYOUT)} phrases, a step at {tokens} tokens against one with a prompt of {total}",
        cost["regions"] / cost["as long"],
        "times",
        MOST,
    )
    yield {
        "name": f"the same against a prompt of {PROMPT} tokens",
        "value": cost["regions"] / cost["short"],
        "unit": "times",
        "target": "-",
        "ok": True,
    }
    yield from _memory()


def _memory() -> Iterator[dict]:
    """The peak of one attention call of a long sequence over that of the same call without bias."""
    layout = Layout(LONG_TEXTS, LONG)
    if layout.total <= attention.TABLE_TOKENS:
        raise RuntimeError("the sequence is not long enough to be a long one")
    bias = sequence_bias(layout, torch.rand(len(LONG_TEXTS), len(layout.cells)))
    q, k, v = (torch.randn(1, 2, layout.total, 128) for _ in range(3))
    table = 4 * layout.total**2 / 2**20

    def plain() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def biased(bias: Bias = bias) -> None:
        torch.nn.functional.scaled_dot_product_attention(*bias.pruned().widen(q, k, v))

    found = {run.__name__: peak_growth(run)[0] / 2**20 for run in (plain, biased)}
    yield at_most(
        f"memory of the bias of {layout.total} tokens against a table of all pairs ({table:.0f} MiB)",
        (found["biased"] - found["plain"]) / table,
        "times",
        0.1,
    )
