"""Masks: their extent, growing, feathering, and resizing to the latent grid. A mask selects the pixels where it is above one half."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

MASK_RESIZES = ("bilinear", "nearest", "cover")
BOX_KERNEL = (
    65  # up to this width a mean is taken by the pooling kernel, whose time grows with the width; beyond it by doubling windows
)

Box = tuple[int, int, int, int]  # x0 y0 x1 y1 in pixels; may reach beyond the image


def mask_bounds(mask: Tensor, threshold: float = 0.5) -> Box | None:
    """The bounding box of the pixels of a mask [h, w] above `threshold`; None if there are none."""
    rows, columns = (torch.nonzero((mask > threshold).any(dim=axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def pad_box(box: Box, margin: int, image_size: tuple[int, int]) -> Box:
    """A box with `margin` more pixels on each side, clipped to an image of (width, height)."""
    (x0, y0, x1, y1), (width, height) = box, image_size
    return max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, width), min(y1 + margin, height)


def grow_mask(mask: Tensor, radius: int) -> Tensor:
    """A mask [b, h, w] of 0 and 1 with every selected pixel widened to a square of `radius`. The time does not depend on the radius."""
    if radius <= 0:
        return mask
    grown = torch.zeros_like(mask)
    box = _batch_bounds(mask)
    if box is not None:
        x0, y0, x1, y1 = pad_box(box, radius, (mask.shape[2], mask.shape[1]))
        part = mask[:, y0:y1, x0:x1] > 0
        for axis in (2, 1):
            padding = [0, 0] * (2 - axis) + [radius, radius]
            part = _combine_windows(F.pad(part, padding), radius, axis, torch.bitwise_or)
        grown[:, y0:y1, x0:x1] = part.to(mask.dtype)
    return grown


def feather_mask(hole: Tensor, feather: int) -> Tensor:
    """Weights [b, h, w] of a hole [b, h, w] of 0 and 1: 1 in the hole, falling to 0 over `feather` pixels, exactly 0 beyond."""
    if feather <= 0:
        return hole
    near = feather // 2
    if not near:
        soft = 0.5 * grow_mask(hole, feather)
        return torch.where(hole > 0, torch.ones_like(soft), soft)
    weight = torch.zeros_like(hole)
    box = _batch_bounds(hole)
    if box is None:
        return weight
    x0, y0, x1, y1 = pad_box(box, feather, (hole.shape[2], hole.shape[1]))
    part = hole[:, y0:y1, x0:x1]
    wide = F.pad(grow_mask(part, feather - near)[:, None], (near,) * 4, mode="replicate")
    side = 2 * near + 1
    if side <= BOX_KERNEL:
        soft = F.avg_pool2d(F.avg_pool2d(wide, (1, side), stride=1), (side, 1), stride=1)[:, 0]
    else:
        # Sums of zeros and ones are whole numbers below 2**24, so float32 is exact.
        rows = _combine_windows(wide[:, 0].float(), near, 2, torch.add)
        soft = _combine_windows(rows, near, 1, torch.add).to(hole.dtype) / side**2
    weight[:, y0:y1, x0:x1] = torch.where(part > 0, torch.ones_like(soft), soft)
    return weight


def looks_inverted(mask: Tensor) -> bool:
    """Whether a mask [h, w] of an object probably selects the background: most of the image's border, but less of the middle.

    Load Image's MASK is 1 where an image is transparent, so that of a cut-out object selects everything but the object.
    """
    selected = mask > 0.5
    h, w = mask.shape
    border = torch.cat([selected[0], selected[-1], selected[:, 0], selected[:, -1]]).float().mean()
    middle = selected[h // 4 : h - h // 4, w // 4 : w - w // 4].float().mean()
    free = 1 - selected.float().mean()
    return bool((border >= 0.5 and border - middle >= 0.3) or (border >= 0.95 and free >= 0.005))


def mask_to_latent(masks: Tensor, grid: tuple[int, int], method: str) -> Tensor:
    """Masks [b, 1, h, w] of 0 and 1 on a latent grid of (rows, columns), 0 or 1.

    `bilinear` is the host's method and, except for the rounding, the authors'; `nearest` is diffusers'; with `cover` every latent cell that
    the mask touches is selected. A mask that would vanish in the first two is resized with `cover`.
    """
    if method == "nearest":
        cells = F.interpolate(masks, size=grid, mode="nearest")
    elif method == "bilinear":
        cells = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False).round()
    else:
        return resize_covering(masks, grid[::-1])
    lost = (cells.flatten(1).amax(dim=1) == 0).view(-1, 1, 1, 1)
    return torch.where(lost, resize_covering(masks, grid[::-1]), cells) if lost.any() else cells


def resize_covering(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [b, 1, h, w] resized to (width, height); each new pixel has the largest value of the old pixels that it overlaps."""
    for axis, new in ((-1, size[0]), (-2, size[1])):
        old = masks.shape[axis]
        index = torch.arange(new, device=masks.device)
        first = (index * old) // new
        last = torch.maximum(((index + 1) * old + new - 1) // new - 1, first)
        largest = masks.index_select(axis, first)
        for step in range(1, int((last - first).max()) + 1):
            largest = torch.maximum(largest, masks.index_select(axis, torch.minimum(first + step, last)))
        masks = largest
    return masks


def fill_polygon(corners: Tensor, width: int, height: int) -> Tensor:
    """[height, width], 1 on and inside of the corners [n, 2] (x, y), whole pixels (even-odd rule)."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(int(x), int(y)) for x, y in corners.tolist()], fill=1)
    return torch.from_numpy(np.array(image)).float()


def _batch_bounds(masks: Tensor) -> Box | None:
    """The bounding box of all pixels above 0 of masks [b, h, w]."""
    return mask_bounds((masks > 0).any(dim=0).to(torch.uint8), 0)


def _combine_windows(values: Tensor, radius: int, axis: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sums or maxima over windows of 2 radius + 1 along one axis, in as many passes as the width has binary digits.

    The values are padded by `radius` on both sides, and the result is that much shorter. `combine`
    adds two windows that touch each other, as `torch.add` or `torch.bitwise_or`.
    """
    length, width = values.shape[axis] - 2 * radius, 2 * radius + 1
    power, size = values, 1  # of the windows in `power`, that begin at each position
    found: Tensor | None = None
    done = 0
    while True:
        if width & size:
            part = power.narrow(axis, done, length)
            found = part if found is None else combine(found, part)
            done += size
            if done == width:
                return found
        rest = power.shape[axis] - size
        power = combine(power.narrow(axis, 0, rest), power.narrow(axis, size, rest))
        size *= 2
