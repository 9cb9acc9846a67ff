"""Cross-attention of the CA2-SIS generator: pixels attend to class codes; its attention maps, and the loss that ties pixels to classes.

The attention inside Stable Diffusion that this inspired is in regional.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

#: Called by every cross-attention with q [b, l, c], k [b, k, c], the number of heads, the grid (h, w) with h * w = l.
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


def fold_projections(
    k: Tensor, v: Tensor, channels: int, heads: int, to_q: nn.Module, to_out: nn.Module
) -> Callable[[Tensor], Tensor]:
    """x [b, l, channels] -> to_out(softmax(to_q(x) k^T / sqrt(d)) v), both projections folded into the few keys and values.

        softmax(x A^T) B,   A = k W_q / sqrt(d),   B = v W_out^T        head by head

    x is multiplied by n m columns instead of n d twice. Pixels are the innermost axis of the attention
    table, so that its softmax is vectorised over them. The layers are called, their weights never read: they may be offloaded or quantised.

    Args:
        k, v: [b, m, n d], n = heads. to_q: without a bias.
    """
    d = k.shape[-1] // heads
    weight = rearrange(to_q(torch.eye(channels, dtype=k.dtype, device=k.device)), "c (n d) -> n d c", n=heads)
    keys = rearrange(rearrange(k * d**-0.5, "b m (n d) -> b n m d", n=heads) @ weight, "b n m c -> b (n m) c")
    own = torch.eye(heads, dtype=v.dtype, device=v.device)
    separate = torch.einsum("bmnd,nj->bnmjd", rearrange(v, "b m (n d) -> b m n d", n=heads), own)
    bias = to_out(v.new_zeros(1, v.shape[-1]))
    values = to_out(rearrange(separate, "b n m j d -> b (n m) (j d)")) - bias

    def attend_folded(x: Tensor) -> Tensor:
        table = rearrange(keys @ x.mT, "b (n m) l -> b n m l", n=heads).softmax(dim=2)
        return torch.baddbmm(bias, rearrange(table, "b n m l -> b l (n m)"), values)

    return attend_folded


def folding_is_faster(cells: int, channels: int, keys: int, heads: int) -> bool:
    """Whether `fold_projections` needs fewer multiplications than projecting, attending and projecting back."""
    return channels**2 + heads * keys * (channels + 2 * cells) < 2 * cells * (channels + keys)


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
