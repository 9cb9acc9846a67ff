"""Instances: which phrase belongs into which box of the picture. Plain values, in and out of JSON and of other packs' box lists."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, 0..1 of the picture's width and height

BOX_FORMATS = (
    "x0 y0 x1 y1, 0-1",
    "x y width height, 0-1",
    "x0 y0 x1 y1, pixels",
    "x y width height, pixels",
    "y0 x0 y1 x1, 0-1000",
)


@dataclass(frozen=True, eq=False)
class Instance:
    """One object to draw.

    Args:
        box: x0 y0 x1 y1 in 0..1, positive width and height, at least partly inside the picture; what is outside is cut off.
        phrase: what to draw there, not empty.
        mask: optional [f, h, w] in 0..1, the object's place inside the picture more exactly; f is 1 or one per latent.
        strength: 1 is the full effect, 0 none; above 1 exaggerates.
        reference: optional [1, h, w, 3] in 0..1, an image of the object for models that use reference images.

    Raises:
        ValueError: naming the value and the remedy.
    """

    box: Box
    phrase: str
    mask: Tensor | None = None
    strength: float = 1.0
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", check_box(self.box, self.phrase))
        object.__setattr__(self, "phrase", str(self.phrase).strip())
        if not self.phrase:
            raise ValueError(f"The instance in box {show(self.box)} has no phrase. Write what shall be drawn there.")
        if not _number(self.strength) or not 0.0 <= self.strength <= 2.0:
            raise ValueError(f"Instance {short(self.phrase)}: strength is {self.strength}; it must be a number from 0 to 2.")
        if self.mask is not None:
            object.__setattr__(self, "mask", checked_mask(self.mask, self.phrase))

    def __deepcopy__(self, memo: dict) -> Instance:
        return self


@dataclass(frozen=True, eq=False)
class Instances:
    """The EXEMPLARY_INSTANCES value: an ordered list that never changes; adding gives a new list."""

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
        """[{"box": [x0, y0, x1, y1], "phrase": "...", "strength": 1.0}, ...]. Masks are pictures and stay out."""
        return json.dumps([{"box": list(i.box), "phrase": i.phrase, "strength": i.strength} for i in self], ensure_ascii=False)


def mask_box(mask: Tensor, phrase: str) -> Box:
    """The smallest box around a mask [f, h, w]."""
    used = checked_mask(mask, phrase).amax(dim=0) > 0
    rows, columns = used.any(dim=1).nonzero().flatten(), used.any(dim=0).nonzero().flatten()
    h, w = used.shape
    return (
        float(columns[0]) / w,
        float(rows[0]) / h,
        float(columns[-1] + 1) / w,
        float(rows[-1] + 1) / h,
    )


def checked_mask(mask: Tensor, phrase: str) -> Tensor:
    """The mask as [f, h, w] in 0..1. Raises ValueError if it is empty, not finite or of another shape."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or mask.numel() == 0:
        raise ValueError(f"Instance {short(phrase)}: the mask has shape {tuple(mask.shape)}; a MASK is [batch, height, width].")
    mask = mask.detach().float()
    if not bool(mask.isfinite().all()):
        raise ValueError(f"Instance {short(phrase)}: the mask contains NaN or infinity. Check the node it comes from.")
    if not bool((mask > 0).any()):
        raise ValueError(
            f"Instance {short(phrase)}: the mask is empty. Paint the object's place, or disconnect the mask and use the box."
        )
    return mask.clamp(0.0, 1.0)


def check_box(box: Sequence[float], phrase: str) -> Box:
    """Four finite numbers with an area inside the picture, cut to the picture."""
    numbers = list(box) if isinstance(box, (list, tuple)) else []
    if len(numbers) != 4 or not all(_number(n) for n in numbers):
        raise ValueError(f"Instance {short(phrase)}: the box is {show(box)}; it must be four finite numbers x0 y0 x1 y1.")
    x0, y0, x1, y1 = (float(n) for n in numbers)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"Instance {short(phrase)}: the box {show(numbers)} has no area. x1 must be above x0 and y1 above y0; "
            "if these are x y width height, choose that format."
        )
    x0, y0, x1, y1 = (min(max(n, 0.0), 1.0) for n in (x0, y0, x1, y1))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"Instance {short(phrase)}: the box {show(numbers)} lies outside of the picture, which goes from 0 to 1. "
            "If these are pixels, choose a pixel format and give the picture's width and height."
        )
    return x0, y0, x1, y1


