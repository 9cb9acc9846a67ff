"""IFAdapter in one attention layer: an attention per instance, fused into one map that is added to the text attention.

    s_i = m_i softmax(q' k_i^T / sqrt(d)) v_i              q' and k_i normalised per head; 13 keys, no attention mask
    g_i = conv(CBAM(s_i))                                  one logit a cell; outside of instance i the convolution's bias b
    w_i = exp(g_i sigmoid(rho_i)) / Z                      rho_i = area of the union / area of i
    Z   = sum_j exp(g_j sigmoid(rho_j)) + p exp(b / 2)     p = 10 - n unused slots; their rho is 0, their logit b
    D   = sum_i w_i s_i
    out = attention + tanh(alpha) strength D               then the base layer's output projection

The published code masks keys with the lowest number, computes ten whole maps and multiplies by m_i. m_i is the same for all keys, so
leaving it out of the softmax changes nothing; s_i is zero outside of its place, so only the rectangle around the place is computed,
and an instance costs its own area; padding is the closed form p exp(b / 2). Results are equal.

Axes: b rows of the batch, r row sets (uncond, cond), i instances, m tokens of one, h w the grid, y x a rectangle of it, c channels.
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

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [b, l, c], k and v [b, m, c] -> [b, l, c], heads known to the function
Rectangle = tuple[int, int, int, int]  # top, bottom, left, right in cells, bottom and right excluded

FORMS = ("code", "paper")
"""`code`: what the published weights expect. `paper`: the area factor after the softmax with the sum of the areas as numerator
(eq. 7), and only the instances present at a cell compete for it, so that their weights sum to 1."""


def touched_cells(boxes: Tensor, h: int, w: int) -> tuple[Rectangle, ...]:
    """The cells of each box, [i, 4] x0 y0 x1 y1 in 0..1: floor of its start, ceiling of its end, at least one.

    In float32 as upstream: 0.3 of 10 cells ends after 3 cells or after 4 depending on the last bit.
    """
    scaled = boxes.detach().cpu().float().clamp(0.0, 1.0) * torch.tensor([w, h, w, h], dtype=torch.float32)
    found = []
    for (left, top), (right, bottom) in zip(scaled[:, :2].floor().int().tolist(), scaled[:, 2:].ceil().int().tolist()):
        top, left = min(top, h - 1), min(left, w - 1)
        found.append((top, max(bottom, top + 1), left, max(right, left + 1)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Places:
    """Where the instances are on one grid. Made once for each grid by `on_grid`.

    Args:
        h, w: the grid; any rectangle.
        rectangles: what is computed of each instance.
        masks: [f, y, x] inside of the rectangle, f is 1 or one per row of the batch; None where all of it is the instance's.
        area_ratio: rho_i = cells of the union / cells of i, [f, i] float32; at least 1.
        area_sum_ratio: the paper's numerator, the sum of all areas, [f, i].
    """

    h: int
    w: int
    rectangles: tuple[Rectangle, ...]
    masks: tuple[Tensor | None, ...]
    area_ratio: Tensor
    area_sum_ratio: Tensor

    @classmethod
    def on_grid(cls, boxes: Tensor, h: int, w: int, masks: Sequence[Tensor | None] | None = None) -> Places:
        """Boxes [i, 4] in 0..1 on a grid; tensors stay on the boxes' device.

        Args:
            masks: per instance None, or a mask on this grid [f, h, w] in 0..1 that takes the place of its box.
        """
        rectangles, cut = list(touched_cells(boxes, h, w)), list(masks or [None] * len(boxes))
        if len(cut) != len(rectangles):
            raise ValueError(f"There are {len(rectangles)} boxes but {len(cut)} masks; give one per box, or None in its place.")
        whole = []
        for place, mask in enumerate(cut):
            if mask is None:
                full = torch.zeros(1, h, w, device=boxes.device)
            else:
                full = mask.to(boxes.device, torch.float32)
                rectangles[place] = _around(full, (h, w), place)
            top, bottom, left, right = rectangles[place]
            if mask is None:
                full[:, top:bottom, left:right] = 1.0
            else:
                cut[place] = full[:, top:bottom, left:right]
            whole.append(full)
        frames = max((full.shape[0] for full in whole), default=1)
        if any(full.shape[0] not in (1, frames) for full in whole):
            raise ValueError(
                f"Masks have {sorted({full.shape[0] for full in whole})} frames; they must have 1 or all the same number."
            )
        ratio = summed = torch.zeros(1, 0, device=boxes.device)
        if whole:
            maps = torch.stack([full.expand(frames, -1, -1) for full in whole], dim=1)  # [f, i, h, w]
            # The floor is for a frame in which a mask is empty: its instance is nowhere, its ratio must only be finite.
            areas = maps.sum(dim=(2, 3)).clamp(min=1e-3)
            ratio = maps.amax(dim=1).sum(dim=(1, 2))[:, None] / areas
            summed = areas.sum(dim=1, keepdim=True) / areas
        return cls(h, w, tuple(rectangles), tuple(cut), ratio, summed)

    @classmethod
    def of_rows(cls, boxes: Tensor, present: Tensor, h: int, w: int) -> Places:
        """Boxes that differ from row to row, for training: [b, i, 4] in 0..1, of which `present` [b, i] bool are there.

        Absent ones become what the unused slots are: nowhere, with a ratio of 0.
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

    def whole(self, place: int) -> Tensor:
        """m_i on the whole grid, [f, h, w]."""
        top, bottom, left, right = self.rectangles[place]
        mask = self.masks[place]
        out = torch.zeros(1 if mask is None else mask.shape[0], self.h, self.w, device=self.area_ratio.device)
        out[:, top:bottom, left:right] = 1.0 if mask is None else mask
        return out


