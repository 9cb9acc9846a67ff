"""Label images as people bring them to semantic maps: drawn in colours or in class numbers, with red and blue swapped, void 255.

What can be recognised with certainty is read right, and the notes say so. What cannot is left to the inputs, and the notes say which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .palettes import NUMBERS_ONLY, PALETTE_NAMES, VOID, Palette, named_palette
from .semantic_map import SemanticMap, look_up
from .snapping import AUTOMATIC, choose_palette, image_to_bytes, palette_distances, snap_to_palette

#: How a label image says its classes; the first means: find out.
READINGS: tuple[str, ...] = ("automatic", "colours", "class numbers")
#: The share of pixels whose neighbours to the right and below are equal, from which on a grey image can be a map and not a photo.
_FLAT = 0.3
#: Swapped channels are certain where these shares of the pixels fit with them (at least) and without (less), within `_EXACT` in RGB.
_SWAPPED = ((0.9, 0.5), (0.98, 0.9))
_EXACT = 4.0


@dataclass(frozen=True, eq=False)
class Reading:
    """A semantic map that was read from an image, and what the user should know about it."""

    semantic_map: SemanticMap
    notes: tuple[str, ...] = ()


def read_labels(
    image: Tensor,
    palette_name: str,
    tolerance: float = 32.0,
    clean_edges: bool = True,
    like: SemanticMap | None = None,
    reading: str = READINGS[0],
    first_class: int = 0,
) -> Reading:
    """A semantic map from an IMAGE of labels.

    Args:
        image: [b, h, w, c] in 0..1, see `snap_to_palette`.
        palette_name: one of PALETTE_NAMES, or AUTOMATIC (the colours of the image itself).
        like: take this map's palette instead.
        reading: one of READINGS. automatic: class numbers where a grey image cannot be a drawing in the palette's colours.
        first_class: the grey value of the palette's first class; smaller values, and always 255, are void.

    Raises:
        ValueError: an unknown choice, class numbers without a palette or in an image with colours, or as `snap_to_palette`.
    """
    if reading not in READINGS:
        raise ValueError(f"reading is {reading!r}; choose one of: {', '.join(READINGS)}.")
    if not 0 <= first_class <= 255:
        raise ValueError(f"first_class is {first_class}; it must be a whole number from 0 to 255.")
    numbers = None if reading == "colours" else grey_values(image)
    named = like is not None or palette_name != AUTOMATIC
    if reading == "class numbers":
        if numbers is None:
            raise ValueError(
                "reading is 'class numbers', but the image has colours. Set it to 'colours', or load the label file in grey."
            )
        if not named:
            raise ValueError(
                f"palette is {AUTOMATIC!r}, which has no class numbers. Choose the palette whose classes are numbered."
            )
    palette = choose_palette(image, palette_name, tolerance, like)
    if numbers is not None and named and (reading == "class numbers" or are_class_numbers(numbers, palette)):
        return _read_numbers(numbers, palette, first_class, guessed=reading != "class numbers")
    notes: list[str] = []
    if numbers is not None and (not named or palette.name in NUMBERS_ONLY or _look_like_numbers(numbers)):
        notes += _advise_numbers(numbers, palette if named else None)
    if reading == READINGS[0] and named and _is_swapped(image, palette):
        image = torch.cat([image[..., :3].flip(-1), image[..., 3:]], dim=-1)
        notes.append(
            f"Red and blue are swapped in this image (BGR): only then it has the colours of {palette.name!r}, so it was read that way."
        )
    return Reading(snap_to_palette(image, palette, tolerance, clean_edges), tuple(notes))


def grey_values(image: Tensor) -> np.ndarray | None:
    """The grey values [b, h, w] uint8 of an IMAGE without colours, transparent pixels 255; None if it has colours."""
    rgb, visible = image_to_bytes(image)
    if not ((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()):
        return None
    return rgb[..., 0] if visible is None else np.where(visible, rgb[..., 0], np.uint8(VOID))


def are_class_numbers(numbers: np.ndarray, palette: Palette) -> bool:
    """Whether grey values [..., h, w] are certainly numbers of the palette's classes and not its colours.

    They are if all fit into the palette (255 is void, one more than the last class allows numbers from 1), if the image consists of
    areas, and if most of the values are not grey colours of the palette.
    """
    values = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256)[:VOID])
    inner = values[values != 0]  # black is void or a background in most palettes, whichever way the image is read
    if not len(inner) or values.max() > len(palette.names):
        return False
    greys = {colour[0] for colour in (*palette.colours, palette.void_colour) if len(set(colour)) == 1}
    return 2 * sum(int(value) in greys for value in inner) < len(inner) and _flat_share(numbers) >= _FLAT


def numbers_to_labels(numbers: np.ndarray, palette: Palette, first_class: int = 0) -> np.ndarray:
    """The labels of class numbers [...] uint8: number - first_class, void for numbers outside of the classes."""
    table = np.full(256, VOID, dtype=np.uint8)
    classes = min(len(palette.names), VOID - first_class)
    table[first_class : first_class + classes] = np.arange(classes, dtype=np.uint8)
    return look_up(table, numbers)


def _read_numbers(numbers: np.ndarray, palette: Palette, first_class: int, guessed: bool) -> Reading:
    values = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256)[:VOID])
    classes, notes = len(palette.names), []
    if guessed and first_class == 0 and len(values) and values.max() == classes:
        first_class = 1  # number n of n classes exists only if they are counted from 1
    if guessed:
        text = f"The grey values were read as class numbers of {palette.name!r}, from {first_class} on."
        if first_class == 0 and 0 in values and palette.names[0] not in ("background", "unlabeled"):
            text += f" If 0 means other and not {palette.names[0]!r}, as in ADE20K's annotations, set first_class to 1."
        notes.append(text)
    beyond = values[values >= first_class + classes]
    if len(beyond):
        shown = ", ".join(map(str, beyond[:8])) + (" ..." if len(beyond) > 8 else "")
        notes.append(
            f"Void: the values {shown}, since {palette.name!r} has the numbers {first_class} to {first_class + classes - 1}. "
            "Choose the palette whose classes are numbered, or another first_class."
        )
    return Reading(SemanticMap(torch.from_numpy(numbers_to_labels(numbers, palette, first_class)), palette), tuple(notes))


def _look_like_numbers(numbers: np.ndarray) -> bool:
    """Several grey values of which some differ by 1 or 2, in areas: people do not draw with such colours."""
    values = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256)[:VOID])
    return len(values) > 1 and int(np.diff(values).min()) <= 2 and values.max() <= 182 and _flat_share(numbers) >= 0.9


def _advise_numbers(numbers: np.ndarray, palette: Palette | None) -> list[str]:
    """What to do with a grey image that looks like class numbers; nothing for other grey images."""
    if not _look_like_numbers(numbers):
        return []
    most = int(numbers[numbers != VOID].max())
    fitting = [name for name in PALETTE_NAMES if len(named_palette(name).names) >= most]
    why = "has no class numbers" if palette is None else f"has {len(palette.names)} classes"
    return [
        f"Warning: the grey values up to {most} look like class numbers, but the palette "
        f"{AUTOMATIC if palette is None else palette.name!r} {why}. Choose the palette whose classes are numbered, one of: {', '.join(fitting)}."
    ]


def share_in_colours(image: Tensor, palette: Palette, swapped: bool = False) -> float:
    """The share of pixels of the first image that have a colour of the palette, almost exactly; judged on at most 256 x 256 pixels."""
    step = max(1, max(image.shape[1:3]) // 256)
    rgb, _ = image_to_bytes(image[:1, ::step, ::step])
    colours, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    colours = np.ascontiguousarray(colours[:, ::-1] if swapped else colours, dtype=np.float32)
    return float(counts[palette_distances(colours, palette) <= _EXACT].sum() / counts.sum())


def _is_swapped(image: Tensor, palette: Palette) -> bool:
    """Whether only the reversed channel order has the palette's colours."""
    plain = share_in_colours(image, palette)
    if plain >= _SWAPPED[-1][1]:
        return False
    swapped = share_in_colours(image, palette, swapped=True)
    return any(swapped >= most and plain < least for most, least in _SWAPPED)


def _flat_share(numbers: np.ndarray) -> float:
    if min(numbers.shape[-2:]) < 2:
        return 1.0
    corner = numbers[..., :-1, :-1]
    return float(((corner == numbers[..., 1:, :-1]) & (corner == numbers[..., :-1, 1:])).mean())
