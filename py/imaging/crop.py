"""Holes and windows: what of a picture the model is shown, and how its result goes back so that the rest stays as it was.

Three nested areas, all in pixels of the source:

    mask                what the user painted, above one half
    hole    = mask grown by `grow`: what the model paints anew
    area    = hole grown by `feather`: where pixels may change. Its weight is 1 in the hole and falls to 0 at the area's edge, and outside of it
              is exactly 0, so that there the source comes back bit for bit
"""

from __future__ import annotations

import math
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
        angles: by how many radians each window is turned clockwise about its middle; none for all upright.
    """

    source: Tensor
    hole: Tensor
    weight: Tensor
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    angles: tuple[float, ...] = ()

    def __deepcopy__(self, memo: dict) -> Cut:
        return self

    def angle(self, number: int) -> float:
        """Of the window of a picture."""
        return self.angles[number] if self.angles else 0.0

    def windows(self) -> Tensor:
        """The windows of the source, [b, 3, height, width]."""
        return torch.cat(
            [
                window(picture[None], box, self.size, self.angle(number))
                for number, (picture, box) in enumerate(zip(self.source[..., :3].movedim(-1, 1), self.boxes))
            ]
        ).clamp(0, 1)

    def holes(self) -> Tensor:
        """The windows of the hole, [b, 1, height, width], 0 or 1; beyond the picture nothing is painted."""
        return torch.cat(
            [
                hole_window(hole[None, None], box, self.size, self.angle(number))
                for number, (hole, box) in enumerate(zip(self.hole, self.boxes))
            ]
        )

    def label_windows(self, labels: Tensor, beyond: int) -> Tensor:
        """The windows of labels [b, h, w] of the source's size, nearest neighbours, [b, height, width]; `beyond` outside of the picture."""
        return torch.stack(
            [
                turned(label[None, None].float() - beyond, box, self.size, self.angle(number), "nearest", "zeros")[0, 0] + beyond
                for number, (label, box) in enumerate(zip(labels, self.boxes))
            ]
        ).to(labels.dtype)


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


def turned_window_around(hole: Tensor, angle: float, size: tuple[int, int], context: float) -> Box:
    """As `window_around`, for a window that is turned by `angle` radians about its middle. It may reach beyond the picture.

    Args:
        hole: [h, w], not empty.
    """
    y, x = (place + 0.5 for place in torch.nonzero(hole > 0.5).T)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = x * cos + y * sin, y * cos - x * sin  # along the window's own axes
    (u0, u1), (v0, v1) = ((float(c.min()) - 0.5, float(c.max()) + 0.5) for c in (u, v))
    ratio = size[0] / size[1]
    room = 2 * context * max(u1 - u0, v1 - v0)
    width = max(u1 - u0 + room, (v1 - v0 + room) * ratio, size[0] / LARGEST_ZOOM)
    w, h = round(width), round(width / ratio)
    middle_u, middle_v = (u0 + u1) / 2, (v0 + v1) / 2
    left, top = round(middle_u * cos - middle_v * sin - w / 2), round(middle_u * sin + middle_v * cos - h / 2)
    return left, top, left + w, top + h


def window(pictures: Tensor, box: Box, size: tuple[int, int], angle: float = 0.0) -> Tensor:
    """A window of [b, c, h, w], turned by `angle` radians, resized to `size`; beyond the picture its edge pixels go on."""
    if angle:
        part = turned(pictures, box, (box[2] - box[0], box[3] - box[1]), angle, "bilinear", "border")
    else:
        part = _taken(pictures, box)
    if part.shape[-2:] == size[::-1]:
        return part
    return F.interpolate(part, size=size[::-1], mode="bicubic", antialias=True, align_corners=False)


def turned(pictures: Tensor, box: Box, size: tuple[int, int], angle: float, mode: str, beyond: str) -> Tensor:
    """Points of [b, c, h, w] on a grid of `size` over a box that is turned by `angle` radians about its middle.

    Args:
        mode, beyond: `grid_sample`'s mode and padding mode.
    """
    (x0, y0, x1, y1), (w, h) = box, size
    u = ((torch.arange(w) + 0.5) / w - 0.5) * (x1 - x0)
    v = (((torch.arange(h) + 0.5) / h - 0.5) * (y1 - y0))[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    x = (x0 + x1) / 2 + u * cos - v * sin
    y = (y0 + y1) / 2 + u * sin + v * cos
    return _sampled(pictures, x, y, mode, beyond)


def turned_back(part: Tensor, box: Box, angle: float, picture: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A turned window [c, h, w] in the place that it was taken from.

    Args:
        picture: (width, height).

    Returns:
        [c, height, width] and, [height, width] of bool, where the window is.
    """
    (x0, y0, x1, y1), (w, h) = box, picture
    dx = torch.arange(w) + 0.5 - (x0 + x1) / 2
    dy = (torch.arange(h) + 0.5 - (y0 + y1) / 2)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (dx * cos + dy * sin) / (x1 - x0) + 0.5, (dy * cos - dx * sin) / (y1 - y0) + 0.5
    inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    return _sampled(part[None], u * part.shape[2], v * part.shape[1], "bilinear", "border")[0], inside


def _sampled(pictures: Tensor, x: Tensor, y: Tensor, mode: str, beyond: str) -> Tensor:
    """[b, c, h, w] at points in pixels, x and y of shape [rows, columns]."""
    h, w = pictures.shape[-2:]
    grid = torch.stack([x / w * 2 - 1, y / h * 2 - 1], dim=-1).to(pictures)[None].expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures, grid, mode=mode, padding_mode=beyond, align_corners=False)


def hole_window(holes: Tensor, box: Box, size: tuple[int, int], angle: float = 0.0) -> Tensor:
    """The same of a mask of zeros and ones, with zeros beyond the picture; every pixel that a hole touches is hole."""
    h, w = holes.shape[-2:]
    x0, y0, x1, y1 = box
    if angle:
        part = (turned(holes, box, (x1 - x0, y1 - y0), angle, "bilinear", "zeros") > 0).to(holes.dtype)
    else:
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
        if cut.angle(which):
            part, inside = turned_back(part, box, cut.angle(which), (w, h))
            weight, left, top, x1, y1 = weight * inside, 0, 0, w, h
        else:
            left, top = max(x0, 0), max(y0, 0)
            part = part[:, top - y0 : min(y1, h) - y0, left - x0 : min(x1, w) - x0]
        part = part.movedim(0, -1).clamp(0, 1)
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
