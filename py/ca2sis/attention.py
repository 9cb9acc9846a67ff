"""What the generator's attention reads: maps for a preview, logits for the loss that made it class-adaptive (CA2-SIS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

#: Told of every cross-attention: q [b, l, c], k [b, k, c], the number of heads, the grid (h, w) with h * w = l.
Watch = Callable[[Tensor, Tensor, int, tuple[int, int]], None]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by the fused kernel: the l x m table is never built.

    Args:
        q: [b, l, n d]. k, v: [b, m, n d], n = heads.

    Returns:
        [b, l, n d].
    """
    q, k, v = (rearrange(t, "b l (n d) -> b n l d", n=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")


def mean_logits(q: Tensor, k: Tensor, heads: int, grid: tuple[int, int]) -> Tensor:
    """Logits q k^T / sqrt(d) before the softmax, mean over heads: [b, k, h, w].

    The mean over heads of a product of heads is one product over all channels, so no table per head is made.
    """
    d = q.shape[-1] // heads
    logits = torch.einsum("blc,bkc->bkl", q, k) * (d**-0.5 / heads)
    return rearrange(logits, "b k (h w) -> b k h w", h=grid[0])


def mean_attention(q: Tensor, k: Tensor, heads: int, grid: tuple[int, int]) -> Tensor:
    """Attention after the softmax over classes, mean over heads: [b, k, h, w], float32, sums to 1 over k. Head by head."""
    d = q.shape[-1] // heads
    total = torch.zeros(q.shape[0], q.shape[1], k.shape[1], device=q.device)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        total += (q[..., part].float() @ k[..., part].float().mT * d**-0.5).softmax(dim=-1)
    return rearrange(total / heads, "b (h w) k -> b k h w", h=grid[0])


def attention_loss(logits: Sequence[Tensor], mask: Tensor) -> Tensor:
    """L_att: binary cross-entropy of each layer's mean logits against the class masks, mean over classes, then over layers.

    Args:
        logits: one [b, k, h, w] a layer, from `mean_logits`.
        mask: M, [b, k, H, W], brought to each layer's size by nearest neighbour.

    Returns:
        A scalar.
    """
    losses = [
        F.binary_cross_entropy_with_logits(found, F.interpolate(mask.to(found.dtype), size=found.shape[-2:], mode="nearest"))
        for found in logits
    ]
    return torch.stack(losses).mean()