def from_json(text: str, width: int = 0, height: int = 0) -> Instances:
    """Instances from either JSON form.

    Ours, a list of {"box": [x0, y0, x1, y1] in 0..1, "phrase": str, "strength": number}; or IFAdapter's layout,
    {"caption": str, "annotations": [{"box": [x, y, w, h] in pixels, "caption": str | [str]}]}, which needs the width and height
    that its pixels refer to. A layout without annotations is its caption in one box that covers the picture, as upstream has it.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"The layout is not JSON: {error}. A layout looks like {EXAMPLE}.") from None
    if (isinstance(data, dict) and "annotations" in data) or (isinstance(data, dict) and set(data) == {"caption"}):
        return _from_layout(data, width, height)
    if not isinstance(data, list):
        raise ValueError(f"The layout JSON is {_kind(data)}; it must be a list of instances such as {EXAMPLE}.")
    items = []
    for place, entry in enumerate(data, start=1):
        if not isinstance(entry, dict) or "box" not in entry or not isinstance(entry.get("phrase"), str):
            raise ValueError(f"Entry {place} of the layout JSON is {show(entry)}; it needs a box and a phrase, as in {EXAMPLE}.")
        items.append(Instance(entry["box"], entry["phrase"], strength=entry.get("strength", 1.0)))
    return Instances(tuple(items))


EXAMPLE = '[{"box": [0.1, 0.2, 0.5, 0.9], "phrase": "a red car"}]'


def _from_layout(layout: dict, width: int, height: int) -> Instances:
    annotations = layout.get("annotations") or [{"box": [0, 0, width or 1, height or 1], "caption": layout.get("caption", "")}]
    if not isinstance(annotations, list):
        raise ValueError(f"The layout's annotations are {_kind(annotations)}; they must be a list of box and caption.")
    items = []
    for place, entry in enumerate(annotations, start=1):
        caption = entry.get("caption") if isinstance(entry, dict) else None
        caption = ", ".join(map(str, caption)) if isinstance(caption, list) else caption
        if not isinstance(caption, str) or "box" not in entry:
            raise ValueError(
                f"Annotation {place} of the layout is {show(entry)}; it needs a box [x, y, width, height] and a caption."
            )
        items.append(Instance(to_box(entry["box"], "x y width height, pixels", width, height, caption), caption))
    return Instances(tuple(items))


def from_boxes(boxes: Any, phrases: Iterable[str], box_format: str, width: int = 0, height: int = 0) -> Instances:
    """One instance per box, each with its phrase.

    Args:
        boxes: what other nodes give: BBOX (numbers in any nesting of lists), BOUNDING_BOX or BOUNDING_BOXES ({x, y, width, height}), or SEGS.
        phrases: one per box in the same order, or a single one for all; {} takes the descriptions that come with the boxes.
        box_format: one of BOX_FORMATS, for boxes that are four bare numbers. Named boxes say themselves what their numbers are,
            but are in pixels or in 0..1 as this format says.
        width, height: of the picture that pixel boxes refer to.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format is {box_format!r}; it must be one of: {'; '.join(BOX_FORMATS)}.")
    found = list(_flat_boxes(boxes))
    if _is_segs(boxes):  # these say themselves what they are
        (height, width), box_format = boxes[0][:2], BOX_FORMATS[3]
    phrases = [phrase.strip() for phrase in phrases if phrase.strip()]
    own = [phrase for _, phrase in found]
    if not phrases and all(own):
        phrases = own
    if len(phrases) == 1:
        phrases = phrases * len(found)
    if len(phrases) != len(found):
        raise ValueError(
            f"There are {len(found)} boxes but {len(phrases)} phrases. Write one phrase per line, in the order of the boxes, or a single one for all."
        )
    return Instances(
        tuple(Instance(to_box(box, box_format, width, height, phrase), phrase) for (box, _), phrase in zip(found, phrases))
    )


def to_box(numbers: Any, box_format: str, width: int, height: int, phrase: str) -> Box:
    """Four numbers, or {x, y, width, height}, in one of BOX_FORMATS -> x0 y0 x1 y1 in 0..1."""
    if isinstance(numbers, dict):
        box_format = "x y width height, " + box_format.rpartition(", ")[2]
        numbers = [numbers.get(name) for name in ("x", "y", "width", "height")]
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 4 or not all(_number(n) for n in numbers):
        raise ValueError(f"Instance {short(phrase)}: the box is {show(numbers)}; it must be four finite numbers ({box_format}).")
    a, b, c, d = (float(n) for n in numbers)
    order, _, unit = box_format.rpartition(", ")
    if order == "y0 x0 y1 x1":
        a, b, c, d = b, a, d, c
    elif order == "x y width height":
        c, d = a + c, b + d
    if unit == "pixels":
        if not (width > 0 and height > 0):
            raise ValueError(f"Boxes in pixels need the picture's width and height; they are {width} and {height}.")
        a, b, c, d = a / width, b / height, c / width, d / height
    elif unit == "0-1000":
        a, b, c, d = (n / 1000 for n in (a, b, c, d))
    return check_box((a, b, c, d), phrase)


def _flat_boxes(boxes: Any) -> Iterator[tuple[Any, str]]:
    """Every box in any nesting of lists, with the description it brings along, if any."""
    if _is_segs(boxes):
        for segment in boxes[1]:
            x0, y0, x1, y1 = (float(n) for n in segment.bbox)
            yield {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}, str(getattr(segment, "label", "") or "")
    elif isinstance(boxes, dict) and "x" in boxes:
        metadata = boxes.get("metadata") or {}
        yield boxes, str(metadata.get("description") or metadata.get("desc") or metadata.get("label") or boxes.get("label") or "")
    elif isinstance(boxes, Tensor) or hasattr(boxes, "tolist"):
        yield from _flat_boxes(boxes.tolist())
    elif isinstance(boxes, (list, tuple)):
        if len(boxes) == 4 and all(isinstance(n, (int, float)) for n in boxes):
            yield list(boxes), ""
        else:
            for entry in boxes:
                yield from _flat_boxes(entry)
    else:
        raise ValueError(f"Among the boxes is {show(boxes)}. A box is four numbers, or x, y, width and height by name.")


def _is_segs(boxes: Any) -> bool:
    """SEGS of the detector packs: ((height, width), [segment, ...]), a segment has `bbox` in pixels x0 y0 x1 y1."""
    return (
        isinstance(boxes, tuple) and len(boxes) == 2 and isinstance(boxes[1], list) and all(hasattr(s, "bbox") for s in boxes[1])
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def show(value: Any) -> str:
    """A value for a message: rounded, short."""
    if isinstance(value, (list, tuple)) and all(isinstance(n, (int, float)) for n in value):
        return "[" + ", ".join(f"{n:.4g}" for n in value[:8]) + "]"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def short(phrase: Any) -> str:
    """A phrase for a message, in ASCII as every console can print it."""
    return ascii(str(phrase) if len(str(phrase)) <= 40 else str(phrase)[:37] + "...")
