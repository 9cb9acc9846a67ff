"""Crop and paste back: which part of an image a model works on, and how its result returns so that the rest does not change.

Three nested areas, in pixels of the source image:

    mask                what the user painted, above one half
    hole    = mask grown by `grow`: what the model paints
    area    = hole grown by `feather`: where pixels may change. Its weight is 1 in the hole, falls to 0 at the area's edge, and is exactly 0
              outside of it, so that the source comes back there bit for bit

A window contains its area, so that the feather is never cut off by the window's edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import Box, grow_mask, mask_bounds, resize_covering

LARGEST_ZOOM = 8.0
RING = 12  # pixels around the hole whose colours are compared


@dataclass(frozen=True, eq=False)
class CropRecord:
    """Which windows were cut out of which images. It is made once and never changed.

    Args:
        source: [b, h, w, c] as it came.
        hole: [b, h, w], 0 or 1.
        weight: [b, h, w], the result's share of each pixel.
        boxes: one window for each image.
        size: (width, height) of the windows that the model works on.
        angles: radians by which each window is rotated clockwise about its centre; empty if all are upright.
    """

    source: Tensor
    hole: Tensor
    weight: Tensor
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    angles: tuple[float, ...] = ()

    def __deepcopy__(self, memo: dict) -> CropRecord:
        return self

    def angle(self, index: int) -> float:
        """The rotation of one window in radians."""
        return self.angles[index] if self.angles else 0.0

    def windows(self) -> Tensor:
        """The windows of the source, [b, 3, height, width] in 0..1, float32."""
        return torch.cat(
            [
                crop_window(image[None].float(), box, self.size, self.angle(index))
                for index, (image, box) in enumerate(zip(self.source[..., :3].movedim(-1, 1), self.boxes))
            ]
        ).clamp(0, 1)

    def holes(self) -> Tensor:
        """The windows of the hole, [b, 1, height, width], 0 or 1; beyond the image they are 0."""
        return torch.cat(
            [
                crop_hole(hole[None, None], box, self.size, self.angle(index))
                for index, (hole, box) in enumerate(zip(self.hole, self.boxes))
            ]
        )

    def label_windows(self, labels: Tensor, outside: int) -> Tensor:
        """The windows of labels [b, h, w] of the source's size, by nearest neighbours, [b, height, width]; `outside` beyond the image."""
        return torch.stack(
            [
                sample_rotated(label[None, None].float() - outside, box, self.size, self.angle(index), "nearest", "zeros")[0, 0]
                + outside
                for index, (label, box) in enumerate(zip(labels, self.boxes))
            ]
        ).to(labels.dtype)

    def has_one_source(self) -> bool:
        """Whether all windows are of the same image, as with several masks of one image."""
        if len(self.source) == 1 or self.source.stride(0) == 0:
            return True
        return all(torch.equal(image, self.source[0]) for image in self.source[1:])


def fit_window(hole: Box, image_size: tuple[int, int], size: tuple[int, int], context: float, area: Box | None = None) -> Box:
    """A window with the aspect ratio of `size` that contains the hole.

    It has `context` times the hole's larger side on each side of the hole, less where the image ends. It lies inside of the image unless the
    hole or the area does not fit with this aspect ratio, and it is not enlarged more than `LARGEST_ZOOM` times.

    Args:
        hole: in an image of `image_size` (width, height).
        area: the hole and its feather. A window that would not contain it is enlarged until it does.
    """
    (x0, y0, x1, y1), (image_w, image_h), (w, h) = hole, image_size, size
    ratio = w / h
    margin = 2 * context * max(x1 - x0, y1 - y0)
    wanted = max(x1 - x0 + margin, (y1 - y0 + margin) * ratio, w / LARGEST_ZOOM)
    inside = min(image_w, image_h * ratio)
    needed = max(x1 - x0, (y1 - y0) * ratio)
    width = max(needed, min(wanted, inside))
    box_w, box_h = max(x1 - x0, round(width)), max(y1 - y0, round(width / ratio))
    left, top = _place((x0 + x1 - box_w) / 2, box_w, image_w), _place((y0 + y1 - box_h) / 2, box_h, image_h)
    if area is None or (left <= area[0] and top <= area[1] and area[2] <= left + box_w and area[3] <= top + box_h):
        return left, top, left + box_w, top + box_h
    ax0, ay0, ax1, ay1 = area
    width = max(box_w, ax1 - ax0, (ay1 - ay0) * ratio)
    box_w, box_h = max(ax1 - ax0, round(width)), max(ay1 - ay0, round(width / ratio))
    left = min(max(_place((x0 + x1 - box_w) / 2, box_w, image_w), ax1 - box_w), ax0)
    top = min(max(_place((y0 + y1 - box_h) / 2, box_h, image_h), ay1 - box_h), ay0)
    return left, top, left + box_w, top + box_h


def _place(first: float, length: int, most: int) -> int:
    return (most - length) // 2 if length > most else min(max(int(first), 0), most - length)


