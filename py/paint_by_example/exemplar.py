"""Exemplars: from an image, perhaps with a mask, to the input of the CLIP tower; and the arithmetic of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.masks import mask_bounds

FITS = ("squash", "center_crop", "pad")
FILLS = ("keep", "black", "grey", "white", "blur")
COURSES = ("constant", "fade in", "fade out")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILL_VALUES = {"black": 0.0, "grey": 0.5, "white": 1.0}


def cut_out(image: Tensor, mask: Tensor | None, fill: str, crop: bool) -> Tensor:
    """The object that a mask selects in an image.

    Args:
        image: [3, h, w] in 0..1.
        mask: [h, w] in 0..1, 1 on the object. None: the image is returned unchanged.
        fill: what the background becomes, one of `FILLS`; `keep` leaves it.
        crop: return only the bounding box of the object.

    Raises:
        ValueError: the mask selects nothing.
    """
    if mask is None:
        return image
    box = mask_bounds(mask)
    if box is None:
        raise ValueError(
            "mask is empty: nothing in it is above one half. Paint over the object in the image, or disconnect the mask."
        )
    if fill != "keep":
        image = torch.lerp(_background(image, fill), image, mask.clamp(0, 1).to(image))
    if crop:
        x0, y0, x1, y1 = box
        image = image[:, y0:y1, x0:x1]
    return image


def _background(image: Tensor, fill: str) -> Tensor:
    if fill != "blur":
        return torch.full_like(image, FILL_VALUES[fill])
    small = [max(1, side // 16) for side in image.shape[-2:]]
    blurred = F.interpolate(image[None], size=small, mode="area")
    return F.interpolate(blurred, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def is_on_black(image: Tensor) -> bool:
    """Whether an image [3, h, w] shows something on a black background, as segmentation tools save cut-out objects."""
    black = image.amax(dim=0) < 2.5 / 255
    border = torch.cat([black[0], black[-1], black[:, 0], black[:, -1]]).float().mean()
    return bool(border >= 0.9 and not black.all())


def fit_square(image: Tensor, size: int, fit: str, padding: float = 0.0) -> Tensor:
    """An image [3, h, w] as a square [3, size, size].

    `squash` ignores the aspect ratio, as the authors do; `center_crop` takes the centre, as diffusers and the host's CLIP vision do; `pad` shows
    the whole image on a background of value `padding`. Resizing is bicubic with antialiasing, as in both.
    """
    h, w = image.shape[-2:]
    if fit == "squash":
        return _resize(image, size, size)
    scale = size / (min if fit == "center_crop" else max)(h, w)
    image = _resize(image, max(1, round(scale * h)), max(1, round(scale * w)))
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    if fit == "center_crop":
        return image[:, top : top + size, left : left + size]
    h, w = image.shape[-2:]
    return F.pad(image, (-left, size - w + left, -top, size - h + top), value=padding)


def _resize(image: Tensor, h: int, w: int) -> Tensor:
    if image.shape[-2:] == (h, w):
        return image
    resized = F.interpolate(image[None], size=(h, w), mode="bicubic", antialias=True, align_corners=False)[0]
    return (resized.clamp(0, 1) * 255).round() / 255  # in eight bits, as images were resized in the tower's training


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """[n, 3, h, w] in 0..1 -> the tower's input."""
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def scale_token(null: Tensor, token: Tensor, strength: float) -> Tensor:
    """The exemplar's token [n, 1, c] at a strength: 0 removes the exemplar, 1 is the unchanged token, both exactly.

    Attention to a single token is linear in it, so this equals scaling the exemplar's effect in each layer.
    """
    if strength == 1.0:
        return token
    return null.expand_as(token) + strength * (token - null) if strength else null.expand_as(token).clone()


def blend_tokens(tokens: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean [1, 1, c] of tokens [n, 1, c]."""
    share = tokens.new_tensor(weights)
    return (tokens * (share / share.sum()).view(-1, 1, 1)).sum(dim=0, keepdim=True)


def schedule_strength(
    strength: float, course: str, start: float, end: float, pieces: int = 8
) -> list[tuple[float, float, float]]:
    """[(start, end, strength)] for the ranges of the sampling that have one strength each; together they cover all of it.

    Args:
        course: `constant`, `fade in` or `fade out` between `start` and `end`. Outside of them the strength is 0.
    """
    values = {
        "constant": [strength],
        "fade in": [strength * (k + 1) / pieces for k in range(pieces)],
        "fade out": [strength * (pieces - k) / pieces for k in range(pieces)],
    }[course]
    if start >= end:
        return [(0.0, 1.0, 0.0)]
    width = (end - start) / len(values)
    parts = [(start + k * width, start + (k + 1) * width, value) for k, value in enumerate(values)]
    before = [(0.0, start, 0.0)] if start > 0 else []
    after = [(end, 1.0, 0.0)] if end < 1 else []
    return [*before, *parts[:-1], (parts[-1][0], end, parts[-1][2]), *after]
