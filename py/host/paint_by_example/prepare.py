"""Before the sampling: a window around the hole, and conditions that contain the source image; and the paper's mask shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import node_helpers
import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.crop import CropRecord, crop_hole, erase_hole
from ...imaging.masks import MASK_RESIZES, mask_bounds, mask_to_latent
from ...paint_by_example import shapes
from ...paint_by_example.training import AREA
from .. import notices
from ..crop import CELL, LARGEST_SIDE, record_crop
from ..inputs import check_choice, check_connected, check_integer, check_mask, check_number
from .regions import REGIONS
from .run_check import add_run_check

NODE, SHAPE = "Paint by Example Prepare", "Mask Shape"
EMPTY, SOURCE = "empty", "source"
LATENTS = (EMPTY, SOURCE)
MOST_SHAPES = 64


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
    latent: str = EMPTY,
    mask_resize: str = "bilinear",
    noise_mask: bool = False,
) -> tuple[list, list, dict, CropRecord]:
    """Conditions that contain the source image and its hole, the LATENT to sample, and the record for Stitch.

    Args:
        image, mask, width, height, context, grow, feather: see `record_crop`; `crop` is its `window`.
        latent: `empty` as published, or `source` for a denoise below 1.
        mask_resize: how the hole is resized to the latent grid, one of `MASK_RESIZES`.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    check_connected(vae, NODE, "VAE", "Connect the VAE of any Stable Diffusion 1.x model.")
    check_choice(latent, NODE, "latent", LATENTS)
    check_choice(mask_resize, NODE, "mask_resize", MASK_RESIZES)
    record = record_crop(
        image,
        mask,
        width=width,
        height=height,
        window=crop,
        context=context,
        grow=grow,
        feather=feather,
        node=NODE,
        item="place where the object should be",
    )
    windows, holes = record.windows(), record.holes()
    _warn_of_extremes(holes)
    hole = mask_to_latent(holes, (record.size[1] // CELL, record.size[0] // CELL), mask_resize)
    known = vae.encode(erase_hole(windows, holes).movedim(1, -1))
    samples = vae.encode(windows.movedim(1, -1)) if latent == SOURCE else torch.zeros_like(known)
    found = {"samples": samples} | ({"noise_mask": hole} if noise_mask else {})
    source = {"concat_latent_image": known, "concat_mask": hole}
    positive = [[token, _crop_regions(options, record)] for token, options in positive]
    return (
        add_run_check(node_helpers.conditioning_set_values(positive, source)),
        add_run_check(node_helpers.conditioning_set_values(negative, source)),
        found,
        record,
    )


def _warn_of_extremes(holes: Tensor) -> None:
    """Warn of holes [b, 1, h, w] of sizes with which the model was not trained."""
    for share in (float(hole.mean()) for hole in holes):
        if share > AREA[1]:
            remedy = "Increase context, reduce grow, or paint a smaller mask"
        elif 0 < share < AREA[0]:
            remedy = 'Choose "around the hole" for window, reduce context, or increase grow'
        else:
            continue
        notices.warn_user(
            f"{NODE}: the hole is {100 * share:.2g} % of the window, and the model was trained with {AREA[0]:.0%} to {AREA[1]:.0%}; "
            f"the result may ignore the exemplar or its surroundings. {remedy}."
        )
        return


def _crop_regions(options: dict, record: CropRecord) -> dict:
    """Regions of exemplars are masks of the whole image; the model sees a window of it."""
    if REGIONS not in options:
        return options
    regions = []
    for region in options[REGIONS]:
        masks = region.mask
        if masks.shape[0] not in (1, len(record.source)):
            raise ValueError(
                f"{NODE}: region of the exemplars has a batch of {masks.shape[0]}, but image has a batch of {len(record.source)}. "
                "Connect one region, or one for each."
            )
        if masks.shape[-2:] != record.source.shape[1:3]:
            masks = F.interpolate(masks[:, None], size=record.source.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
        parts = [
            crop_hole((masks[index % len(masks)] > 0.5).float()[None, None], box, record.size)[:, 0]
            for index, box in enumerate(record.boxes)
        ]
        regions.append(replace(region, mask=torch.cat(parts)))
    return {**options, REGIONS: tuple(regions)}


def make_mask_shapes(
    box: tuple[float, float, float, float],
    width: int,
    height: int,
    shape: str,
    extension: float,
    jitter: int,
    seed: int,
    count: int,
    mask: Tensor | None = None,
) -> Tensor:
    """MASK [n, height, width] of the paper's shapes for a box x0 y0 x1 y1 in 0..1, or around what a mask [b, h, w] selects.

    With a mask its own size is used, and there are `count` shapes for each of its images; for an empty one of several they are empty.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    check_choice(shape, SHAPE, "shape", shapes.SHAPES)
    extension = check_number(extension, SHAPE, "extension", 0.0, 1.0)
    jitter = check_integer(jitter, SHAPE, "jitter", 0, 100)
    count = check_integer(count, SHAPE, "count", 1, MOST_SHAPES)
    rng = torch.Generator().manual_seed(check_integer(seed, SHAPE, "seed", 0, 2**64 - 1))
    boxes: list[Any]
    if mask is None:
        width, height = (check_integer(v, SHAPE, name, CELL, LARGEST_SIDE) for name, v in (("width", width), ("height", height)))
        for name, value in zip(("x", "y", "box_width", "box_height"), (*box[:2], box[2] - box[0], box[3] - box[1])):
            check_number(value, SHAPE, name, 0.0, 1.0 + 1e-6)
        if box[0] >= min(box[2], 1.0) or box[1] >= min(box[3], 1.0):
            raise ValueError(
                f"{SHAPE}: the box {tuple(round(v, 3) for v in box)} has no area. Enter a box_width and a box_height above 0."
            )
        boxes = [(box[0] * width, box[1] * height, min(box[2], 1.0) * width, min(box[3], 1.0) * height)]
    else:
        masks = check_mask(mask, SHAPE)
        height, width = masks.shape[-2:]
        boxes = [mask_bounds(one) for one in masks]
        if not any(boxes):
            raise ValueError(f"{SHAPE}: the mask is empty. Paint a mask, or disconnect it and use the box.")
        if not all(boxes):
            notices.warn_user(f"{SHAPE}: {boxes.count(None)} of {len(boxes)} masks are empty; their shapes are empty, too.")
    found = []
    for one in boxes:
        for _ in range(count):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if one is None:
                found.append(torch.zeros(height, width))
            else:
                pixels = tuple(float(v) for v in one)
                found.append(shapes.draw_mask_shape(pixels, width, height, rng, shape, extension, jitter))  # type: ignore[arg-type]
    return torch.stack(found)
