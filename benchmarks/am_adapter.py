"""AM-Adapter: matcher-biased attention against the textbook form of its formulas, and a sampling run with a warm store against a plain one.

The textbook form builds every matrix of pairs: the logits of all keys, their means on 32 x 32 tokens, the volume through convolutions with
their two kernels apart, the bias at full size, the softmax. Eight heads, one row, float32; the weights are random, the results the same.
Time is processor time, memory the growth of the process while it runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from pack.benchmarks.measure import STATM, at_most, peak_growth, seconds
from pack.lab.evaluate import transfer
from pack.lab.evaluate.am_adapter import map_of
from pack.lab.evaluate.playground import as_images
from pack.lab.evaluate.setup import STEPS, Studio
from pack.py.am_adapter.agreement import compare_classes
from pack.py.am_adapter.attention import Exemplar, Settings, augmented_attention, match_tokens, matching_grid
from pack.py.am_adapter.model import Encoder, Matcher
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.am_adapter import cache as am_adapter_cache

HEADS = 8
MOST_TIME, MOST_MEMORY, MOST_RUN = 0.5, 0.1, 1.4


def figures(quick: bool) -> Iterator[dict]:
    with torch.inference_mode():  # as the host runs nodes
        for side, width in ((32, 80), (64, 40)):
            yield from _attention(side, width, 1 if quick else 3)
        yield _run(1 if quick else 5)


def _attention(side: int, width: int, repeats: int) -> Iterator[dict]:
    torch.manual_seed(0)
    encoder = Matcher().encoders[0]
    q, k, v, kx, vx = torch.randn(5, 1, side * side, HEADS * width)
    labels = (
        torch.randint(0, 6, (2, 1, 16, 16), dtype=torch.uint8).repeat_interleave(side // 16, 2).repeat_interleave(side // 16, 3)
    )
    grid = (side, side)

    def ours() -> torch.Tensor:
        small = matching_grid(grid)
        found = match_tokens(encoder, q, kx, HEADS, compare_classes(labels[0], labels[1], small, small), grid, grid)
        return augmented_attention(q, k, v, HEADS, [Exemplar(kx, vx, match=found)], Settings("matcher"))

    def dense() -> torch.Tensor:
        small = matching_grid(grid)
        same = compare_classes(labels[0], labels[1], small, small).block()
        return _textbook(encoder, q, k, v, kx, vx, same, side, small[0])

    torch.testing.assert_close(ours(), dense(), rtol=1e-3, atol=1e-3)
    times = [statistics.median(seconds(call) for _ in range(repeats)) for call in (ours, dense)]
    name = f"AM-Adapter, matched attention of {side * side} tokens"
    yield at_most(f"{name}, time against the textbook form", times[0] / times[1], "x", MOST_TIME)
    if STATM.exists():
        grown = [peak_growth(call)[0] for call in (ours, dense)]
        yield at_most(f"{name}, peak memory against the textbook form", grown[0] / grown[1], "x", MOST_MEMORY)


def _run(pairs: int) -> dict:
    studio = Studio()
    exemplar, target = (scenes[0] for scenes in transfer.pairs(1))
    image = as_images([exemplar]).movedim(1, -1)
    patched = am_adapter.apply(studio.model, studio.vae, image, map_of(exemplar), map_of(target))
    prompt = studio.encode("a street")
    studio.sample(studio.model, prompt, 0, steps=1)
    studio.sample(patched, prompt, 0)  # fills the store
    both: list[list[float]] = [[], []]
    for _ in range(pairs):
        for times, model in zip(both, (patched, studio.model)):
            times.append(seconds(lambda: studio.sample(model, prompt, 0)))
    name = f"AM-Adapter, {STEPS} steps with a warm store against plain sampling ({am_adapter_cache.store().size() / 1e6:.0f} MB kept)"
    return at_most(name, statistics.median(both[0]) / statistics.median(both[1]), "x", MOST_RUN)


def _textbook(encoder: Encoder, q, k, v, kx, vx, same, side: int, small: int) -> torch.Tensor:
    """The formulas as they stand, in order."""
    query, key, value, key_x, value_x = (rearrange(t, "b l (n d) -> b n l d", n=HEADS) for t in (q, k, v, kx, vx))
    logits = query @ torch.cat([key, key_x], dim=2).transpose(-1, -2) * query.shape[-1] ** -0.5
    own, reference = logits.split(side * side, dim=-1)
    volume = _resized(reference, side, small)
    x = rearrange(torch.cat([volume, same[:, None]], dim=1), "b c l (h w) -> (b l) c h w", h=small)
    for convolution, norm in encoder.conv4d:
        two = [convolution.query_conv, convolution.supp_conv]
        x = F.conv2d(x, two[0].weight, two[0].bias) + F.conv2d(x, two[1].weight, two[1].bias, padding=1)
        whole = rearrange(x, "(b l) c h w -> b c l h w", b=q.shape[0])
        x = rearrange(F.relu(F.group_norm(whole, 1, norm.weight, norm.bias, norm.eps)), "b c l h w -> (b l) c h w")
    p = rearrange(x, "(b l) c h w -> b c l (h w)", b=q.shape[0])
    biased = reference + _resized(p - p.max() / 4, small, side)
    out = torch.cat([own, biased], dim=-1).softmax(dim=-1) @ torch.cat([value, value_x], dim=2)
    return rearrange(out, "b n l d -> b l (n d)")


def _resized(matrix: torch.Tensor, side: int, to: int) -> torch.Tensor:
    """[b, n, side^2, side^2] over pairs of tokens -> [b, n, to^2, to^2], both axes resized as images."""
    if side == to:
        return matrix
    count = matrix.shape[0] * matrix.shape[1]
    for _ in range(2):
        images = rearrange(matrix, "b n r (h w) -> (b n) r h w", h=side)
        images = F.interpolate(images, (to, to), mode="bilinear")
        matrix = rearrange(images, "(b n) r h w -> b n (h w) r", n=HEADS)
    assert matrix.shape[0] * matrix.shape[1] == count
    return matrix
