"""Exemplars: from a picture, perhaps with a mask, to what the CLIP tower reads; and the arithmetic of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FITS = ("squash", "center_crop", "pad")
FILLS = ("keep", "black", "grey", "white", "blur")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_GREY = {"black": 0.0, "grey": 0.5, "white": 1.0}


def cut_out(picture: Tensor, mask: Tensor | None, fill: str, crop: bool) -> Tensor:
    """The thing that a mask shows in a picture.

    Args:
        picture: [3, h, w] in 0..1.
        mask: [h, w] in 0..1, 1 on the thing. None: the picture as it is.
        fill: what the rest becomes, one of `FILLS`; `keep` leaves it.
        crop: only the rectangle around the thing.

    Raises:
        ValueError: the mask shows nothing.
    """
    if mask is None:
        return picture
    rows, columns = (torch.nonzero((mask > 0.5).any(dim=axis)).flatten() for axis in (1, 0))
    if not len(rows):
        raise ValueError("the mask of the exemplar is empty. Paint over the thing in it, or disconnect the mask.")
    if fill != "keep":
        picture = torch.lerp(_background(picture, fill), picture, mask.clamp(0, 1).to(picture))
    if crop:
        picture = picture[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    return picture


def _background(picture: Tensor, fill: str) -> Tensor:
    if fill != "blur":
        return torch.full_like(picture, _GREY[fill])
    small = [max(1, side // 16) for side in picture.shape[-2:]]
    blurred = F.interpolate(picture[None], size=small, mode="area")
    return F.interpolate(blurred, size=picture.shape[-2:], mode="bilinear", align_corners=False)[0]


def fitted(picture: Tensor, size: int, fit: str, paper: float = 0.0) -> Tensor:
    """A picture [3, h, w] as a square [3, size, size].

    `squash` ignores its aspect ratio, as the authors do; `center_crop` takes the middle, as diffusers and the host's CLIP vision do; `pad`
    shows all of it on `paper`. Resizing is bicubic with antialiasing, as theirs.
    """
    h, w = picture.shape[-2:]
    if fit == "squash":
        return _resized(picture, size, size)
    scale = size / (min if fit == "center_crop" else max)(h, w)
    picture = _resized(picture, max(1, round(scale * h)), max(1, round(scale * w)))
    top, left = ((side - size) // 2 for side in picture.shape[-2:])
    if fit == "center_crop":
        return picture[:, top : top + size, left : left + size]
    h, w = picture.shape[-2:]
    return F.pad(picture, (-left, size - w + left, -top, size - h + top), value=paper)


def _resized(picture: Tensor, h: int, w: int) -> Tensor:
    if picture.shape[-2:] == (h, w):
        return picture
    resized = F.interpolate(picture[None], size=(h, w), mode="bicubic", antialias=True, align_corners=False)[0]
    return (resized.clamp(0, 1) * 255).round() / 255  # in eight bits, as pictures are resized where the tower was trained


def normalised(pictures: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """[n, 3, h, w] in 0..1 as the tower reads it."""
    return (pictures - pictures.new_tensor(mean).view(3, 1, 1)) / pictures.new_tensor(std).view(3, 1, 1)


def towards_null(null: Tensor, token: Tensor, strength: float) -> Tensor:
    """The exemplar's token [n, 1, c] at a strength: 0 is no exemplar at all, 1 the token itself, both exactly.

    Attention to a single token is linear in it, so this is the same as scaling what each layer hears of the exemplar.
    """
    if strength == 1.0:
        return token
    return null.expand_as(token) + strength * (token - null) if strength else null.expand_as(token).clone()


def mixed(tokens: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean [1, 1, c] of tokens [n, 1, c]."""
    share = tokens.new_tensor(weights)
    return (tokens * (share / share.sum()).view(-1, 1, 1)).sum(dim=0, keepdim=True)


def steps_of(strength: float, course: str, start: float, end: float, pieces: int = 8) -> list[tuple[float, float, float]]:
    """[(start, end, strength)] of the parts of the sampling that read another strength than their neighbours; together all of it.

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
