"""Holes and windows: what of a picture the model is shown, and how its result goes back so that the rest stays as it was.

Three nested areas, all in pixels of the source:

    mask                what the user painted, above one half
    hole    = mask grown by `grow`: what the model paints anew
    area    = hole grown by `feather`: where pixels may change. Its weight is 1 in the hole and falls to 0 at the area's edge, and outside of it
              is exactly 0, so that there the source comes back bit for bit
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_RESIZES = ("bilinear", "nearest", "cover")
LARGEST_ZOOM = 8.0
RING = 12  # pixels around the hole whose colours are compared

Box = tuple[int, int, int, int]  # x0 y0 x1 y1 in pixels; may reach beyond the picture


@dataclass(frozen=True, eq=False)
class Cut:
    """Where windows were cut out of which pictures; made once, only ever read.

    Args:
        source: [b, h, w, c] as it came, 0..1.
        hole: [b, h, w], 0 or 1.
        weight: [b, h, w], how much of a pixel is the result's.
        boxes: one window a picture.
        size: (width, height) of the windows as the model works on them.
    """

    source: Tensor
    hole: Tensor
    weight: Tensor
    boxes: tuple[Box, ...]
    size: tuple[int, int]

    def __deepcopy__(self, memo: dict) -> Cut:
        return self

    def windows(self) -> Tensor:
        """The windows of the source, [b, 3, height, width]."""
        pictures = self.source[..., :3].movedim(-1, 1)
        return torch.cat([window(p[None], box, self.size) for p, box in zip(pictures, self.boxes)]).clamp(0, 1)

    def holes(self) -> Tensor:
        """The windows of the hole, [b, 1, height, width], 0 or 1; beyond the picture nothing is painted."""
        return torch.cat([hole_window(h[None, None], box, self.size) for h, box in zip(self.hole, self.boxes)])


def grown(mask: Tensor, radius: int) -> Tensor:
    """A mask [b, h, w] with every point widened to a square of this radius."""
    if radius <= 0:
        return mask
    side = 2 * radius + 1
    wide = F.max_pool2d(mask[:, None], (1, side), stride=1, padding=(0, radius))
    return F.max_pool2d(wide, (side, 1), stride=1, padding=(radius, 0))[:, 0]


def feathered(hole: Tensor, feather: int) -> Tensor:
    """The weight [b, h, w] of the area: 1 in the hole, falling to 0 over `feather` pixels, exactly 0 beyond."""
    if feather <= 0:
        return hole
    near = feather // 2
    wide = F.pad(grown(hole, feather - near)[:, None], (near,) * 4, mode="replicate") if near else grown(hole, feather)[:, None]
    if near:
        side = 2 * near + 1
        wide = F.avg_pool2d(F.avg_pool2d(wide, (1, side), stride=1), (side, 1), stride=1)
    soft = wide[:, 0] if near else 0.5 * wide[:, 0]
    return torch.where(hole > 0, torch.ones_like(soft), soft)


def bounds(mask: Tensor) -> Box | None:
    """The rectangle around what a mask [h, w] shows, or None if it shows nothing."""
    rows, columns = (torch.nonzero((mask > 0.5).any(dim=axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def window_around(hole: Box, picture: tuple[int, int], size: tuple[int, int], context: float) -> Box:
    """A window of the aspect ratio of `size` with the hole in it.

    It has `context` times the hole's larger side around the hole, less where the picture ends; it lies inside of the picture unless the hole
    with this aspect ratio does not fit; and it is not so small that it would be enlarged more than `LARGEST_ZOOM` times.

    Args:
        hole: in a picture of (width, height).
    """
    (x0, y0, x1, y1), (pw, ph), (w, h) = hole, picture, size
    ratio = w / h
    room = 2 * context * max(x1 - x0, y1 - y0)
    wanted = max(x1 - x0 + room, (y1 - y0 + room) * ratio, w / LARGEST_ZOOM)
    inside = min(pw, ph * ratio)
    needed = max(x1 - x0, (y1 - y0) * ratio)
    width = max(needed, min(wanted, inside))
    box_w = max(x1 - x0, round(width))
    box_h = max(y1 - y0, round(width / ratio))
    left = _placed((x0 + x1 - box_w) / 2, box_w, pw)
    top = _placed((y0 + y1 - box_h) / 2, box_h, ph)
    return left, top, left + box_w, top + box_h


def _placed(first: float, length: int, most: int) -> int:
    return (most - length) // 2 if length > most else min(max(int(first), 0), most - length)


def whole_window(picture: tuple[int, int]) -> Box:
    """The picture itself."""
    return (0, 0, *picture)


def window(pictures: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """A window of [b, c, h, w], resized to `size`; beyond the picture its edge pixels go on."""
    part = _taken(pictures, box)
    if part.shape[-2:] == size[::-1]:
        return part
    return F.interpolate(part, size=size[::-1], mode="bicubic", antialias=True, align_corners=False)


def hole_window(holes: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """The same of a mask of zeros and ones, with zeros beyond the picture; every pixel that a hole touches is hole."""
    h, w = holes.shape[-2:]
    x0, y0, x1, y1 = box
    inside = holes[..., max(y0, 0) : min(y1, h), max(x0, 0) : min(x1, w)]
    part = F.pad(inside, (max(-x0, 0), max(x1 - w, 0), max(-y0, 0), max(y1 - h, 0)))
    if part.shape[-2:] == size[::-1]:
        return part
    # Enlarged by nearest neighbours; reduced so that nothing of the hole is lost.
    return (_covering(part, size) > 0).to(part.dtype)


def _covering(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[b, 1, h, w] at (width, height), where each cell has the largest value of the places that it lies over."""
    for axis, new in ((-1, size[0]), (-2, size[1])):
        old = mask.shape[axis]
        first = (torch.arange(new) * old) // new
        last = torch.maximum(((torch.arange(new) + 1) * old + new - 1) // new - 1, first)
        found = mask.index_select(axis, first)
        for step in range(1, int((last - first).max()) + 1):
            found = torch.maximum(found, mask.index_select(axis, torch.minimum(first + step, last)))
        mask = found
    return mask


def _taken(pictures: Tensor, box: Box) -> Tensor:
    h, w = pictures.shape[-2:]
    x0, y0, x1, y1 = box
    if x0 >= 0 and y0 >= 0 and x1 <= w and y1 <= h:
        return pictures[..., y0:y1, x0:x1]
    rows = torch.arange(y0, y1).clamp(0, h - 1)
    columns = torch.arange(x0, x1).clamp(0, w - 1)
    return pictures.index_select(-2, rows).index_select(-1, columns)


def cells(holes: Tensor, grid: tuple[int, int], how: str) -> Tensor:
    """The hole [b, 1, h, w] on the latent grid (rows, columns), 0 or 1.

    `bilinear` is the host's way and, but for the rounding, the authors'; `nearest` is diffusers'; with `cover` every cell that the hole
    touches is painted anew. A hole that would be lost in the first two is covered instead.
    """
    if how == "nearest":
        found = F.interpolate(holes, size=grid, mode="nearest")
    elif how == "bilinear":
        found = F.interpolate(holes, size=grid, mode="bilinear", align_corners=False).round()
    else:
        return _covering(holes, grid[::-1])
    lost = (found.flatten(1).amax(dim=1) == 0).view(-1, 1, 1, 1)
    return torch.where(lost, _covering(holes, grid[::-1]), found) if lost.any() else found


def masked(windows: Tensor, holes: Tensor) -> Tensor:
    """Pictures [b, 3, h, w] in 0..1 with a middle grey hole."""
    return torch.where(holes > 0.5, torch.full_like(windows, 0.5), windows)


def pasted(results: Tensor, cut: Cut, colour_match: float) -> Tensor:
    """Results [n, height, width, 3] back in their pictures, [n, h, w, c].

    Args:
        results: n pictures of b sources, as many times round as there are more; of any size, resized to the windows.
        colour_match: 0..1, how far mean and deviation of the result's colours around the hole are brought to the source's there.

    Raises:
        ValueError: n is no multiple of b.
    """
    count = len(cut.source)
    if len(results) % count:
        raise ValueError(f"there are {len(results)} results for {count} pictures. Give one for each, or a multiple.")
    out = []
    for number, result in enumerate(results[..., :3]):
        which = number % count
        source, box, weight = cut.source[which], cut.boxes[which], cut.weight[which]
        x0, y0, x1, y1 = box
        part = window(result.movedim(-1, 0)[None].to(source), (0, 0, result.shape[1], result.shape[0]), (x1 - x0, y1 - y0))[0]
        h, w = source.shape[:2]
        left, top = max(x0, 0), max(y0, 0)
        part = part[:, top - y0 : min(y1, h) - y0, left - x0 : min(x1, w) - x0].movedim(0, -1).clamp(0, 1)
        here = (slice(top, min(y1, h)), slice(left, min(x1, w)))
        if colour_match > 0:
            part = colours_matched(part, source[here][..., :3], cut.hole[which][here], colour_match)
        picture = source.clone()
        share = weight[here][..., None].to(source)
        channels = min(3, source.shape[-1])
        new = part if channels == 3 else part.mean(dim=-1, keepdim=True)
        old = source[here][..., :channels]
        picture[here][..., :channels] = torch.where(share > 0, torch.lerp(old, new, share), old)
        out.append(picture)
    return torch.stack(out)


def colours_matched(result: Tensor, source: Tensor, hole: Tensor, amount: float) -> Tensor:
    """A result [h, w, 3] whose colours in a ring around the hole [h, w] have the mean and deviation of the source's there.

    The gain of a channel stays between 1/2 and 2. Without a ring (the hole is everything) nothing is changed.
    """
    ring = (grown(hole[None], RING)[0] > 0) & (hole == 0)
    if int(ring.sum()) < 2 or source.shape[-1] != 3:
        return result
    ours, theirs = result[ring], source[ring]
    gain = (theirs.std(dim=0) / ours.std(dim=0).clamp(min=1e-4)).clamp(0.5, 2.0)
    matched = (result - ours.mean(dim=0)) * gain + theirs.mean(dim=0)
    return torch.lerp(result, matched, amount).clamp(0, 1)
