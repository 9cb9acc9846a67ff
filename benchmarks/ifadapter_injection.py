"""What IFAdapter's injection adds to a text attention of SDXL: 32 x 32 tokens, 1,280 channels, an uncond and a cond row, one thread.

    python -P benchmarks/ifadapter_injection.py [--quick]

The plain layer is the host-shaped transformer layer without adapter: self-attention, text attention over 77 tokens, feed-forward; the text
attention alone is printed beside it. The textbook fusion is the published one: ten whole maps, an attention mask, everything on all cells
and in ten slots, keys and values at every call. Processor time, so that other programs do not count.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if "pack" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest  # noqa: F401  puts the pack under its name

from pack.py.ifadapter.attention import InstanceRegions, KeysValues, compute_injection, make_attention, project_tokens
from pack.py.ifadapter.model import Injection

SIDE, CHANNELS, HEADS, TEXT = 32, 1280, 20, 2048
TOKENS, ROWS, SLOTS = 13, 2, 10


class PlainLayer(nn.Module):
    """One transformer layer of SDXL's UNet at this size."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(3))
        self.own = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3))
        self.text = nn.ModuleList(nn.Linear(width, CHANNELS, bias=False) for width in (CHANNELS, TEXT, TEXT))
        self.out = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(2))
        self.up, self.down = nn.Linear(CHANNELS, 8 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def text_attention(self, x: Tensor, context: Tensor, more: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        q = self.text[0](x)
        out = make_attention(HEADS)(q, self.text[1](context), self.text[2](context))
        return self.out[1](out if more is None else more(q, out))

    def forward(self, x: Tensor, context: Tensor, more: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        n = self.norms[0](x)
        x = x + self.out[0](make_attention(HEADS)(*(project(n) for project in self.own)))
        x = x + self.text_attention(self.norms[1](x), context, more)
        a, gate = self.up(self.norms[2](x)).chunk(2, dim=-1)
        return x + self.down(a * F.gelu(gate))


def boxes(count: int, size: float) -> Tensor:
    """Boxes of one size, spread over the image, the neighbours overlapping if they are large."""
    columns = max(1, round(count**0.5))
    rows = -(-count // columns)
    corners = [((n % columns) / columns * (1 - size), (n // columns) / rows * (1 - size)) for n in range(count)]
    return torch.tensor([[x, y, x + size, y + size] for x, y in corners])


def textbook(layer: Injection, q: Tensor, base: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    """The published steps: padded to ten slots, whole maps, masked keys. tokens [rows, i, m, c]."""
    count = tokens.shape[1]
    tokens = F.pad(tokens, (0, 0, 0, 0, 0, SLOTS - count))
    masks = torch.zeros(SLOTS, SIDE, SIDE)
    for place, (top, bottom, left, right) in enumerate(InstanceRegions.from_boxes(where, SIDE, SIDE).rectangles):
        masks[place, top:bottom, left:right] = 1
    union = masks.amax(dim=0)
    ratio = union.sum() / masks.sum(dim=(1, 2)).clamp(min=1)
    ratio[count:] = 0
    query = layer.queries(q).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    maps, logits = [], []
    for place in range(SLOTS):
        k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in layer.keys_values(tokens[:, place]))
        cut = torch.where(masks[place].flatten() > 0, 0.0, torch.finfo(q.dtype).min)[None, None, :, None].expand(1, 1, -1, TOKENS)
        s = F.scaled_dot_product_attention(query, k, v, attn_mask=cut).transpose(1, 2).flatten(2).unflatten(1, (SIDE, SIDE))
        s = s * masks[place][None, :, :, None]
        maps.append(s)
        logits.append(layer.conv(layer.cbam(s).permute(0, 3, 1, 2))[:, 0] * torch.sigmoid(ratio[place]))
    weights = torch.stack(logits, dim=1).softmax(dim=1)
    fused = (weights[..., None] * torch.stack(maps, dim=1)).sum(dim=1) * union[None, :, :, None]
    return base + torch.tanh(layer.alpha) * fused.flatten(1, 2)


def figures(quick: bool) -> Iterator[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield from _figures(3 if quick else 15)
    finally:
        torch.set_num_threads(threads)


def _figures(repeats: int) -> Iterator[dict]:
    torch.manual_seed(0)
    plain, layer = PlainLayer().eval(), Injection(CHANNELS, HEADS, TEXT).eval()
    layer.alpha.fill_(0.5)
    x, context = torch.randn(ROWS, SIDE * SIDE, CHANNELS), torch.randn(ROWS, 77, TEXT)
    tokens = torch.randn(ROWS, SLOTS, TOKENS, TEXT)
    where = boxes(SLOTS, 0.3)

    def ours(count: int, size: float) -> Callable[[Tensor, Tensor], Tensor]:
        regions = InstanceRegions.from_boxes(boxes(count, size), SIDE, SIDE)
        projected = project_tokens(layer, tokens[:, [n % SLOTS for n in range(count)]])
        return lambda q, base: base + compute_injection(layer, q, projected, range(ROWS), regions)

    ten = ours(SLOTS, 0.3)
    q = plain.text[0](plain.norms[1](x))
    projected: KeysValues = project_tokens(layer, tokens)
    found = q + compute_injection(layer, q, projected, range(ROWS), InstanceRegions.from_boxes(where, SIDE, SIDE))
    torch.testing.assert_close(found, textbook(layer, q, q, tokens, where), rtol=1e-3, atol=1e-4)

    base, added, published = _milliseconds(
        [lambda: plain(x, context), lambda: plain(x, context, ten), lambda: textbook(layer, q, q, tokens, where)], repeats
    )
    attention, with_ten, injection = _milliseconds(
        [lambda: plain.text_attention(x, context), lambda: plain.text_attention(x, context, ten), lambda: ten(q, q)], repeats
    )
    what = f"IFAdapter injection, {SLOTS} instances"
    yield {
        "name": f"{what}, layer with / without",
        "value": added / base,
        "unit": "x",
        "target": "<= 1.25",
        "ok": added <= 1.25 * base,
    }
    yield {"name": f"{what}, text attention alone with / without", "value": with_ten / attention, "unit": "x"}
    ratio = injection / published
    yield {"name": f"{what}, ours / textbook fusion", "value": ratio, "unit": "x", "target": "<= 0.5", "ok": ratio <= 0.5}
    counts = (1, 10, 50)
    costs = _milliseconds([(lambda run: lambda: run(q, q))(ours(count, 0.2)) for count in counts], repeats)
    for count, cost in zip(counts, costs):
        yield {"name": f"IFAdapter injection, {count} instances of the same size", "value": cost, "unit": "ms"}
    growth = (costs[2] - costs[0]) / (counts[2] - counts[0]) / ((costs[1] - costs[0]) / (counts[1] - counts[0]))
    # Above one would be worse than linear; a tenth is left for the clock.
    yield {
        "name": "IFAdapter injection, cost of an instance among 50 / among 10",
        "value": growth,
        "unit": "x",
        "target": "<= 1.1",
        "ok": growth <= 1.1,
    }


def _milliseconds(runs: list[Callable], repeats: int) -> list[float]:
    """The median of each; they take turns, so that a busy machine slows all."""
    costs: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for kept, run in zip(costs, runs):
            start = time.process_time()
            run()
            if turn:
                kept.append(1000 * (time.process_time() - start))
    return [statistics.median(kept) for kept in costs]


if __name__ == "__main__":
    for figure in figures("--quick" in sys.argv[1:]):
        missed = "" if figure.get("ok", True) else "  MISSED"
        print(f"{figure['name']:68} {figure['value']:8.2f} {figure['unit']:2}  {figure.get('target', '')}{missed}")