def _around(mask: Tensor, grid: tuple[int, int], place: int) -> Rectangle:
    """The rectangle around everything in a mask [f, h, w]."""
    if mask.ndim != 3 or tuple(mask.shape[1:]) != grid:
        raise ValueError(
            f"The mask of instance {place + 1} has shape {tuple(mask.shape)}; needed is [frames, {grid[0]}, {grid[1]}]."
        )
    used = mask.amax(dim=0) > 0
    rows, columns = used.any(dim=1).nonzero().flatten().tolist(), used.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        raise ValueError(
            f"The mask of instance {place + 1} is empty on a grid of {grid[0]} x {grid[1]} cells. Paint a larger place."
        )
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys (normalised) and values of all instances in one layer, [r, i, m, c]; the same for every step of a run."""

    keys: Tensor
    values: Tensor

    def of_rows(self, rows: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """[b, i, m, c] for the rows of a batch, each naming its set, in the type and on the device of `like`."""
        # Stacked views instead of an index tensor: nothing is copied from the CPU to the device at every layer.
        return tuple(torch.stack([part[row] for row in rows]).to(like) for part in (self.keys, self.values))  # type: ignore[return-value]


def prepare(layer: Injection, tokens: Tensor) -> KeysValues:
    """Project the tokens of all instances, [r, i, m, token width] from `model.IFAdapter.row_sets`, once per run."""
    return KeysValues(*layer.keys_values(tokens))


def attend(heads: int) -> Attend:
    """Plain attention in so many heads; the host has its own."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(each, "b l (n d) -> b n l d", n=heads) for each in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")

    return attention


def instance_maps(
    layer: Injection, q: Tensor, known: KeysValues, rows: Sequence[int], places: Places, attention: Attend | None = None
) -> list[Tensor]:
    """s_i in the rectangle around each instance, [b, y, x, c].

    Args:
        q: the base layer's projected query [b, h * w, c], not normalised.
        known: from `prepare`. rows: for each row of the batch its row set.
        attention: the host's, for `layer.heads` heads; it scales by 1 / sqrt(width of a head).
    """
    if q.shape[1] != places.h * places.w:
        raise ValueError(f"The layer has {q.shape[1]} cells, but the places are for a grid of {places.h} x {places.w}.")
    attention = attention or attend(layer.heads)
    grid = rearrange(layer.queries(q), "b (h w) c -> b h w c", h=places.h)
    keys, values = known.of_rows(rows, like=q)
    maps = []
    for place, (top, bottom, left, right) in enumerate(places.rectangles):
        inside = rearrange(grid[:, top:bottom, left:right], "b y x c -> b (y x) c")
        s = rearrange(attention(inside, keys[:, place], values[:, place]), "b (y x) c -> b y x c", y=bottom - top)
        mask = places.masks[place]
        maps.append(s if mask is None else s * mask[..., None].to(s))
    return maps