def fit_rotated_window(hole: Tensor, angle: float, size: tuple[int, int], context: float, area: Tensor | None = None) -> Box:
    """As `fit_window`, for a window that is rotated by `angle` radians about its centre. It may reach beyond the image.

    Args:
        hole, area: [h, w], not empty; `area` is above 0 in the hole and its feather.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    u0, v0, u1, v1 = _rotated_extent(hole > 0.5, cos, sin)
    ratio = size[0] / size[1]
    margin = 2 * context * max(u1 - u0, v1 - v0)
    needed = max(u1 - u0, (v1 - v0) * ratio)
    # A window wider than the image's diagonal only adds repeated edge pixels.
    most = max(1.0, ratio) * math.hypot(*hole.shape)
    width = max(needed, min(max(u1 - u0 + margin, (v1 - v0 + margin) * ratio, size[0] / LARGEST_ZOOM), most))
    w, h = round(width), round(width / ratio)
    middle_u, middle_v = (u0 + u1) / 2, (v0 + v1) / 2
    if area is not None:
        au0, av0, au1, av1 = _rotated_extent(area > 0, cos, sin)
        half_w, half_h = (max(middle_u - au0, au1 - middle_u), max(middle_v - av0, av1 - middle_v))
        if 2 * half_w > w - 1 or 2 * half_h > h - 1:  # a pixel for the rounding below
            middle_u, middle_v = (au0 + au1) / 2, (av0 + av1) / 2
            width = max(width, au1 - au0 + 2, (av1 - av0 + 2) * ratio)
            w, h = math.ceil(width), math.ceil(width / ratio)
    left, top = round(middle_u * cos - middle_v * sin - w / 2), round(middle_u * sin + middle_v * cos - h / 2)
    return left, top, left + w, top + h


def _rotated_extent(mask: Tensor, cos: float, sin: float) -> tuple[float, float, float, float]:
    """u0 v0 u1 v1 of a mask [h, w] along axes that are rotated clockwise. Only the ends of each row can be extremes."""
    rows = torch.nonzero(mask.any(dim=1)).flatten()
    mask = mask[rows].to(torch.uint8)
    first, last = mask.argmax(dim=1), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    y, x = torch.cat([rows, rows]) + 0.5, torch.cat([first, last]) + 0.5
    u, v = x * cos + y * sin, y * cos - x * sin
    return float(u.min()) - 0.5, float(v.min()) - 0.5, float(u.max()) + 0.5, float(v.max()) + 0.5


def crop_window(images: Tensor, box: Box, size: tuple[int, int], angle: float = 0.0) -> Tensor:
    """A window of [b, c, h, w], rotated by `angle` radians, resized to `size`; beyond the image its edge pixels are repeated."""
    if angle:
        part = sample_rotated(images, box, (box[2] - box[0], box[3] - box[1]), angle, "bilinear", "border")
    else:
        part = _crop_repeating_edges(images, box)
    if part.shape[-2:] == size[::-1]:
        return part
    return F.interpolate(part, size=size[::-1], mode="bicubic", antialias=True, align_corners=False)


def sample_rotated(images: Tensor, box: Box, size: tuple[int, int], angle: float, mode: str, padding: str) -> Tensor:
    """Samples [b, c, h, w] on a grid of `size` over a box that is rotated by `angle` radians about its centre.

    Args:
        mode, padding: `grid_sample`'s mode and padding mode.
    """
    (x0, y0, x1, y1), (w, h) = box, size
    u = ((torch.arange(w) + 0.5) / w - 0.5) * (x1 - x0)
    v = (((torch.arange(h) + 0.5) / h - 0.5) * (y1 - y0))[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    x = (x0 + x1) / 2 + u * cos - v * sin
    y = (y0 + y1) / 2 + u * sin + v * cos
    return _sample(images, x, y, mode, padding)


def rotate_back(part: Tensor, box: Box, angle: float, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A rotated window [c, h, w] at the position that it was cut from.

    Args:
        image_size: (width, height).

    Returns:
        [c, height, width], and a bool mask [height, width] of the pixels inside the window.
    """
    (x0, y0, x1, y1), (w, h) = box, image_size
    dx = torch.arange(w) + 0.5 - (x0 + x1) / 2
    dy = (torch.arange(h) + 0.5 - (y0 + y1) / 2)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (dx * cos + dy * sin) / (x1 - x0) + 0.5, (dy * cos - dx * sin) / (y1 - y0) + 0.5
    inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    return _sample(part[None], u * part.shape[2], v * part.shape[1], "bilinear", "border")[0], inside.to(part.device)


