"""Region CLIP score: how similar an inpainted region is to its reference image, according to a CLIP_VISION."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.regions import region, region_scores
from ...imaging.masks import mask_bounds
from .. import inputs

NODE = "Region CLIP Score"


def measure(clip_vision: Any, image: Tensor, mask: Tensor, exemplar: Tensor) -> tuple[float, str]:
    """The mean score of the images [b, h, w, 3], and a report with a line for each.

    Args:
        mask: [1 or b, h, w]; the rectangle around it is measured.
        exemplar: [1 or b, h, w, 3].

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    inputs.check_connected(clip_vision, NODE, "clip_vision", "Connect Load CLIP Vision.")
    image, exemplar = inputs.check_image(image, NODE), inputs.check_image(exemplar, NODE, "exemplar")
    masks, count = inputs.check_mask(mask, NODE, allow_blank=False), len(image)
    for name, found in (("mask", len(masks)), ("exemplar", len(exemplar))):
        if found not in (1, count):
            raise ValueError(f"{NODE}: {name} has {found} images, but image has {count}. Connect one, or one for each.")
    if masks.shape[-2:] != image.shape[1:3]:
        masks = F.interpolate(masks[:, None], size=image.shape[1:3], mode="nearest")[:, 0]
    parts = []
    for number, each in enumerate(image.movedim(-1, 1)):
        box = mask_bounds(masks[number % len(masks)])
        if box is None:
            raise ValueError(
                f"{NODE}: mask {number % len(masks) + 1} of {len(masks)} is empty. Connect the mask of the inpainted region."
            )
        parts.append(region(each, box))
    regions = _embed(clip_vision, torch.stack(parts).movedim(1, -1).clamp(0, 1))
    scores = region_scores(regions, _embed(clip_vision, exemplar))
    lines = [f"image {number + 1}: {float(score):.1f}" for number, score in enumerate(scores)]
    return float(scores.mean()), "\n".join([f"mean: {float(scores.mean()):.1f}", *lines])


def _embed(clip_vision: Any, images: Tensor) -> Tensor:
    return clip_vision.encode_image(images, crop=False)["image_embeds"].detach().float()