def gate_maps(layer: Injection, maps: Sequence[Tensor], places: Places) -> tuple[Tensor, Tensor]:
    """g_i on the whole grid, [b, i, h, w], and b, the logit wherever an instance is not; both float32."""
    found = [layer.gate_logits(s, places.h * places.w) for s in maps]
    outside = found[0][1]
    logits = outside.expand(maps[0].shape[0], len(maps), places.h, places.w).clone()
    for place, ((top, bottom, left, right), (inside, _)) in enumerate(zip(places.rectangles, found)):
        logits[:, place, top:bottom, left:right] = inside
    return logits, outside


def slot_weights(logits: Tensor, outside: Tensor, places: Places, slots: int = 10, form: str = "code") -> Tensor:
    """w_i, which instance has how much of each cell: [b, i, h, w] from g_i of the same shape, float32.

    In the form of the code the softmax runs over `slots` slots, or as many as there are instances if they are more. The unused ones
    all have the logit b / 2 and enter the denominator only: with one box and a flat gate the weight is 1/10, not 1.
    """
    if form not in FORMS:
        raise ValueError(f"The form of the fusion is {form!r}; it must be one of {', '.join(FORMS)}.")
    if form == "paper":
        present = torch.stack([(places.whole(i) > 0).expand(logits.shape[0], -1, -1) for i in range(logits.shape[1])], dim=1)
        # The lowest number in place of -inf: cells where nobody is give numbers that s_i = 0 removes, not NaN.
        weights = logits.masked_fill(~present, torch.finfo(logits.dtype).min).softmax(dim=1)
        return weights * torch.sigmoid(places.area_sum_ratio)[..., None, None]
    logits = logits * torch.sigmoid(places.area_ratio)[..., None, None]
    total = logits.logsumexp(dim=1, keepdim=True)
    padding = slots - logits.shape[1]
    if padding > 0:
        total = torch.logaddexp(total, 0.5 * outside + math.log(padding))
    return (logits - total).exp()


def instance_map(
    layer: Injection,
    q: Tensor,
    known: KeysValues,
    rows: Sequence[int],
    places: Places,
    *,
    strengths: Sequence[float] | None = None,
    slots: int = 10,
    form: str = "code",
    attention: Attend | None = None,
) -> Tensor:
    """The instance semantic map D, [b, h * w, c]; zero where no instance is.

    Args:
        q, known, rows, places, attention: see `instance_maps`. slots, form: see `slot_weights`.
        strengths: a factor per instance on what it adds. It does not change who wins a cell.
    """
    maps = instance_maps(layer, q, known, rows, places, attention)
    fused = q.new_zeros(q.shape[0], places.h, places.w, q.shape[2])
    if maps:
        weights = slot_weights(*gate_maps(layer, maps, places), places, slots, form)
        for place, ((top, bottom, left, right), s) in enumerate(zip(places.rectangles, maps)):
            factor = weights[:, place, top:bottom, left:right, None] * (1.0 if strengths is None else strengths[place])
            fused[:, top:bottom, left:right].addcmul_(s, factor.to(s))
    return rearrange(fused, "b h w c -> b (h w) c")


def injected(
    layer: Injection,
    q: Tensor,
    known: KeysValues,
    rows: Sequence[int],
    places: Places,
    *,
    strength: float = 1.0,
    strengths: Sequence[float] | None = None,
    slots: int = 10,
    form: str = "code",
    attention: Attend | None = None,
) -> Tensor:
    """What the layer's text attention gains: tanh(alpha) strength D, [b, h * w, c]. Arguments: see `instance_map` and `inject`."""
    fused = instance_map(layer, q, known, rows, places, strengths=strengths, slots=slots, form=form, attention=attention)
    gate = torch.tanh(layer.alpha.to(fused.device, torch.float32)) * strength
    return gate.to(fused) * fused


def inject(
    layer: Injection,
    q: Tensor,
    base: Tensor,
    known: KeysValues,
    rows: Sequence[int],
    places: Places,
    *,
    strength: float = 1.0,
    strengths: Sequence[float] | None = None,
    slots: int = 10,
    form: str = "code",
    attention: Attend | None = None,
) -> Tensor:
    """The layer's text attention with the instances added, [b, h * w, c], before its output projection.

    Args:
        base: the text attention [b, h * w, c], from the plain q.
        strength: 0 returns `base` itself; so does having no instances.
        The rest: see `instance_map`.
    """
    if strength == 0.0 or not places.rectangles:
        return base
    more = injected(
        layer, q, known, rows, places, strength=strength, strengths=strengths, slots=slots, form=form, attention=attention
    )
    return base + more.to(base)