def _sample(images: Tensor, x: Tensor, y: Tensor, mode: str, padding: str) -> Tensor:
    """[b, c, h, w] at points in pixels, x and y of shape [rows, columns]."""
    h, w = images.shape[-2:]
    grid = torch.stack([x / w * 2 - 1, y / h * 2 - 1], dim=-1).to(images)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def crop_hole(holes: Tensor, box: Box, size: tuple[int, int], angle: float = 0.0) -> Tensor:
    """As `crop_window`, of masks of 0 and 1 with 0 beyond the image; every pixel that a hole touches becomes hole."""
    h, w = holes.shape[-2:]
    x0, y0, x1, y1 = box
    if angle:
        part = (sample_rotated(holes, box, (x1 - x0, y1 - y0), angle, "bilinear", "zeros") > 0).to(holes.dtype)
    else:
        inside = holes[..., max(y0, 0) : min(y1, h), max(x0, 0) : min(x1, w)]
        part = F.pad(inside, (max(-x0, 0), max(x1 - w, 0), max(-y0, 0), max(y1 - h, 0)))
    if part.shape[-2:] == size[::-1]:
        return part
    # Enlarged by nearest neighbours; reduced so that nothing of the hole is lost.
    return (resize_covering(part, size) > 0).to(part.dtype)


def _crop_repeating_edges(images: Tensor, box: Box) -> Tensor:
    h, w = images.shape[-2:]
    x0, y0, x1, y1 = box
    if x0 >= 0 and y0 >= 0 and x1 <= w and y1 <= h:
        return images[..., y0:y1, x0:x1]
    rows = torch.arange(y0, y1, device=images.device).clamp(0, h - 1)
    columns = torch.arange(x0, x1, device=images.device).clamp(0, w - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


def erase_hole(windows: Tensor, holes: Tensor) -> Tensor:
    """Windows [b, 3, h, w] in 0..1 whose hole is mid-grey."""
    return torch.where(holes > 0.5, torch.full_like(windows, 0.5), windows)


def paste_back(
    results: Tensor,
    record: CropRecord,
    colour_match: float,
    together: bool = False,
    before_image: Callable[[], None] = lambda: None,
) -> Tensor:
    """Results [n, height, width, 3] in their images.

    Args:
        results: n images for b windows, repeated A, B, A, B if n is a multiple of b; of any size, resized to the windows.
        colour_match: 0..1, how far mean and deviation of the result's colours around the hole are adjusted to the source's there.
        together: the windows are of one image, and all are pasted into one copy of it; a later window covers an earlier one.
        before_image: called before each result, for instance to stop.

    Returns:
        [n, h, w, c]; with `together` [n / b, h, w, c].

    Raises:
        ValueError: n is not a multiple of b, or `together` and the windows are of different images.
    """
    count = len(record.source)
    if len(results) % count:
        raise ValueError(f"there are {len(results)} results for {count} windows. Connect one for each, or a multiple.")
    if together and not record.has_one_source():
        raise ValueError(f"together needs several masks of one image, but the {count} windows are of different images.")
    images: list[Tensor] = []
    for index, result in enumerate(results[..., :3]):
        before_image()
        which = index % count
        if not together or which == 0:
            images.append(record.source[which].clone())
        _paste_window(images[-1], result, record, which, colour_match)
    return torch.stack(images)


def _paste_window(image: Tensor, result: Tensor, record: CropRecord, which: int, colour_match: float) -> None:
    """Paste one result [height, width, 3] into an image [h, w, c], in place."""
    source, box, weight = record.source[which], record.boxes[which], record.weight[which]
    if mask_bounds(weight, 0) is None:
        return
    x0, y0, x1, y1 = box
    pixels = result.movedim(-1, 0)[None].to(source.device, torch.float32)
    part = crop_window(pixels, (0, 0, result.shape[1], result.shape[0]), (x1 - x0, y1 - y0))[0]
    h, w = source.shape[:2]
    if record.angle(which):
        part, inside = rotate_back(part, box, record.angle(which), (w, h))
        weight, left, top, x1, y1 = weight * inside, 0, 0, w, h
    else:
        left, top = max(x0, 0), max(y0, 0)
        part = part[:, top - y0 : min(y1, h) - y0, left - x0 : min(x1, w) - x0]
    part = part.movedim(0, -1).clamp(0, 1)
    here = (slice(top, min(y1, h)), slice(left, min(x1, w)))
    if colour_match > 0:
        part = match_colours(part, source[here][..., :3].float(), record.hole[which][here], colour_match)
    share = weight[here][..., None].to(part)
    channels = min(3, source.shape[-1])
    new = part if channels == 3 else part.mean(dim=-1, keepdim=True)
    old = image[here][..., :channels]
    image[here][..., :channels] = torch.where(share > 0, torch.lerp(old.float(), new, share).to(old.dtype), old)


def match_colours(result: Tensor, source: Tensor, hole: Tensor, amount: float) -> Tensor:
    """A result [h, w, 3] whose colours in a ring around the hole [h, w] have the mean and deviation of the source's there.

    The gain of a channel stays between 1/2 and 2. Without a ring (the hole is everything) nothing changes.
    """
    ring = (grow_mask(hole[None], RING)[0] > 0) & (hole == 0)
    if int(ring.sum()) < 2 or source.shape[-1] != 3:
        return result
    result_ring, source_ring = result[ring], source[ring]
    gain = (source_ring.std(dim=0) / result_ring.std(dim=0).clamp(min=1e-4)).clamp(0.5, 2.0)
    matched = (result - result_ring.mean(dim=0)) * gain + source_ring.mean(dim=0)
    return torch.lerp(result, matched, amount).clamp(0, 1)
