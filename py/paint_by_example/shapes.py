"""The paper's mask shapes (section 3.2 and its code): an extended box, or four curves around it, so that a hole does not show an outline."""

from __future__ import annotations

import torch
from torch import Tensor

from ..imaging.masks import fill_polygon

SHAPES = ("bezier", "rectangle", "either")
POINTS = torch.arange(1, 19) / 20  # 0.05 .. 0.90: the ends of a curve are left out, as published
EXTENSION = 0.4
JITTER = 5

Box = tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels


def extend_box(box: Box, width: int, height: int, extension: float, rng: torch.Generator) -> Box:
    """A box with each side moved outwards by up to `extension` of its distance to the image's edge."""
    left, top, right, bottom = (torch.rand(4, generator=rng) * extension).tolist()
    x0, y0, x1, y1 = box
    return x0 - left * x0, y0 - top * y0, x1 + right * (width - x1), y1 + bottom * (height - y1)


def bezier_corners(box: Box, outer: Box, jitter: int, rng: torch.Generator) -> Tensor:
    """The corners [n, 2] (x, y) of a shape around a box: along each side a quadratic Bezier curve.

    A curve starts and ends at corners of `box`; its control point is the middle of the side, moved to the side of `outer`, so the curve
    reaches half of the distance. Every coordinate is moved by -jitter..jitter whole pixels. A point that shares a coordinate with an earlier
    one of its curve is left out, so a side that was not extended gives a single point.
    """
    x0, y0, x1, y1 = box
    ox0, oy0, ox1, oy1 = outer
    mid_x, mid_y = (x0 + x1) / 2, (y0 + y1) / 2
    sides = [
        ((x0, y0), (mid_x, oy0), (x1, y0)),
        ((x1, y0), (ox1, mid_y), (x1, y1)),
        ((x1, y1), (mid_x, oy1), (x0, y1)),
        ((x0, y1), (ox0, mid_y), (x0, y0)),
    ]
    corners = []
    for start, control, end in sides:
        p0, p1, p2 = (torch.tensor(point, dtype=torch.float64) for point in (start, control, end))
        t = POINTS.double()[:, None]
        points = ((1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t**2 * p2).round().long()
        seen: tuple[set[int], set[int]] = (set(), set())
        for x, y in points.tolist():
            if x in seen[0] or y in seen[1]:
                continue
            seen[0].add(x)
            seen[1].add(y)
            corners.append([x, y])
    found = torch.tensor(corners)
    if jitter:
        found = found + torch.randint(-jitter, jitter + 1, found.shape, generator=rng)
    return found


def fill_rectangle(box: Box, width: int, height: int) -> Tensor:
    """[height, width], 1 inside of a box, at least one pixel."""
    x0, y0 = (min(max(int(v), 0), most - 1) for v, most in zip(box[:2], (width, height)))
    x1, y1 = (min(max(round(v), low + 1), most) for v, low, most in zip(box[2:], (x0, y0), (width, height)))
    mask = torch.zeros(height, width)
    mask[y0:y1, x0:x1] = 1
    return mask


def draw_mask_shape(
    box: Box,
    width: int,
    height: int,
    rng: torch.Generator,
    shape: str = "either",
    extension: float = EXTENSION,
    jitter: int = JITTER,
) -> Tensor:
    """A mask [height, width] for a box in pixels, drawn as in training: half of them rectangles if `shape` is "either"."""
    outer = extend_box(box, width, height, extension, rng)
    is_curve = shape == "bezier" or (shape == "either" and bool(torch.rand((), generator=rng) < 0.5))
    if not is_curve:
        return fill_rectangle(outer, width, height)
    mask = fill_polygon(bezier_corners(box, outer, jitter, rng), width, height)
    return mask if mask.any() else fill_rectangle(box, width, height)
