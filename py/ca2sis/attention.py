"""Which class each pixel reads (CA2-SIS): in the generator, its maps and the loss that made it class-adaptive; and inside Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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


def folded(k: Tensor, v: Tensor, channels: int, heads: int, to_q: nn.Module, to_out: nn.Module) -> Callable[[Tensor], Tensor]:
    """x [b, l, channels] -> to_out(softmax(to_q(x) k^T / sqrt(d)) v), both projections folded into the few keys and values.

        softmax(x A^T) B,   A = k W_q / sqrt(d),   B = v W_out^T        head by head

    x is multiplied by n m columns instead of n d twice. The places are the innermost axis of the table, so that its softmax runs over
    vectors of them. The layers are called, their weights never read: they may be kept elsewhere or in another type.

    Args:
        k, v: [b, m, n d], n = heads. to_q: without a bias.
    """
    d = k.shape[-1] // heads
    weight = rearrange(to_q(torch.eye(channels, dtype=k.dtype, device=k.device)), "c (n d) -> n d c", n=heads)
    keys = rearrange(rearrange(k * d**-0.5, "b m (n d) -> b n m d", n=heads) @ weight, "b n m c -> b (n m) c")
    own = torch.eye(heads, dtype=v.dtype, device=v.device)
    apart = torch.einsum("bmnd,nj->bnmjd", rearrange(v, "b m (n d) -> b m n d", n=heads), own)
    bias = to_out(v.new_zeros(1, v.shape[-1]))
    values = to_out(rearrange(apart, "b n m j d -> b (n m) (j d)")) - bias

    def read(x: Tensor) -> Tensor:
        table = rearrange(keys @ x.mT, "b (n m) l -> b n m l", n=heads).softmax(dim=2)
        return torch.baddbmm(bias, rearrange(table, "b n m l -> b l (n m)"), values)

    return read


def folding_pays(places: int, channels: int, keys: int, heads: int) -> bool:
    """Whether `folded` multiplies less than projecting, attending and projecting back."""
    return channels**2 + heads * keys * (channels + 2 * places) < 2 * places * (channels + keys)


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


# Inside Stable Diffusion: an extension of ours, inspired by the paper's one token set per class. It uses none of its weights.

#: How the texts of the classes are joined: in one softmax with a bias by class, or each in its own, averaged by place.
VARIANTS: tuple[str, ...] = ("one softmax", "couple")
#: A log weight that no softmax can see. Infinities make NaN in some fused kernels, and half precision ends at 65504.
NEVER = -1e4
#: The share of a cell that a class needs for the cell to be its own.
OWN_CELL = 0.75
#: Queries a slice where a bias of every pair of places is needed: its table is slice x places at most.
PLACES = 1024

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def soft_masks(labels: Tensor, groups: Sequence[Sequence[int]], grid: tuple[int, int]) -> Tensor:
    """m_r(p): which share of each cell belongs to each group of labels, [f, r, h, w] float32 in 0..1.

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
    """Which groups have a cell on this grid that is theirs for at least OWN_CELL of its area: masks [f, r, h, w] -> [f, r] bool."""
    return masks.amax(dim=(2, 3)) >= OWN_CELL


def early_gain(sigma: float, early: float) -> float:
    """What the effect is multiplied by: `early` at pure noise, 1 at the picture, in between by the share of noise s^2 / (1 + s^2).

    The layout is decided while the latent is mostly noise. A base model has never seen a place with a text of its own and goes only a
    part of the way; beyond 1 it is led further in the same direction, as classifier-free guidance does.
    """
    return 1 + (early - 1) * min(1.0, sigma**2 / (1 + sigma**2))


def class_weights(masks: Tensor, leak: float, base_weight: float, weights: Sequence[float] = ()) -> Tensor:
    """How much each place wants to read the base text (first) and each group's text.

        w_r(p) = weight_r (leak + (1 - leak) m_r(p))
        w_0(p) = max(base_weight, 1 - sum_r m_r(p))         a place without a class reads the base

    Args:
        masks: m_r, [f, r, h, w] in 0..1.
        leak: 0 only the own class, 1 every text everywhere (the prompts joined into one).

    Returns:
        [f, 1 + r, h, w].
    """
    own = leak + (1 - leak) * masks
    if len(weights):
        own = own * torch.tensor(weights, device=masks.device, dtype=masks.dtype)[:, None, None]
    uncovered = (1 - masks.sum(dim=1, keepdim=True)).clamp(0, 1)
    return torch.cat([uncovered.clamp_min(base_weight), own], dim=1)


def log_weights(weights: Tensor) -> Tensor:
    """The bias of a softmax that weights w give, finite."""
    return weights.log().clamp_min(NEVER)


def adaptive_attention(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], weights: Tensor, variant: str, attend: Attend
) -> Tensor:
    """Every place reads the texts by its weights; the base is the first of them.

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


def reading_shares(q: Tensor, keys: Sequence[Tensor], weights: Tensor, heads: int, variant: str) -> Tensor:
    """How much of what a place reads comes from each text, mean over heads: [b, r, l] float32, sums to 1 over r."""
    if variant == "couple":
        shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return shares.float().expand(q.shape[0], -1, -1)
    lengths = [k.shape[1] for k in keys]
    bias, joined = token_bias(weights, lengths).float(), torch.cat(list(keys), dim=1)
    d = q.shape[-1] // heads
    total = torch.zeros(q.shape[0], len(lengths), q.shape[1], device=q.device)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        read = (q[..., part].float() @ joined[..., part].float().mT * d**-0.5 + bias).softmax(dim=-1)
        total += torch.stack([tokens.sum(dim=-1) for tokens in read.split(lengths, dim=-1)], dim=1)
    return total / heads


def isolated_attention(q: Tensor, k: Tensor, v: Tensor, masks: Tensor, isolate: float, attend: Attend) -> Tensor:
    """Self-attention in which places of different classes see each other less.

        softmax(q k^T / sqrt(d) + log(1 - isolate (1 - same(p, p')))) v,   same = sum_r m_r(p) m_r(p')

    Args:
        q, k, v: [b, l, c]. masks: [b or 1, r, l] in 0..1; what no group covers is one more group.
        isolate: 0 plain self-attention, 1 none across classes.
    """
    rest = (1 - masks.sum(dim=1, keepdim=True)).clamp(0, 1)
    owner = F.normalize(torch.cat([masks, rest], dim=1), dim=1)  # so that a place at a border is the same as itself
    parts = []
    for first in range(0, q.shape[1], PLACES):
        rows = slice(first, first + PLACES)
        same = torch.einsum("brl,brm->blm", owner[..., rows], owner).clamp(0, 1)
        parts.append(attend(q[:, rows], k, v, log_weights(1 - isolate * (1 - same)).to(q.dtype)))
    return torch.cat(parts, dim=1)
