"""Images of exemplars -> CONDITIONING for Paint by Example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.masks import looks_inverted
from ...paint_by_example.exemplar import (
    COURSES,
    FILL_VALUES,
    FILLS,
    FITS,
    MEAN,
    STD,
    blend_tokens,
    cut_out,
    fit_square,
    is_on_black,
    normalise,
    scale_token,
    schedule_strength,
)
from .. import notices
from ..inputs import check_choice, check_connected, check_image, check_mask, check_number, check_text, list_names
from ..schedule import PercentRange
from .regions import NODE, REGIONS, Region

BLENDED = "exemplary_blended"  # in a CONDITIONING: the sum of the weights of the exemplars that its token is the mean of
BLEND, ONE_EACH = "blend", "one per picture"
SEVERAL = (BLEND, ONE_EACH)


@dataclass(frozen=True, eq=False)
class ExemplarEncoder:
    """EXEMPLARY_EXEMPLAR_ENCODER: a CLIP vision tower and the mapper behind it, both managed by the host.

    `vision` is the network inside of the ModelPatcher `clip_vision`, `size` the side of its square input.
    """

    clip_vision: Any
    vision: Any
    mapper: Any
    size: int
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __deepcopy__(self, memo: dict) -> ExemplarEncoder:
        return self

    def null(self) -> Tensor:
        """The token that means "no exemplar", [1, 1, c]."""
        return self.mapper.model.null.detach().to(comfy.model_management.intermediate_device(), torch.float32)

    def encode(self, squares: Tensor) -> Tensor:
        """Images [n, 3, size, size] in 0..1 -> their tokens [n, 1, c]."""
        comfy.model_management.load_models_gpu([self.clip_vision, self.mapper])
        device = self.clip_vision.load_device
        with torch.no_grad():
            pooled = self.vision(normalise(squares.to(device, torch.float32), self.mean, self.std))[2]
            tokens = self.mapper.model(pooled.float().to(self.mapper.load_device))
        return tokens.to(comfy.model_management.intermediate_device(), torch.float32)


def make_conditioning(
    encoder: ExemplarEncoder,
    image: Tensor,
    *,
    weights: str = "1",
    several: str = BLEND,
    fit: str = "squash",
    mask: Tensor | None = None,
    fill: str = "keep",
    crop: bool = True,
    strength: float = 1.0,
    course: str = "constant",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    region: Tensor | None = None,
    positive: list | None = None,
) -> tuple[list, list]:
    """Positive and negative CONDITIONING of exemplars [n, h, w, 1, 3 or 4].

    Args:
        weights: one number for all exemplars, or one for each, separated by commas.
        several: `blend` them into one token, or `one per picture` of the latent batch.
        mask: [1 or n, h, w] of the object; an image with alpha needs none. An exemplar whose mask is empty is left out.
        region: [1 or b, h, w] of the source image, to which these exemplars are limited.
        positive: from another node of this kind; these exemplars are added to it.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    check_connected(encoder, NODE, "encoder", "Connect the encoder of Load Paint by Example.")
    for name, value, choices in (
        ("several", several, SEVERAL),
        ("fit", fit, FITS),
        ("fill", fill, FILLS),
        ("course", course, COURSES),
    ):
        check_choice(value, NODE, name, choices)
    images = check_image(image, NODE, keep_alpha=True)
    strength = check_number(strength, NODE, "strength", 0.0, 2.0)
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    given = _parse_weights(check_text(weights, NODE, "weights"), len(images))
    masks = None if region is None else check_mask(region, NODE, "region")
    if masks is not None and not (masks > 0.5).any():
        raise ValueError(
            f"{NODE}: region is empty: nothing in it is above one half. Paint where this exemplar belongs, or disconnect it."
        )
    null, tokens, shares = _encode(encoder, images, given, several, fit, mask, fill, crop)
    used = [share for share in shares if share is not None]
    if several == BLEND:
        tokens = blend_tokens(tokens, [share or 0.0 for share in shares])
    weight = sum(used) / len(used)
    entries = []
    previous: list[Any] = [[null, {BLENDED: 0.0}]] if positive is None else positive
    for first_percent, last_percent, factor in schedule_strength(strength, course, percent.start, percent.end):
        token = scale_token(null, tokens, factor)
        for before, options in previous:
            first = max(first_percent, options.get("start_percent", 0.0))
            last = min(last_percent, options.get("end_percent", 1.0))
            if first < last:
                entries.append(_add_exemplar(before, options, token, weight, masks, first, last))
    return entries, [[null, {}]]


