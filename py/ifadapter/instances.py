"""Instances: which phrase belongs in which box of the image. Immutable values, converted to and from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, 0..1 of the image's width and height
MASK_THRESHOLD = 0.5  # share of a mask's largest value from which a pixel belongs to the object
MASK_NOISE = 1 / 32  # smaller values are what blurring and JPEG leave where a mask should be 0


@dataclass(frozen=True, eq=False)
class Instance:
    """One object to draw.

    Args:
        box: x0 y0 x1 y1 in 0..1, positive width and height, at least partly inside the image; what is outside is cut off.
        phrase: what to draw there. It may be empty if there is a conditioning.
        mask: optional [f, h, w] in 0..1, the object's exact region in the whole image; f is 1 or one per latent.
        strength: 1 is the full effect, 0 none; above 1 exaggerates.
        reference: optional [1, h, w, 3] in 0..1, an image of the object for models that use reference images.
        conditioning: optional CONDITIONING used instead of the encoded phrase, by the weight-free method only.

    Raises:
        ValueError: naming the value and the remedy.
    """

    box: Box
    phrase: str
    mask: Tensor | None = None
    strength: float = 1.0
    reference: Tensor | None = None
    conditioning: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, self.phrase))
        object.__setattr__(self, "phrase", str(self.phrase).strip())
        if not self.phrase and self.conditioning is None:
            raise ValueError(f"The instance in box {format_value(self.box)} has no phrase. Write what to draw there.")
        if not is_number(self.strength) or not 0.0 <= self.strength <= 2.0:
            raise ValueError(f"Instance {shorten(self.phrase)}: strength is {self.strength}; it must be a number from 0 to 2.")
        if self.mask is not None:
            object.__setattr__(self, "mask", check_mask(self.mask, self.phrase))

    def __deepcopy__(self, memo: dict) -> Instance:
        return self


@dataclass(frozen=True, eq=False)
class Instances:
    """The EXEMPLARY_INSTANCES value: an ordered, immutable list; adding returns a new one."""

    items: tuple[Instance, ...] = ()

    def plus(self, *more: Instance) -> Instances:
        return Instances((*self.items, *more))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.items)

    def __deepcopy__(self, memo: dict) -> Instances:
        return self

    def to_json(self) -> str:
        """[{"box": [x0, y0, x1, y1], "phrase": "...", "strength": 1.0}, ...]. Masks and conditionings are not included."""
        return json.dumps([{"box": list(i.box), "phrase": i.phrase, "strength": i.strength} for i in self], ensure_ascii=False)


def mask_to_box(mask: Tensor, phrase: str) -> Box:
    """The smallest box around the object in a mask [f, h, w]: pixels with at least half of the mask's largest value."""
    values = check_mask(mask, phrase).amax(dim=0)
    used = values >= MASK_THRESHOLD * values.max()
    rows, columns = used.any(dim=1).nonzero().flatten(), used.any(dim=0).nonzero().flatten()
    h, w = used.shape
    return (
        float(columns[0]) / w,
        float(rows[0]) / h,
        float(columns[-1] + 1) / w,
        float(rows[-1] + 1) / h,
    )


def check_mask(mask: Tensor, phrase: str) -> Tensor:
    """The mask as [f, h, w] float32 in 0..1 on the CPU, without noise near 0. Raises ValueError if it is empty or not a mask."""
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[3]):
        mask = mask[:, 0] if mask.shape[1] == 1 else mask[..., 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or mask.numel() == 0:
        raise ValueError(f"Instance {shorten(phrase)}: the mask has shape {tuple(mask.shape)}; a MASK is [batch, height, width].")
    mask = mask.detach().cpu().float()
    if not bool(mask.isfinite().all()):
        raise ValueError(
            f"Instance {shorten(phrase)}: the mask contains NaN or infinite values. Check the node that it comes from."
        )
    mask = mask.clamp(0.0, 1.0)
    largest = float(mask.max())
    if largest <= 0.0:
        raise ValueError(
            f"Instance {shorten(phrase)}: the mask is empty (0 everywhere). Paint the object's region, or disconnect the mask to use the box."
        )
    # A faint mask keeps its values: only what is small beside its largest value is noise.
    return mask * (mask > MASK_NOISE * largest)


def check_box(box: Sequence[float], phrase: str) -> Box:
    """Four finite numbers with an area inside the image, cut off at the image's borders. Raises ValueError."""
    numbers = list(box) if isinstance(box, (list, tuple)) else []
    if len(numbers) != 4 or not all(is_number(n) for n in numbers):
        raise ValueError(
            f"Instance {shorten(phrase)}: the box is {format_value(box)}; it must be four finite numbers x0 y0 x1 y1."
        )
    x0, y0, x1, y1 = (float(n) for n in numbers)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"Instance {shorten(phrase)}: the box {format_value(numbers)} has no area. x1 must be above x0 and y1 above y0; "
            "if these are x y width height, choose that format."
        )
    x0, y0, x1, y1 = (min(max(n, 0.0), 1.0) for n in (x0, y0, x1, y1))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"Instance {shorten(phrase)}: the box {format_value(numbers)} lies outside the image; coordinates must be from 0 to 1. "
            "If these are pixels, choose a pixel format and give the image's width and height."
        )
    return x0, y0, x1, y1


def is_number(value: Any) -> bool:
    """A finite int or float; not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def describe_kind(value: Any) -> str:
    """The kind of a JSON value, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def format_value(value: Any) -> str:
    """A value for a message: rounded and short, in ASCII as every console can print it."""
    if isinstance(value, (list, tuple)) and all(isinstance(n, (int, float)) for n in value):
        return "[" + ", ".join(f"{n:.4g}" for n in value[:8]) + "]"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def shorten(phrase: Any) -> str:
    """A phrase for a message, in ASCII as every console can print it."""
    return ascii(str(phrase) if len(str(phrase)) <= 40 else str(phrase)[:37] + "...")
