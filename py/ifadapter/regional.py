"""Masked regional attention with gated fusion: a map of instances without IFAdapter's weights.

IFAdapter (arXiv 2409.08240) adds to the text attention of a layer a fused map D of one attention per instance, with learned keys, values
and gates. This is a different, training-free method of the same structure: the base model's own projections of each phrase, and closed
formulas instead of the gates. Its images differ from IFAdapter's; the paper's numbers show what training adds.

    s_i   = softmax(q k_i^T / sqrt(d)) v_i                       q of the base layer; k_i, v_i of phrase i only
    m_i   = strength_i * cover_i * mask_i                        cover: the share of the cell inside the box, at least one cell's
    a_i   = m_i * (1 / area_i)^p                                 on overlaps the smaller box has more weight (paper: area ratio)
    w_i   = a_i / sum_j a_j * max_j m_j                          the weights of a cell sum to the largest m_j in it
    w_bg  = 1 - max_j [cell in box_j] * mask_j                   a phrase for all other cells, if there is one
    delta = strength * sum_i w_i (s_i - s_text)                  added to the text attention s_text

There is no attention mask: the queries of an instance are gathered, so its cost is proportional to its area and any attention kernel works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .instances import Box, Instance

#: q [b, l, c], k and v [b, m, c] -> [b, l, c]; the function knows the number of heads.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
View = tuple[float, float, float, float]  # the part of the image that a grid covers, x0 y0 x1 y1 in 0..1


@dataclass(frozen=True)
class Settings:
    """Every constant of the weight-free method.

    Args:
        small_wins: p above. At 0 overlapping instances are averaged, with large values only the smallest box counts.
        partial: weight of a cell that a box covers partly, as a power of the covered share. 0: every touched cell has full weight;
            1: the share, so that on coarse grids the effect does not reach beyond the box.
        edge_cells: width in cells over which a box's weight fades in from its border; 0 is a hard edge.
        quiet_outside: without a background phrase, how much cells outside of all boxes attend to an empty prompt instead of the prompt,
            so that the objects of the prompt do not appear there again; 0..1.
        separate: how much self-attention between different instances is reduced, subtracted from the logits; 0 leaves it unchanged.
        separate_outside: the same between an instance and the cells outside of all instances.
        separate_max_cells: self-attention is changed only on grids of at most this many cells, where the layout is decided at low cost.
    """

    small_wins: float = 2.0
    partial: float = 1.0
    quiet_outside: float = 0.0
    edge_cells: float = 0.0
    separate: float = 0.0
    separate_outside: float = 0.0
    separate_max_cells: int = 1024


def find_box_cells(box: Box, h: int, w: int) -> tuple[int, int, int, int]:
    """Rows and columns [top, bottom), [left, right) of a box on a grid: every cell it touches, at least one."""
    x0, y0, x1, y1 = box
    # 1e-6: rounding must not extend a border that is a multiple of a cell into the next cell.
    top, left = min(math.floor(y0 * h + 1e-6), h - 1), min(math.floor(x0 * w + 1e-6), w - 1)
    bottom, right = max(math.ceil(y1 * h - 1e-6), top + 1), max(math.ceil(x1 * w - 1e-6), left + 1)
    return top, min(bottom, h), left, min(right, w)


def crop_box_to_view(box: Box, view: View) -> Box | None:
    """The box in coordinates of a part of the image; None if it is outside of it."""
    vx0, vy0, vx1, vy1 = view
    x0, x1 = ((x - vx0) / (vx1 - vx0) for x in (box[0], box[2]))
    y0, y1 = ((y - vy0) / (vy1 - vy0) for y in (box[1], box[3]))
    x0, y0, x1, y1 = (min(max(n, 0.0), 1.0) for n in (x0, y0, x1, y1))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def compute_coverage(start: float, end: float, cells: int, length: float) -> Tensor:
    """[cells]: the share of each cell that lies between start and end (both 0..1).

    `length` is that of the whole box if only a part of it is visible; a box narrower than a cell has the full weight in it.
    """
    edges = torch.arange(cells + 1, dtype=torch.float64)
    share = (edges[1:].clamp(max=end * cells) - edges[:-1].clamp(min=start * cells)).clamp(min=0.0)
    return (share / min(1.0, max(length * cells, 1e-12))).clamp(max=1.0).float()


def instance_mask(instance: Instance, h: int, w: int, view: View, settings: Settings) -> Tensor:
    """m_i without its strength: [f, h, w], float32, 0..1."""
    if instance.mask is not None:  # a mask replaces its box
        return crop_mask_to_view(instance.mask, h, w, view)
    found = torch.zeros(1, h, w)
    box = crop_box_to_view(instance.box, view)
    if box is None:
        return found
    top, bottom, left, right = find_box_cells(box, h, w)
    rows, columns = _fade(bottom - top, settings.edge_cells), _fade(right - left, settings.edge_cells)
    if settings.partial > 0:
        whole, (vx0, vy0, vx1, vy1) = instance.box, view
        rows = rows * compute_coverage(box[1], box[3], h, (whole[3] - whole[1]) / (vy1 - vy0))[top:bottom] ** settings.partial
        columns = (
            columns * compute_coverage(box[0], box[2], w, (whole[2] - whole[0]) / (vx1 - vx0))[left:right] ** settings.partial
        )
    found[:, top:bottom, left:right] = rearrange(rows, "h -> h 1") * columns
    return found


def crop_mask_to_view(mask: Tensor, h: int, w: int, view: View) -> Tensor:
    """A mask [f, h', w'] of the whole image on the grid of a part of it: [f, h, w]."""
    top, bottom, left, right = find_box_cells(view, *mask.shape[-2:])
    part = rearrange(mask[:, top:bottom, left:right], "f h w -> f 1 h w")
    part = F.adaptive_avg_pool2d(part, (h, w)) if part.shape[-2] >= h and part.shape[-1] >= w else F.interpolate(part, (h, w))
    return rearrange(part, "f 1 h w -> f h w")


def instance_masks(instances: Sequence[Instance], h: int, w: int) -> Tensor:
    """[i, h, w], float32, 0..1: the region of each instance in an image of h x w pixels, the union over the frames of its mask."""
    masks = [instance_mask(instance, h, w, (0.0, 0.0, 1.0, 1.0), Settings()).amax(dim=0) for instance in instances]
    return torch.stack(masks) if masks else torch.zeros(0, h, w)


def _fade(cells: int, edge: float) -> Tensor:
    """[cells]: weights that rise to 1 within `edge` cells from both ends."""
    if edge <= 0:
        return torch.ones(cells)
    inwards = torch.arange(cells) + 0.5
    return (torch.minimum(inwards, inwards.flip(0)) / edge).clamp(max=1.0)


def fusion_weights(
    instances: Sequence[Instance],
    h: int,
    w: int,
    *,
    background: float,
    view: View = (0.0, 0.0, 1.0, 1.0),
    settings: Settings = Settings(),
) -> Tensor:
    """w_i (and w_bg last, if `background` is above 0) of every cell: [f, i, h, w], float32.

    f is the largest number of frames among the masks; `background` is the weight of the background phrase, 0..1.
    """
    masks = [instance_mask(instance, h, w, view, settings) for instance in instances]
    frames = max((mask.shape[0] for mask in masks), default=1)
    if not masks:
        return torch.full((1, 1, h, w), background) if background > 0 else torch.zeros(1, 0, h, w)
    cover = torch.stack([mask.expand(frames, h, w) for mask in masks], dim=1)
    strength = torch.tensor([float(instance.strength) for instance in instances])
    m = cover * rearrange(strength, "i -> i 1 1")
    area = torch.tensor([(i.box[2] - i.box[0]) * (i.box[3] - i.box[1]) for i in instances])
    # Only ratios matter; with the smallest box as the unit the power cannot overflow.
    a = m * rearrange((area.min() / area) ** settings.small_wins, "i -> i 1 1")
    total = a.sum(dim=1, keepdim=True)
    weights = a / total.clamp(min=1e-12) * m.amax(dim=1, keepdim=True)
    if background > 0:
        weights = torch.cat([weights, background * (1.0 - cover.amax(dim=1, keepdim=True))], dim=1)
    return weights


@dataclass(frozen=True, eq=False)
class Group:
    """Instances whose attention is computed in one call: same number of phrase tokens, similar size.

    Args:
        members: [i] indices of the instances.
        cells: [i, l] the cells of each of them, padded with cell 0.
        touched: [u] the cells of all of them, each once.
        source: [u, k] for each touched cell, the indices of its up to k results in the flattened (i l), padded with 0.
        weights: [f, u, k] their fusion weights, 0 in the padding.
    """

    members: Tensor
    cells: Tensor
    touched: Tensor
    source: Tensor
    weights: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Group:
        members, cells, touched, source = (t.to(device) for t in (self.members, self.cells, self.touched, self.source))
        return Group(members, cells, touched, source, self.weights.to(device, dtype))


def plan_groups(weights: Tensor, lengths: Sequence[int]) -> list[Group]:
    """Plan which cells of one grid attend to which phrase.

    Args:
        weights: [f, i, h, w] from `fusion_weights`.
        lengths: number of phrase tokens of each of the i.

    Returns:
        Groups with little padding: in each of them no instance has less than half as many cells as the largest.
    """
    flat = rearrange(weights, "f i h w -> f i (h w)")
    cells = [used.nonzero().flatten() for used in (flat > 0).any(dim=0)]
    order = sorted((i for i in range(len(cells)) if len(cells[i])), key=lambda i: (lengths[i], -len(cells[i])))
    batches: list[list[int]] = []
    for i in order:
        first = batches[-1][0] if batches else None
        if first is not None and lengths[i] == lengths[first] and 2 * len(cells[i]) >= len(cells[first]):
            batches[-1].append(i)
        else:
            batches.append([i])
    return [_group(batch, cells, flat) for batch in batches]


def _group(batch: list[int], cells: list[Tensor], flat: Tensor) -> Group:
    longest = max(len(cells[i]) for i in batch)
    padded = torch.stack([F.pad(cells[i], (0, longest - len(cells[i]))) for i in batch])
    # Every (cell, source) pair, sorted by cell; the rank within its cell is its column in `source`.
    cell = torch.cat([cells[i] for i in batch])
    source = torch.cat([torch.arange(len(cells[i])) + row * longest for row, i in enumerate(batch)])
    weight = torch.cat([flat[:, i, cells[i]] for i in batch], dim=1)
    cell, order = cell.sort(stable=True)
    touched, where, count = cell.unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(cell)) - (count.cumsum(0) - count)[where]
    sources = torch.zeros(len(touched), int(count.max()), dtype=torch.long)
    sources[where, rank] = source[order]
    weights = torch.zeros(flat.shape[0], *sources.shape)
    weights[:, where, rank] = weight[:, order]
    return Group(torch.tensor(batch), padded, touched, sources, weights)


def regional_change(
    q: Tensor,
    text: Tensor,
    groups: Sequence[Group],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    frames: Sequence[int],
    attend: Attend,
) -> Tensor:
    """sum_i w_i (s_i - s_text) for some rows of one layer.

    Args:
        q: [b, l, c] the layer's queries. text: [b, l, c] its text attention.
        groups: of this layer's grid, on q's device and in its dtype.
        keys, values: per group [i, m, c], the layer's projections of each member's phrase.
        frames: b numbers, the frame of the masks that each row uses.
        attend: the host's attention.

    Returns:
        [b, l, c] in q's dtype, 0 in cells without an instance.
    """
    b = q.shape[0]
    change = torch.zeros_like(text)
    for group, k, v in zip(groups, keys, values):
        i = len(group.members)
        gathered = rearrange(q[:, group.cells], "b i l c -> (b i) l c")
        s = attend(gathered, repeat(k, "i m c -> (b i) m c", b=b), repeat(v, "i m c -> (b i) m c", b=b))
        s = rearrange(s, "(b i) l c -> b (i l) c", i=i)
        weights = group.weights if group.weights.shape[0] == 1 else group.weights[list(frames)]
        old = text[:, group.touched]
        new = torch.zeros_like(old)
        for column in range(group.source.shape[1]):
            new += weights[:, :, column, None] * (s[:, group.source[:, column]] - old)
        change[:, group.touched] += new
    return change


def owners(weights: Tensor, instances: int) -> Tensor:
    """[f, h w]: the instance with the largest weight in each cell, -1 outside of all. `weights` [f, i, h, w] may have a background last."""
    flat = rearrange(weights[:, :instances], "f i h w -> f i (h w)")
    strongest, owner = flat.max(dim=1)
    return torch.where(strongest > 0, owner, -1)


def attend_by_owner(q: Tensor, k: Tensor, v: Tensor, heads: int, owner: Tensor, settings: Settings, attend: Attend) -> Tensor:
    """Self-attention in which cells of different instances attend to each other less.

        softmax((q k^T + bias) / sqrt(d)) v        bias[x, y] = -separate          if x and y are in different instances
                                                              = -separate_outside  if exactly one of them is outside of all

    The bias is never a tensor of l * l: it is a product of a few additional channels of q and k, one per region, so any attention
    kernel computes it exactly without a mask. v is padded with zeros and the result cut off.

    Args:
        q, k, v: [b, l, c]. owner: [b, l] from `owners`.
        attend: the host's attention for `heads` heads, whatever their width; it scales by 1 / sqrt(width).

    Returns:
        [b, l, c].
    """
    d = q.shape[-1] // heads
    regions = int(owner.max()) + 2  # the last one is outside
    table = torch.full((regions, regions), -settings.separate)
    table[-1, :] = table[:, -1] = -settings.separate_outside
    table.fill_diagonal_(0.0)
    extra = -(-regions // 8) * 8  # kernels are fastest at widths that are multiples of 8
    width = d + extra
    region = F.one_hot(torch.where(owner < 0, regions - 1, owner), regions).to(q)
    q_extra = (region @ table.to(q)) * math.sqrt(width)
    wide = [
        _widened(q * math.sqrt(width / d), q_extra, heads, extra),
        _widened(k, region, heads, extra),
        _widened(v, region[..., :0], heads, extra),
    ]
    out = rearrange(attend(*wide), "b l (n w) -> b l n w", n=heads)
    return rearrange(out[..., :d], "b l n d -> b l (n d)")


def _widened(x: Tensor, channels: Tensor, heads: int, extra: int) -> Tensor:
    """[b, l, n d] and [b, l, r] for every head -> [b, l, n (d + extra)]."""
    x = rearrange(x, "b l (n d) -> b l n d", n=heads)
    channels = repeat(F.pad(channels, (0, extra - channels.shape[-1])), "b l r -> b l n r", n=heads)
    return rearrange(torch.cat([x, channels], dim=-1), "b l n w -> b l (n w)")
