"""IFAdapter in one text attention layer: one attention per instance, fused into one map that is added to the layer's own attention.

    s_i = m_i softmax(q' k_i^T / sqrt(d)) v_i              q' and k_i normalised per head; 13 keys, no attention mask
    g_i = conv(CBAM(s_i))                                  one logit per cell; outside of instance i it is the convolution's bias b
    w_i = exp(g_i sigmoid(rho_i)) / Z                      rho_i = area of the union / area of i
    Z   = sum_j exp(g_j sigmoid(rho_j)) + p exp(b / 2)     p = 10 - n unused slots; their rho is 0, their logit b
    D   = sum_i w_i s_i                                    the instance semantic map
    out = attention + tanh(alpha) strength D               then the base layer's output projection

The published code masks keys with the lowest number, computes ten full maps and multiplies by m_i. m_i is the same for all keys, so
leaving it out of the softmax changes nothing; s_i is zero outside of its region, so only the rectangle around the region is computed
and an instance costs as much as its area; unused slots are the closed form p exp(b / 2). The results are equal.

Axes: b rows of the batch, r sets of tokens (unconditional, conditional), i instances, m tokens of one instance, h w the grid,
y x a rectangle in it, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .model import Injection

#: q [b, l, c], k and v [b, m, c] -> [b, l, c]; the function knows the number of heads.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Rectangle = tuple[int, int, int, int]  # top, bottom, left, right in cells, bottom and right excluded

FUSIONS = ("published code", "paper")
"""`published code`: what the published weights expect. `paper`: the area factor multiplies the weight after the softmax, with the sum of the
areas as its numerator (eq. 7), and only the instances that cover a cell compete for it, so that their weights sum to 1."""


def boxes_to_rectangles(boxes: Tensor, h: int, w: int) -> tuple[Rectangle, ...]:
    """The cells of each box, [i, 4] x0 y0 x1 y1 in 0..1: floor of its start, ceiling of its end, at least one.

    Computed in float32 as in the published code: whether 0.3 of 10 cells ends after 3 cells or after 4 depends on the last bit.
    """
    scaled = boxes.detach().cpu().float().clamp(0.0, 1.0) * torch.tensor([w, h, w, h], dtype=torch.float32)
    found = []
    for (left, top), (right, bottom) in zip(scaled[:, :2].floor().int().tolist(), scaled[:, 2:].ceil().int().tolist()):
        top, left = min(top, h - 1), min(left, w - 1)
        found.append((top, max(bottom, top + 1), left, max(right, left + 1)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class InstanceRegions:
    """The cells of every instance on one grid.

    Args:
        h, w: rows and columns of the grid.
        rectangles: what is computed for each instance.
        masks: [f, y, x] inside the rectangle, f is 1 or one per row of the batch; None where the instance fills its rectangle.
        area_ratio: rho_i = cells of the union / cells of i, [f, i] float32; at least 1.
        summed_area_ratio: the paper's numerator, the sum of all areas, over the cells of i, [f, i].
    """

    h: int
    w: int
    rectangles: tuple[Rectangle, ...]
    masks: tuple[Tensor | None, ...]
    area_ratio: Tensor
    summed_area_ratio: Tensor

    @classmethod
    def from_boxes(cls, boxes: Tensor, h: int, w: int, masks: Sequence[Tensor | None] | None = None) -> InstanceRegions:
        """Boxes [i, 4] in 0..1 on a grid; tensors stay on the boxes' device.

        Args:
            masks: for each instance None, or a mask on this grid [f, h, w] in 0..1 that replaces its box.
        """
        rectangles, cut = list(boxes_to_rectangles(boxes, h, w)), list(masks or [None] * len(boxes))
        if len(cut) != len(rectangles):
            raise ValueError(f"There are {len(rectangles)} boxes but {len(cut)} masks; give one mask or None for each box.")
        whole = []
        for index, mask in enumerate(cut):
            if mask is None:
                full = torch.zeros(1, h, w, device=boxes.device)
            else:
                full = mask.to(boxes.device, torch.float32)
                rectangles[index] = _bounding_rectangle(full, (h, w), index)
            top, bottom, left, right = rectangles[index]
            if mask is None:
                full[:, top:bottom, left:right] = 1.0
            else:
                cut[index] = full[:, top:bottom, left:right]
            whole.append(full)
        frames = max((full.shape[0] for full in whole), default=1)
        if any(full.shape[0] not in (1, frames) for full in whole):
            raise ValueError(
                f"Masks have {sorted({full.shape[0] for full in whole})} frames; they must have 1 or all the same number."
            )
        ratio = summed = torch.zeros(1, 0, device=boxes.device)
        if whole:
            maps = torch.stack([full.expand(frames, -1, -1) for full in whole], dim=1)  # [f, i, h, w]
            # The lower bound is for a frame in which a mask is empty: the instance covers no cell, its ratio must only be finite.
            areas = maps.sum(dim=(2, 3)).clamp(min=1e-3)
            ratio = maps.amax(dim=1).sum(dim=(1, 2))[:, None] / areas
            summed = areas.sum(dim=1, keepdim=True) / areas
        return cls(h, w, tuple(rectangles), tuple(cut), ratio, summed)

    @classmethod
    def from_rows(cls, boxes: Tensor, present: Tensor, h: int, w: int) -> InstanceRegions:
        """Boxes that differ from row to row, for training: [b, i, 4] in 0..1; `present` [b, i] bool is False for padding.

        Padding becomes what the unused slots are: it covers no cell and has a ratio of 0.
        """
        scaled = boxes.float().clamp(0.0, 1.0) * torch.tensor([w, h, w, h], dtype=torch.float32, device=boxes.device)
        last = torch.tensor([w - 1, h - 1], device=boxes.device)
        start = torch.minimum(scaled[..., :2].floor(), last)
        end = torch.maximum(scaled[..., 2:].ceil(), start + 1)
        inside = []
        for axis, cells in enumerate((w, h)):
            numbers = torch.arange(cells, device=boxes.device)
            inside.append((numbers >= start[..., axis, None]) & (numbers < end[..., axis, None]))
        maps = (inside[1][..., :, None] & inside[0][..., None, :] & present[..., None, None]).float()  # [b, i, h, w]
        areas = maps.sum(dim=(2, 3))
        some = present / areas.clamp(min=1.0)
        whole: Rectangle = (0, h, 0, w)
        ratio, summed = maps.amax(dim=1).sum(dim=(1, 2))[:, None] * some, areas.sum(dim=1, keepdim=True) * some
        return cls(h, w, (whole,) * maps.shape[1], tuple(maps.unbind(dim=1)), ratio, summed)

    def full_mask(self, index: int) -> Tensor:
        """m_i on the full grid, [f, h, w]."""
        top, bottom, left, right = self.rectangles[index]
        mask = self.masks[index]
        out = torch.zeros(1 if mask is None else mask.shape[0], self.h, self.w, device=self.area_ratio.device)
        out[:, top:bottom, left:right] = 1.0 if mask is None else mask
        return out


def _bounding_rectangle(mask: Tensor, grid: tuple[int, int], index: int) -> Rectangle:
    """The rectangle around everything in a mask [f, h, w]."""
    if mask.ndim != 3 or tuple(mask.shape[1:]) != grid:
        raise ValueError(
            f"The mask of instance {index + 1} has shape {tuple(mask.shape)}; needed is [frames, {grid[0]}, {grid[1]}]."
        )
    used = mask.amax(dim=0) > 0
    rows, columns = used.any(dim=1).nonzero().flatten().tolist(), used.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        raise ValueError(
            f"The mask of instance {index + 1} is empty on a grid of {grid[0]} x {grid[1]} cells. Paint a larger region."
        )
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Normalised keys, and values, of all instances in one layer, [r, i, m, c]; the same for every step of a run."""

    keys: Tensor
    values: Tensor

    def select_rows(self, rows: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """[b, i, m, c] for the rows of a batch, each with the index of its set, in the type and on the device of `like`."""
        # Stacked views instead of an index tensor: nothing is copied from the CPU to the device at every layer.
        return tuple(torch.stack([part[row] for row in rows]).to(like) for part in (self.keys, self.values))  # type: ignore[return-value]


def project_tokens(layer: Injection, tokens: Tensor) -> KeysValues:
    """Project the tokens of all instances, [r, i, m, token width] from `model.IFAdapter.conditional_and_unconditional_tokens`."""
    return KeysValues(*layer.keys_values(tokens))


def make_attention(heads: int) -> Attend:
    """Plain attention with this number of heads, for use outside of a host."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(each, "b l (n d) -> b n l d", n=heads) for each in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")

    return attention


def compute_instance_maps(
    layer: Injection,
    q: Tensor,
    projected: KeysValues,
    rows: Sequence[int],
    regions: InstanceRegions,
    attention: Attend | None = None,
) -> list[Tensor]:
    """s_i in the rectangle around each instance, [b, y, x, c].

    Args:
        q: the base layer's projected query [b, h * w, c], not normalised.
        projected: from `project_tokens`. rows: for each row of the batch the index of its tokens in `projected`.
        attention: the host's, for `layer.heads` heads; it scales by 1 / sqrt(width of a head).
    """
    if q.shape[1] != regions.h * regions.w:
        raise ValueError(f"The layer has {q.shape[1]} cells, but the regions are on a grid of {regions.h} x {regions.w}.")
    attention = attention or make_attention(layer.heads)
    grid = rearrange(layer.queries(q), "b (h w) c -> b h w c", h=regions.h)
    keys, values = projected.select_rows(rows, like=q)
    maps = []
    for index, (top, bottom, left, right) in enumerate(regions.rectangles):
        inside = rearrange(grid[:, top:bottom, left:right], "b y x c -> b (y x) c")
        s = rearrange(attention(inside, keys[:, index], values[:, index]), "b (y x) c -> b y x c", y=bottom - top)
        mask = regions.masks[index]
        maps.append(s if mask is None else s * mask[..., None].to(s))
    return maps


def compute_gate_logits(layer: Injection, maps: Sequence[Tensor], regions: InstanceRegions) -> tuple[Tensor, Tensor]:
    """g_i on the full grid, [b, i, h, w], and b, the logit of cells that an instance does not cover; both float32."""
    found = [layer.gate_logits(s, regions.h * regions.w) for s in maps]
    outside = found[0][1]
    logits = outside.expand(maps[0].shape[0], len(maps), regions.h, regions.w).clone()
    for index, ((top, bottom, left, right), (inside, _)) in enumerate(zip(regions.rectangles, found)):
        logits[:, index, top:bottom, left:right] = inside
    return logits, outside


def compute_slot_weights(
    logits: Tensor, outside: Tensor, regions: InstanceRegions, slots: int = 10, fusion: str = "published code"
) -> Tensor:
    """w_i, the weight of each instance in each cell: [b, i, h, w] from g_i of the same shape, float32.

    As in the published code the softmax runs over `slots` slots, or over all instances if they are more. Unused slots all have the logit
    b / 2 and enter the denominator only: with one box and a flat gate the weight is 1/10, not 1.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion is {fusion!r}; choose one of: {', '.join(FUSIONS)}.")
    if fusion == "paper":
        present = torch.stack([(regions.full_mask(i) > 0).expand(logits.shape[0], -1, -1) for i in range(logits.shape[1])], dim=1)
        # The lowest number instead of -inf: cells that no instance covers get finite weights, which s_i = 0 removes, not NaN.
        weights = logits.masked_fill(~present, torch.finfo(logits.dtype).min).softmax(dim=1)
        return weights * torch.sigmoid(regions.summed_area_ratio)[..., None, None]
    logits = logits * torch.sigmoid(regions.area_ratio)[..., None, None]
    total = logits.logsumexp(dim=1, keepdim=True)
    padding = slots - logits.shape[1]
    if padding > 0:
        total = torch.logaddexp(total, 0.5 * outside + math.log(padding))
    return (logits - total).exp()


def fuse_instance_maps(
    layer: Injection,
    q: Tensor,
    projected: KeysValues,
    rows: Sequence[int],
    regions: InstanceRegions,
    *,
    strengths: Sequence[float] | None = None,
    slots: int = 10,
    fusion: str = "published code",
    attention: Attend | None = None,
) -> Tensor:
    """The instance semantic map D, [b, h * w, c]; zero in cells that no instance covers.

    Args:
        q, projected, rows, regions, attention: see `compute_instance_maps`. slots, fusion: see `compute_slot_weights`.
        strengths: a factor per instance on what it adds; the weights w_i do not depend on it.
    """
    maps = compute_instance_maps(layer, q, projected, rows, regions, attention)
    fused = q.new_zeros(q.shape[0], regions.h, regions.w, q.shape[2])
    if maps:
        weights = compute_slot_weights(*compute_gate_logits(layer, maps, regions), regions, slots, fusion)
        for index, ((top, bottom, left, right), s) in enumerate(zip(regions.rectangles, maps)):
            factor = weights[:, index, top:bottom, left:right, None] * (1.0 if strengths is None else strengths[index])
            fused[:, top:bottom, left:right].addcmul_(s, factor.to(s))
    return rearrange(fused, "b h w c -> b (h w) c")


def compute_injection(
    layer: Injection,
    q: Tensor,
    projected: KeysValues,
    rows: Sequence[int],
    regions: InstanceRegions,
    *,
    strength: float = 1.0,
    strengths: Sequence[float] | None = None,
    slots: int = 10,
    fusion: str = "published code",
    attention: Attend | None = None,
) -> Tensor:
    """What is added to the layer's text attention before its output projection: tanh(alpha) strength D, [b, h * w, c].

    Args:
        strength: a factor on the whole; 1 is the published effect.
        The rest: see `fuse_instance_maps`.
    """
    fused = fuse_instance_maps(
        layer, q, projected, rows, regions, strengths=strengths, slots=slots, fusion=fusion, attention=attention
    )
    gate = torch.tanh(layer.alpha.to(fused.device, torch.float32)) * strength
    return gate.to(fused) * fused
