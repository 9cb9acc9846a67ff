"""Class-adaptive attention inside Stable Diffusion: every latent cell attends mostly to its class's text.

An extension inspired by CA2-SIS's one token set per class; it uses none of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

#: How the texts of the classes are joined: in one softmax with a bias by class, or each in its own, averaged by place.
VARIANTS: tuple[str, ...] = ("one softmax", "couple")
#: A log weight that is zero after any softmax. Infinities make NaN in some fused kernels, and half precision ends at 65504.
NEVER = -1e4
#: The share of a latent cell that a class must cover for the cell to count as the class's own.
OWN_CELL = 0.75
#: Queries per slice where every pair of cells has a bias: the bias is at most slice x cells.
QUERY_SLICE = 1024

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def soft_masks(labels: Tensor, groups: Sequence[Sequence[int]], grid: tuple[int, int]) -> Tensor:
    """m_r(p): the share of each latent cell that each group of labels covers, [f, r, h, w] float32 in 0..1.

    Args:
        labels: [f, H, W] uint8. groups: the labels of each of r groups.
        grid: h, w. Smaller than the map: the mean of a cell's pixels; larger: bilinear.
    """
    down = grid[0] <= labels.shape[-2] and grid[1] <= labels.shape[-1]
    masks = []
    for group in groups:
        member = torch.zeros(256, device=labels.device)
        member[list(group)] = 1.0
        mask = member[labels.int()][:, None]
        masks.append(F.adaptive_avg_pool2d(mask, grid) if down else F.interpolate(mask, grid, mode="bilinear"))
    return torch.cat(masks, dim=1).clamp(0, 1)


def classes_with_own_cell(masks: Tensor) -> Tensor:
    """Which groups cover at least OWN_CELL of some cell of this grid: masks [f, r, h, w] -> [f, r] bool."""
    return masks.amax(dim=(2, 3)) >= OWN_CELL


def noise_share(sigma: float, is_flow: bool = False) -> float:
    """The share of noise in the variance of a latent of unit variance, 0 to 1.

    s^2 / (1 + s^2)              image + s noise (eps and v prediction)
    s^2 / (s^2 + (1 - s)^2)      (1 - s) image + s noise (rectified flow)
    """
    signal = 1 - sigma if is_flow else 1.0
    return min(1.0, sigma**2 / (signal**2 + sigma**2))


def early_gain(sigma: float, early: float, is_flow: bool = False) -> float:
    """Factor of the effect: `early` at pure noise, 1 at the clean image, in between by the share of noise.

    The layout is decided while the latent is mostly noise. A base model was never trained on regional text and follows it only
    partly; a factor above 1 extrapolates in the same direction, as classifier-free guidance does.
    """
    return 1 + (early - 1) * noise_share(sigma, is_flow)


def class_weights(masks: Tensor, leak: float, base_weight: float, weights: Sequence[float] = ()) -> Tensor:
    """The attention weight of the base text (first) and of each group's text at each cell.

        w_r(p) = weight_r (leak + (1 - leak) m_r(p))
        w_0(p) = max(base_weight, 1 - sum_r m_r(p))         a cell without a class attends to the base

    Args:
        masks: m_r, [f, r, h, w] in 0..1.
        leak: cross-class weight; 0 only the own class, 1 every text everywhere (the prompts joined into one).

    Returns:
        [f, 1 + r, h, w].
    """
    own = leak + (1 - leak) * masks
    if len(weights):
        own = own * torch.tensor(weights, device=masks.device, dtype=masks.dtype)[:, None, None]
    uncovered = (1 - masks.sum(dim=1, keepdim=True)).clamp(0, 1)
    return torch.cat([uncovered.clamp_min(base_weight), own], dim=1)


def log_weights(weights: Tensor) -> Tensor:
    """log w as a finite attention bias."""
    return weights.log().clamp_min(NEVER)


def adaptive_attention(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], weights: Tensor, variant: str, attend: Attend
) -> Tensor:
    """Attention to several texts with a weight per cell and text; the base is the first text.

        one softmax:   softmax_{j in all texts}(q k_j / sqrt(d) + log w_r(j)(p)) v_j
        couple:        sum_r w_r(p) softmax_{j in r}(q k_j / sqrt(d)) v_j / sum_r w_r(p)

    Args:
        q: [b, l, c]. keys, values: one [b, m_r, c] a text, of any lengths.
        weights: w, [b or 1, r, l].
        attend: (q, k, v, additive mask [b or 1, l, m] or None) -> [b, l, c].

    Returns:
        [b, l, c].
    """
    if variant == "couple":
        share = (weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)).to(q.dtype)
        parts = (attend(q, k, v, None) * share[:, r, :, None] for r, (k, v) in enumerate(zip(keys, values)))
        return torch.stack(list(parts)).sum(dim=0)
    bias = token_bias(weights, [k.shape[1] for k in keys]).to(q.dtype)
    return attend(q, torch.cat(list(keys), dim=1), torch.cat(list(values), dim=1), bias)


def token_bias(weights: Tensor, lengths: Sequence[int]) -> Tensor:
    """log w_r(p) for each token of each text: [b, r, l] -> [b, l, sum of lengths]."""
    counts = torch.tensor(list(lengths), device=weights.device)
    return rearrange(log_weights(weights), "b r l -> b l r").repeat_interleave(counts, dim=-1)


def attention_shares(q: Tensor, keys: Sequence[Tensor], weights: Tensor, heads: int, variant: str) -> Tensor:
    """The share of each cell's attention that goes to each text, mean over heads: [b, r, l] float32, sums to 1 over r."""
    if variant == "couple":
        shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return shares.float().expand(q.shape[0], -1, -1)
    lengths = [k.shape[1] for k in keys]
    bias, joined = token_bias(weights, lengths).float(), torch.cat(list(keys), dim=1)
    d = q.shape[-1] // heads
    total = torch.zeros(q.shape[0], len(lengths), q.shape[1], device=q.device)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        attention = (q[..., part].float() @ joined[..., part].float().mT * d**-0.5 + bias).softmax(dim=-1)
        total += torch.stack([tokens.sum(dim=-1) for tokens in attention.split(lengths, dim=-1)], dim=1)
    return total / heads


def isolated_attention(q: Tensor, k: Tensor, v: Tensor, masks: Tensor, isolate: float, attend: Attend) -> Tensor:
    """Self-attention with less weight between cells of different classes.

        softmax(q k^T / sqrt(d) + log(1 - isolate (1 - same(p, p')))) v,   same = sum_r m_r(p) m_r(p')

    Args:
        q, k, v: [b, l, c]. masks: [b or 1, r, l] in 0..1; what no group covers forms one more group.
        isolate: 0 plain self-attention, 1 none across classes.
    """
    rest = (1 - masks.sum(dim=1, keepdim=True)).clamp(0, 1)
    owner = F.normalize(torch.cat([masks, rest], dim=1), dim=1)  # unit length, so that a cell at a border has same(p, p) = 1
    parts = []
    for first in range(0, q.shape[1], QUERY_SLICE):
        rows = slice(first, first + QUERY_SLICE)
        same = torch.einsum("brl,brm->blm", owner[..., rows], owner).clamp(0, 1)
        parts.append(attend(q[:, rows], k, v, log_weights(1 - isolate * (1 - same)).to(q.dtype)))
    return torch.cat(parts, dim=1)