def _encode(
    encoder: ExemplarEncoder,
    images: Tensor,
    shares: list[float],
    several: str,
    fit: str,
    mask: Tensor | None,
    fill: str,
    crop: bool,
) -> tuple[Tensor, Tensor, list[float | None]]:
    """The null token, the tokens [n, 1, c] of all images, and their shares, None for an image whose mask is empty."""
    masks: Tensor | None
    if mask is None and images.shape[-1] == 4 and (images[..., 3] < 1).any():
        masks, fill = images[..., 3], "white" if fill == "keep" else fill  # transparent pixels have no colour to keep
    else:
        masks = None if mask is None else _check_masks(mask, images)
    found: list[Tensor | None] = []
    for index, one in enumerate(images[..., :3].movedim(-1, 1)):
        own = None if masks is None else masks[index % len(masks)]
        if own is None and is_on_black(one):
            notices.warn_user(
                f"{NODE}: image {index + 1} has a black background, which is likely to be painted around the object. "
                "Connect a mask of the object, with crop on."
            )
        is_empty = own is not None and len(images) > 1 and not (own > 0.5).any()
        try:
            found.append(
                None if is_empty else fit_square(cut_out(one, own, fill, crop), encoder.size, fit, FILL_VALUES.get(fill, 0.0))
            )
        except ValueError as error:
            raise ValueError(f"{NODE}: {error}") from None
    used = [square for square in found if square is not None]
    if not used or not any(share for share, square in zip(shares, found) if square is not None):
        raise ValueError(
            f"{NODE}: mask is empty for every exemplar with a weight. Paint over the object, or disconnect the mask."
        )
    null, encoded = encoder.null(), iter(encoder.encode(torch.stack(used)).split(1))
    tokens = [null if square is None else next(encoded) for square in found]
    empty = [index for index, square in enumerate(found) if square is None]
    if empty:
        effect = "left out" if several == BLEND else "replaced by no exemplar"
        numbers = list_names(str(index + 1) for index in empty)
        notices.warn_user(f"{NODE}: mask of exemplar {numbers} of {len(found)} is empty; it is {effect}.")
    return null, torch.cat(tokens), [None if square is None else share for share, square in zip(shares, found)]


def _check_masks(mask: Tensor, images: Tensor) -> Tensor:
    masks = check_mask(mask, NODE)
    if len(masks) not in (1, len(images)):
        raise ValueError(
            f"{NODE}: mask has a batch of {len(masks)}, but image has a batch of {len(images)}. Connect one mask, or one for each."
        )
    if any(looks_inverted(one) for one in masks):
        notices.warn_user(
            f"{NODE}: mask selects most of the border and leaves the middle free, so it probably selects the background. "
            "Load Image's MASK selects what is transparent: put Invert Mask between them."
        )
    if masks.shape[-2:] != images.shape[1:3]:
        masks = F.interpolate(masks[:, None], size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    return masks


def _add_exemplar(
    before: Tensor, options: dict, token: Tensor, weight: float, region: Tensor | None, first: float, last: float
) -> list:
    """One entry of a CONDITIONING with one more exemplar."""
    options = dict(options)
    if (first, last) != (0.0, 1.0):
        options |= {"start_percent": first, "end_percent": last}
    if region is not None:
        options[REGIONS] = (*options.get(REGIONS, ()), Region(token, region))
        return [before, options]
    blended = options.get(BLENDED, 1.0)
    options[BLENDED] = blended + weight
    return [(blended * before + weight * token) / (blended + weight) if blended else token, options]


def _parse_weights(text: str, count: int) -> list[float]:
    try:
        shares = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{NODE}: weights is {text!r}; it must be numbers separated by commas, such as 1, 0.5.") from None
    shares = shares * count if len(shares) == 1 else shares
    if len(shares) != count:
        raise ValueError(f"{NODE}: weights has {len(shares)} numbers for {count} exemplars. Enter one, or one for each.")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) <= 0:
        raise ValueError(f"{NODE}: weights is {text!r}; the numbers must not be negative, and one must be above 0.")
    return shares
