"""Around the sampling: a window around the hole for the model, and its result back in the picture."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import node_helpers
import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging import crop as stitching
from ...imaging.crop import Box, Cut
from ...paint_by_example import shapes
from .loader import REGIONS, checked_mask, coloured

PREPARE, STITCH, SHAPE = "Paint by Example Prepare", "Stitch", "Mask Shape"
CELL = 8  # pixels of a latent cell
LARGEST = 8192


def prepare(
    positive: list,
    negative: list,
    vae: Any,
    image: Tensor,
    mask: Tensor,
    *,
    width: int = 512,
    height: int = 512,
    crop: str = "around the hole",
    context: float = 0.5,
    grow: int = 4,
    feather: int = 8,
    latent: str = "empty",
    mask_resize: str = "bilinear",
    noise_mask: bool = False,
) -> tuple[list, list, dict, Cut]:
    """Conditions that know the picture and its hole, the LATENT to sample, and what Stitch needs.

    Args:
        image, mask: [b, h, w, c] and [b, h, w]; one of either serves all of the other.
        context: for a crop around the hole, the room on each side in sides of the hole.
        grow, feather: pixels of the source, see `stitching`.
        latent: `empty` as published, or `source` for a denoise below 1.
        mask_resize: how the hole becomes cells of the latent, one of `stitching.MASK_RESIZES`.

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    if vae is None:
        raise ValueError(f"{PREPARE}: the VAE input is empty. Connect the VAE of any Stable Diffusion 1.x model.")
    cut = cut_around(image, mask, width, height, crop, context, grow, feather)
    windows, holes = cut.windows(), cut.holes()
    grid = cut.size[1] // CELL, cut.size[0] // CELL
    hole = stitching.cells(holes, grid, mask_resize)
    known = vae.encode(stitching.masked(windows, holes).movedim(1, -1))
    if latent == "source":
        samples = vae.encode(windows.movedim(1, -1))
    else:
        samples = torch.zeros_like(known)
    found = {"samples": samples} | ({"noise_mask": hole} if noise_mask else {})
    told = {"concat_latent_image": known, "concat_mask": hole}
    positive = [[token, _windowed(options, cut)] for token, options in positive]
    return (
        node_helpers.conditioning_set_values(positive, told),
        node_helpers.conditioning_set_values(negative, told),
        found,
        cut,
    )


def cut_around(
    image: Tensor, mask: Tensor, width: int, height: int, crop: str, context: float, grow: int, feather: int, node: str = PREPARE
) -> Cut:
    """The windows that `prepare` works on; `node` is who is at fault in a message."""
    if not torch.is_tensor(image) or image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"{node}: image is no picture. Connect an IMAGE.")
    if not image.isfinite().all():
        raise ValueError(f"{node}: image has values that are no numbers (NaN or infinity). Look at the node that it comes from.")
    for name, side in (("width", width), ("height", height)):
        if side % CELL or not CELL <= side <= LARGEST:
            raise ValueError(f"{node}: {name} is {side}; it must be a multiple of {CELL} from {CELL} to {LARGEST}.")
    if not (math.isfinite(context) and context >= 0):
        raise ValueError(f"{node}: context is {context}; it must be a number from 0 on.")
    mask = checked_mask(mask, node, "mask")
    image, mask = _matched(image, mask, node)
    if mask.shape[-2:] != image.shape[1:3]:
        mask = F.interpolate(mask[:, None], size=image.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    hole = stitching.grown((mask > 0.5).float(), grow)
    picture = (image.shape[2], image.shape[1])
    boxes = []
    for number, one in enumerate(hole):
        found = stitching.bounds(one)
        if found is None:
            which = "mask" if len(hole) == 1 else f"mask {number + 1} of {len(hole)}"
            raise ValueError(f"{node}: the {which} is empty (nothing in it is above one half). Paint where the thing should be.")
        around = crop == "around the hole"
        boxes.append(
            stitching.window_around(found, picture, (width, height), context) if around else stitching.whole_window(picture)
        )
    source = image if image.shape[-1] >= 3 else coloured(image)
    return Cut(source, hole, stitching.feathered(hole, feather), tuple(boxes), (width, height))


def _matched(image: Tensor, mask: Tensor, node: str) -> tuple[Tensor, Tensor]:
    count = max(len(image), len(mask))
    if len(image) not in (1, count) or len(mask) not in (1, count):
        raise ValueError(
            f"{node}: image has {len(image)} pictures and mask has {len(mask)}. Give one of either, or as many of both."
        )
    return image.expand(count, *image.shape[1:]), mask.expand(count, *mask.shape[1:])


def _windowed(options: dict, cut: Cut) -> dict:
    """Regional exemplars know places of the whole picture; the model is shown a window of it."""
    if REGIONS not in options:
        return options
    regions = []
    for region in options[REGIONS]:
        masks = region.mask
        if masks.shape[0] not in (1, len(cut.source)):
            raise ValueError(
                f"{PREPARE}: a region of the exemplars has {masks.shape[0]} masks for {len(cut.source)} pictures. Give one, or one for each."
            )
        if masks.shape[-2:] != cut.source.shape[1:3]:
            masks = F.interpolate(masks[:, None], size=cut.source.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
        parts = [
            stitching.hole_window((masks[n % len(masks)] > 0.5).float()[None, None], box, cut.size)[:, 0]
            for n, box in enumerate(cut.boxes)
        ]
        regions.append(replace(region, mask=torch.cat(parts)))
    return {**options, REGIONS: tuple(regions)}


def stitch(image: Tensor, cut: Cut, colour_match: float = 0.0) -> Tensor:
    """Results [n, h, w, c] in their pictures. Outside of the grown and feathered hole these are the source's pixels, bit for bit."""
    if not torch.is_tensor(image) or image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"{STITCH}: image is no picture. Connect the decoded result.")
    if not 0.0 <= colour_match <= 1.0:
        raise ValueError(f"{STITCH}: colour_match is {colour_match}; it must be a number from 0 to 1.")
    if not image.isfinite().all():
        raise ValueError(
            f"{STITCH}: image has values that are no numbers. The sampling failed; a VAE in half precision is a usual cause."
        )
    try:
        return stitching.pasted(coloured(image), cut, colour_match)
    except ValueError as error:
        raise ValueError(f"{STITCH}: {error}") from None


def mask_shape(
    box: Box | tuple[float, float, float, float],
    width: int,
    height: int,
    shape: str,
    extension: float,
    jitter: int,
    seed: int,
    count: int,
    mask: Tensor | None = None,
) -> Tensor:
    """MASK [n, height, width] of the paper's shapes for a box x0 y0 x1 y1 in 0..1, or around what a mask [b, h, w] shows.

    With a mask its own size is used, and there are `count` shapes for each of its pictures.
    """
    rng = torch.Generator().manual_seed(seed)
    if mask is None:
        if not all(math.isfinite(v) for v in box) or box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"{SHAPE}: the box {tuple(round(v, 3) for v in box)} has no area. Give a width and a height above 0."
            )
        places: list[Any] = [(box[0] * width, box[1] * height, min(box[2], 1.0) * width, min(box[3], 1.0) * height)]
    else:
        masks = checked_mask(mask, SHAPE, "mask")
        height, width = masks.shape[-2:]
        places = []
        for one in masks:
            found = stitching.bounds(one)
            if found is None:
                raise ValueError(f"{SHAPE}: the mask is empty. Paint a place, or disconnect it and use the box.")
            places.append(tuple(float(v) for v in found))
    return torch.stack(
        [shapes.mask_shape(place, width, height, rng, shape, extension, jitter) for place in places for _ in range(count)]
    )
