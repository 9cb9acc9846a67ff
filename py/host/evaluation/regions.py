"""Region CLIP score: does the place that was painted show the exemplar, says a CLIP_VISION."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.regions import region, region_scores
from ...imaging.masks import mask_bounds
from ..inputs import check_image, check_mask

NODE = "Region CLIP Score"


def measure(clip_vision: Any, image: Tensor, mask: Tensor, exemplar: Tensor) -> tuple[float, str]:
    """The mean score of the pictures [b, h, w, 3], and a line for each.

    Args:
        mask: [1 or b, h, w]; the rectangle around what it shows is looked at.
        exemplar: [1 or b, h, w, 3].

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    image, exemplar = check_image(image, NODE), check_image(exemplar, NODE, "exemplar")
    masks, count = check_mask(mask, NODE), len(image)
    for name, found in (("mask", len(masks)), ("exemplar", len(exemplar))):
        if found not in (1, count):
            raise ValueError(f"{NODE}: {name} has {found} pictures, but image has {count}. Give one, or one for each.")
    if masks.shape[-2:] != image.shape[1:3]:
        masks = F.interpolate(masks[:, None], size=image.shape[1:3], mode="nearest")[:, 0]
    parts = []
    for number, picture in enumerate(image.movedim(-1, 1)):
        box = mask_bounds(masks[number % len(masks)])
        if box is None:
            raise ValueError(f"{NODE}: the mask is empty. Give the mask of the hole that was painted.")
        parts.append(region(picture, box))
    regions = _embedded(clip_vision, torch.stack(parts).movedim(1, -1).clamp(0, 1))
    scores = region_scores(regions, _embedded(clip_vision, exemplar))
    lines = [f"picture {number + 1}: {float(score):.1f}" for number, score in enumerate(scores)]
    return float(scores.mean()), "\n".join([f"mean: {float(scores.mean()):.1f}", *lines])


def _embedded(clip_vision: Any, pictures: Tensor) -> Tensor:
    return clip_vision.encode_image(pictures, crop=False)["image_embeds"].detach().float()
