"""What is changed inside of attention layers: exemplars by region, and three ways in which the hole hears the rest of the picture.

None of it is in the paper. Everything is off at 0, works on the attention before its output projection, and takes any grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

#: Host attention: q [b, l, n d], k and v [b, m, n d] -> [b, l, n d], scaled by d ** -1/2.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
EXTRA = 8  # channels a head that carry the bias: one is used, eight keep fused kernels aligned
RING = 2  # cells around the hole whose statistics are taken


def gated(base: Tensor, values: list[Tensor], masks: Tensor) -> Tensor:
    """What to add to the attention of one token so that other tokens speak in their regions.

        sum_r w_r (v_r - base),    w_r = m_r prod_{s > r} (1 - m_s)

    Attention to one token is its value, so this is exactly the attention to each region's own token; a later region covers an earlier one.

    Args:
        base: [b, l, c], the attention so far. values: r of [1 or b, 1, c]. masks: [r, 1 or b, l], 0..1.
    """
    change = torch.zeros_like(base)
    uncovered = torch.ones_like(masks[0])
    for value, mask in zip(reversed(values), masks.flip(0)):
        change = change + (mask * uncovered)[..., None] * (value - base)
        uncovered = uncovered * (1 - mask)
    return change


def biased(q: Tensor, k: Tensor, v: Tensor, heads: int, hole: Tensor, beta: float, attend: Attend) -> Tensor:
    """Self-attention in which places of the hole look at places outside of it more: beta is added to those logits.

        softmax(q k^T / sqrt(d) + beta h (1 - h)^T) v

    The bias has rank one, so it is carried by extra channels and no l x l matrix is ever made.

    Args:
        k, v: [b, m, c], m >= l: the first l are the places of the queries. Others are somebody else's and neither hole nor known.
        hole: h, [b, l], 0..1.
    """
    d = q.shape[-1] // heads
    scale = ((d + EXTRA) / d) ** 0.5
    ask = torch.zeros(*q.shape[:2], heads, EXTRA, dtype=q.dtype, device=q.device)
    offer = torch.zeros(*k.shape[:2], heads, EXTRA, dtype=k.dtype, device=k.device)
    empty = torch.zeros_like(offer)
    ask[..., 0] = (beta * d**0.5 * hole)[..., None].to(q)
    offer[:, : q.shape[1], :, 0] = (1 - hole)[..., None].to(k)

    def widened(x: Tensor, more: Tensor) -> Tensor:
        return rearrange(torch.cat([x.unflatten(-1, (heads, d)), more], dim=-1), "b l n d -> b l (n d)")

    out = attend(widened(q, ask) * scale, widened(k, offer), widened(v, empty))
    return rearrange(out.unflatten(-1, (heads, d + EXTRA))[..., :d], "b l n d -> b l (n d)")


def with_reference(q: Tensor, k: Tensor, v: Tensor, bank_k: Tensor, bank_v: Tensor, attend: Attend) -> Tensor:
    """Self-attention that also reads the same layer of another picture; all [b, l, c]."""
    return attend(q, torch.cat([k, bank_k.to(k)], dim=1), torch.cat([v, bank_v.to(v)], dim=1))


def ring_of(hole: Tensor) -> Tensor:
    """The cells around the hole: [b, h, w], 0..1 -> the same, 1 on the ring."""
    wide = F.max_pool2d(hole[:, None], 2 * RING + 1, stride=1, padding=RING)[:, 0]
    return (wide - hole).clamp(min=0)


def restyled(x: Tensor, hole: Tensor, ring: Tensor) -> Tensor:
    """AdaIN: x [b, l, c] with the hole's mean and deviation of each channel made those of the ring; hole and ring [b, l].

    Where a row has no ring (everything is hole) it is returned as it is.
    """
    mean_in, std_in = _moments(x, hole)
    mean_out, std_out = _moments(x, ring)
    changed = (x - mean_in) / std_in * std_out + mean_out
    usable = ((hole.sum(dim=1) > 1) & (ring.sum(dim=1) > 1))[:, None, None]
    return torch.where(usable, changed.to(x.dtype), x)


def _moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    share = (weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6))[..., None].float()
    mean = (x.float() * share).sum(dim=1, keepdim=True)
    variance = ((x.float() - mean).square() * share).sum(dim=1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
