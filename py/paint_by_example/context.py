"""Changes inside attention layers: one exemplar per region, and three ways to make the hole attend to the rest of the image.

None of it is from the paper. Everything is off at 0, acts on the attention before its output projection, and works on any grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

#: Host attention: q [b, l, n d], k and v [b, m, n d] -> [b, l, n d], scaled by d ** -1/2.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
EXTRA = 8  # channels per head that carry the bias: one is used, eight keep fused kernels aligned
RING = 2  # latent cells around the hole whose statistics are taken


def regional_exemplars(base: Tensor, values: list[Tensor], masks: Tensor) -> Tensor:
    """What to add to the attention of one token so that other tokens take effect in their regions.

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


def context_biased_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, hole: Tensor, beta: float, attend: Attend) -> Tensor:
    """Self-attention in which positions in the hole attend more to positions outside of it: beta is added to those logits.

        softmax(q k^T / sqrt(d) + beta h (1 - h)^T) v

    The bias has rank one, so it is carried by extra channels and no l x l matrix is made.

    Args:
        k, v: [b, m, c], m >= l: the first l belong to the positions of the queries. Others come from other packs and receive no bias.
        hole: h, [b, l], 0..1.
    """
    d = q.shape[-1] // heads
    scale = ((d + EXTRA) / d) ** 0.5
    more_q = torch.zeros(*q.shape[:2], heads, EXTRA, dtype=q.dtype, device=q.device)
    more_k = torch.zeros(*k.shape[:2], heads, EXTRA, dtype=k.dtype, device=k.device)
    more_v = torch.zeros_like(more_k)
    more_q[..., 0] = (beta * d**0.5 * hole)[..., None].to(q)
    more_k[:, : q.shape[1], :, 0] = (1 - hole)[..., None].to(k)

    def widen(x: Tensor, more: Tensor) -> Tensor:
        return rearrange(torch.cat([x.unflatten(-1, (heads, d)), more], dim=-1), "b l n d -> b l (n d)")

    out = attend(widen(q, more_q) * scale, widen(k, more_k), widen(v, more_v))
    return rearrange(out.unflatten(-1, (heads, d + EXTRA))[..., :d], "b l n d -> b l (n d)")


def attend_with_reference(q: Tensor, k: Tensor, v: Tensor, bank_k: Tensor, bank_v: Tensor, attend: Attend) -> Tensor:
    """Self-attention that also attends to the same layer's keys and values of another image; all [b, l, c]."""
    return attend(q, torch.cat([k, bank_k.to(k)], dim=1), torch.cat([v, bank_v.to(v)], dim=1))


def ring_around(hole: Tensor) -> Tensor:
    """The latent cells around the hole: [b, h, w], 0..1 -> the same shape, 1 on the ring."""
    wide = F.max_pool2d(hole[:, None], 2 * RING + 1, stride=1, padding=RING)[:, 0]
    return (wide - hole).clamp(min=0)


def adain(x: Tensor, hole: Tensor, ring: Tensor) -> Tensor:
    """AdaIN: x [b, l, c] with each channel's mean and deviation in the hole replaced by those of the ring; hole and ring [b, l].

    A row without a ring (everything is hole) is returned unchanged.
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
