"""Boxes of detectors, vision-language models, box editors and other packs -> boxes with phrases.

What can be recognised with certainty is converted as its source defines it; for the rest the user's `box_format` says what four numbers
mean. Everything else is refused with a message, and what looks wrong but may be meant is returned as a warning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .instances import Box, format_value, is_number, shorten

BOX_FORMATS = (
    "x0 y0 x1 y1, 0-1",
    "x y width height, 0-1",
    "x0 y0 x1 y1, pixels",
    "x y width height, pixels",
    "y0 x0 y1 x1, 0-1000",
    "x0 y0 x1 y1, 0-1000",
    "center x y width height, 0-1",
    "center x y width height, pixels",
)
CORNERS, CORNER_SIZE, ROWS_FIRST, CENTER_SIZE = (
    "x0 y0 x1 y1",
    "x y width height",
    "y0 x0 y1 x1",
    "center x y width height",
)
#: Names of four numbers in a dictionary -> their order.
NAMED = (
    (("x0", "y0", "x1", "y1"), CORNERS),
    (("x1", "y1", "x2", "y2"), CORNERS),
    (("xmin", "ymin", "xmax", "ymax"), CORNERS),
    (("x_min", "y_min", "x_max", "y_max"), CORNERS),
    (("left", "top", "right", "bottom"), CORNERS),
    (("cx", "cy", "width", "height"), CENTER_SIZE),
    (("cx", "cy", "w", "h"), CENTER_SIZE),
    (("x_center", "y_center", "width", "height"), CENTER_SIZE),
    (("x", "y", "width", "height"), CORNER_SIZE),
    (("x", "y", "w", "h"), CORNER_SIZE),
    (("left", "top", "width", "height"), CORNER_SIZE),
)
#: Keys of a list of four numbers whose name says what they are -> (order, unit); None where the unit is the user's.
KEYED: dict[str, tuple[str, str | None]] = {
    "bbox_2d": (CORNERS, None),  # Qwen-VL: pixels up to 2.5, 0-1000 from 3 on
    "box_2d": (ROWS_FIRST, "0-1000"),  # Gemini
    "bbox_xyxy": (CORNERS, None),
    "bbox_xywh": (CORNER_SIZE, None),
    "bbox_cxcywh": (CENTER_SIZE, None),
    "bbox_xywh_pixels": (CORNER_SIZE, "pixels"),
    "xyxy": (CORNERS, "pixels"),  # Ultralytics
    "xyxyn": (CORNERS, "0-1"),
    "xywhn": (CENTER_SIZE, "0-1"),
}
POLYGONS = ("quad_box", "polygon", "points")
INSIDE = ("box", "bbox", "bounding_box", "boundingbox", "rectangle")
PHRASES = (
    "phrase",
    "caption",
    "description",
    "desc",
    "label",
    "class_name",
    "name",
    "category",
    "class",
    "object",
    "text_label",
    "text",
)
#: Keys of a dictionary with one list of boxes and one of labels (Florence-2, Grounding DINO, torchvision).
BOX_LISTS = ("bboxes", "boxes", "quad_boxes")
LABEL_LISTS = ("labels", "bboxes_labels", "text_labels", "class_names", "phrases", "captions")
#: Keys of a dictionary around a list of detections.
CONTAINERS = ("detections", "predictions", "objects", "elements", "results", "instances", "shapes", "annotations")
#: How far boxes may leave the image without a warning: detectors are a pixel or two off.
FEW_PIXELS = 4.0
FEW_SHARE = 0.01


@dataclass(frozen=True)
class RawBox:
    """Four numbers as they came.

    Args:
        numbers: in `order` and `unit`; None: as the user's box_format.
        phrase: the description that came with the box, or "".
        size: width and height of the image in pixels, if the boxes bring it.
        image: the index of the image that the box was found in.
    """

    numbers: tuple[float, float, float, float]
    phrase: str = ""
    order: str | None = None
    unit: str | None = None
    size: tuple[int, int] | None = None
    image: int = 0


@dataclass
class FoundBoxes:
    """Boxes x0 y0 x1 y1 in 0..1, not yet cut to the image, their phrases, and warnings for the user."""

    boxes: list[Box] = field(default_factory=list)
    phrases: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse_json(text: str) -> Any:
    """The data of a JSON text, also of one in a Markdown code fence, as language models write it. Raises ValueError."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (json.JSONDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"The layout is not JSON: {error}. A layout looks like {EXAMPLE}.") from None


EXAMPLE = '[{"box": [0.1, 0.2, 0.5, 0.9], "phrase": "a red car"}]'


def read_boxes(data: Any, box_format: str, width: int = 0, height: int = 0, image_index: int = -1) -> FoundBoxes:
    """Read boxes of any supported form.

    Args:
        data: numbers in lists or tensors, dictionaries, SEGS, or JSON text.
        box_format: one of BOX_FORMATS, for what the data does not say itself.
        width, height: size in pixels of the image that boxes in pixels refer to.
        image_index: of detections in several images, whose boxes to use; -1 for all.

    Raises:
        ValueError: naming what is not a box, a unit that does not fit the numbers, or a missing size.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format is {box_format!r}; choose one of: {'; '.join(BOX_FORMATS)}.")
    data = parse_json(data) if isinstance(data, str) else data
    images = _split_images(_to_plain(data))
    found = FoundBoxes()
    if image_index >= len(images) and image_index > 0:
        raise ValueError(f"image_index is {image_index}, but there are detections of {len(images)} image(s). Count from 0.")
    if len(images) > 1 and image_index < 0:
        found.warnings.append(f"The boxes of {len(images)} images are used together. Set image_index to use those of one image.")
    chosen = images if image_index < 0 or len(images) == 1 else [images[image_index]]
    raw = [replace(box, image=number) for number, entries in enumerate(chosen) for box in _collect(entries, box_format)]
    order, _, unit = box_format.rpartition(", ")
    asked = [box for box in raw if box.order is None or box.unit is None]
    _check_unit([box for box in asked if box.unit is None], unit)
    for box in raw:
        found.boxes.append(to_fractions(box, order, unit, width, height))
        found.phrases.append(" ".join(box.phrase.split()))
    bare = [box.numbers for box in raw if box.order is None]
    if order == CORNER_SIZE and len(bare) > 1 and all(c > a and d > b for a, b, c, d in bare):
        found.warnings.append(
            "Read as x y width height, but all boxes would also be valid as x0 y0 x1 y1. If they are in the wrong positions, choose that box_format."
        )
    found.warnings += find_cut_boxes(
        found.boxes, found.phrases, width if unit == "pixels" else 0, height if unit == "pixels" else 0
    )
    return found


def find_cut_boxes(boxes: Sequence[Box], phrases: Sequence[str], width: int = 0, height: int = 0) -> list[str]:
    """A warning if boxes leave the image by more than a few pixels (or 1 % if the size is unknown), else nothing."""
    few_x = FEW_PIXELS / width if width > 0 else FEW_SHARE
    few_y = FEW_PIXELS / height if height > 0 else FEW_SHARE
    cut = []
    for number, ((x0, y0, x1, y1), phrase) in enumerate(zip(boxes, phrases), start=1):
        if max(-x0, x1 - 1) > few_x or max(-y0, y1 - 1) > few_y:
            cut.append(f"{number} {shorten(phrase)}" if phrase else str(number))
    if not cut:
        return []
    names = ", ".join(cut[:5]) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
    return [
        f"{len(cut)} of {len(boxes)} boxes leave the image and are cut off ({names}). Check box_format, and that width and height are those "
        "of the image in which the boxes were found."
    ]


def to_fractions(box: RawBox, order: str, unit: str, width: int, height: int) -> Box:
    """x0 y0 x1 y1 as fractions of the image."""
    order, unit = box.order or order, box.unit or unit
    width, height = box.size or (width, height)
    a, b, c, d = box.numbers
    if order == ROWS_FIRST:
        a, b, c, d = b, a, d, c
    elif order == CORNER_SIZE:
        c, d = a + c, b + d
    elif order == CENTER_SIZE:
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if unit == "pixels":
        if not (width > 0 and height > 0):
            raise ValueError(f"Boxes in pixels need the image's width and height; they are {width} and {height}.")
        return a / width, b / height, c / width, d / height
    if unit == "0-1000":
        return a / 1000, b / 1000, c / 1000, d / 1000
    return a, b, c, d


def _check_unit(boxes: list[RawBox], unit: str) -> None:
    """Raise a ValueError if the numbers cannot be in this unit."""
    if not boxes:
        return
    largest = max(abs(number) for box in boxes for number in box.numbers)
    shown = format_value(max(boxes, key=lambda box: max(map(abs, box.numbers))).numbers)
    if unit == "0-1" and largest > 2.0:
        raise ValueError(
            f"The box {shown} lies outside the image; coordinates must be from 0 to 1. If these are pixels, choose a pixel format and give the "
            "image's width and height; if they go to 1000, choose a format with 0-1000."
        )
    if unit == "0-1000" and largest > 1100.0:
        raise ValueError(f"The box {shown} has numbers above 1000. If these are pixels, choose a pixel format.")
    if unit in ("pixels", "0-1000") and largest <= 1.0:
        raise ValueError(f"The box {shown} has only numbers up to 1. These are fractions of the image; choose a format with 0-1.")


def _to_plain(data: Any) -> Any:
    """Tensors and arrays as lists; SEGS and everything else unchanged."""
    if isinstance(data, dict):
        return {str(key).lower(): _to_plain(value) for key, value in data.items()}
    if hasattr(data, "tolist") and not isinstance(data, (list, tuple)):
        return data.tolist()
    if isinstance(data, (list, tuple)) and not is_segs(data):
        return [_to_plain(entry) for entry in data]
    return data


def is_segs(data: Any) -> bool:
    """SEGS of the Impact Pack: ((height, width), [segment, ...]); a segment has `bbox` in pixels x0 y0 x1 y1 and `label`."""
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and isinstance(data[1], (list, tuple))
        and isinstance(data[0], (list, tuple))
        and len(data[0]) >= 2
        and all(hasattr(segment, "bbox") for segment in data[1])
    )


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and 4 <= len(value) <= 8 and all(isinstance(n, (int, float)) for n in value)


def _has_boxes(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(key), list) for key in (*BOX_LISTS, *CONTAINERS))


def _split_images(data: Any) -> list[Any]:
    """One entry per image: a list per image, or a dictionary of box and label lists per image. Anything else is one image."""
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list) and not _is_row(data[0]):
        data = data[0]
    if isinstance(data, list) and len(data) > 1:
        lists = all(isinstance(entry, list) and not _is_row(entry) for entry in data)
        if lists or all(_has_boxes(entry) for entry in data):
            return data
    return [data]


def _collect(data: Any, box_format: str) -> Iterator[RawBox]:
    """Every box in any nesting."""
    if is_segs(data):
        size = (int(data[0][1]), int(data[0][0]))
        for segment in data[1]:
            numbers = _four([float(n) for n in segment.bbox], str(getattr(segment, "label", "") or ""))
            yield RawBox(numbers, str(getattr(segment, "label", "") or ""), CORNERS, "pixels", size)
    elif isinstance(data, dict):
        yield from _collect_dict(data, box_format)
    elif _is_row(data):
        yield _from_row(data, box_format)
    elif isinstance(data, list):
        for entry in data:
            yield from _collect(entry, box_format)
    else:
        raise ValueError(
            f"Invalid box: {format_value(data)}. A box is four numbers, or numbers by name such as x, y, width, height."
        )


def _collect_dict(data: dict, box_format: str) -> Iterator[RawBox]:
    for key in BOX_LISTS:
        if isinstance(data.get(key), list):
            yield from _with_labels(data[key], _find_labels(data, len(data[key])), box_format)
            return
    for key in CONTAINERS:
        if isinstance(data.get(key), list):
            entries = data[key]
            if key == "annotations":  # COCO and IFAdapter's layouts
                names = {each.get("id"): each.get("name") for each in data.get("categories") or () if isinstance(each, dict)}
                entries = [_as_annotation(entry, names) for entry in entries]
            yield from _collect(entries, box_format)
            return
    if len(data) == 1 and isinstance(next(iter(data.values())), dict):  # Florence-2: {"<OD>": {...}}
        yield from _collect(next(iter(data.values())), box_format)
        return
    yield _from_entry(data, box_format)


def _find_labels(data: dict, count: int) -> list[str]:
    for key in LABEL_LISTS:
        labels = data.get(key)
        if isinstance(labels, list) and labels:
            if len(labels) != count:
                raise ValueError(f"There are {count} boxes but {len(labels)} {key}. The numbers must be equal.")
            if all(isinstance(label, str) for label in labels):  # numbers are classes without names
                return labels
    return [""] * count


def _with_labels(boxes: list, labels: list[str], box_format: str) -> Iterator[RawBox]:
    for box, label in zip(boxes, labels):
        for found in _collect(box, box_format):
            # Lists of boxes with labels are corners in every such source; only the unit differs.
            order = found.order or (None if box_format.startswith((CENTER_SIZE, ROWS_FIRST)) else CORNERS)
            yield replace(found, phrase=found.phrase or label, order=order)


def _as_annotation(entry: Any, names: dict) -> Any:
    """An annotation of a data set, whose four numbers are x y width height in pixels."""
    if isinstance(entry, dict) and isinstance(entry.get("bbox", entry.get("box")), list) and "phrase" not in entry:
        return {
            "bbox_xywh_pixels": entry.get("bbox", entry.get("box")),
            "phrase": _find_phrase(entry) or names.get(entry.get("category_id")) or "",
        }
    return entry


def _from_entry(entry: dict, box_format: str) -> RawBox:
    """One box from a dictionary."""
    phrase = _find_phrase(entry)
    for names, order in NAMED:
        if all(name in entry for name in names):
            if "detection_id" in entry or {"class", "class_id", "confidence"} <= entry.keys():  # Roboflow
                order = CENTER_SIZE if order == CORNER_SIZE else order
            return RawBox(_four([entry[name] for name in names], phrase), phrase, order)
    for key, (order, unit) in KEYED.items():
        if isinstance(entry.get(key), list):
            return RawBox(_four(entry[key], phrase), phrase, order, unit)
    for key in POLYGONS:
        if isinstance(entry.get(key), list):
            return RawBox(_polygon_box(entry[key], phrase), phrase, CORNERS)
    for key in INSIDE:
        inside = entry.get(key)
        if isinstance(inside, dict):
            return replace(_from_entry(inside, box_format), phrase=phrase)
        if isinstance(inside, list):
            if key == "box" and isinstance(entry.get("phrase"), str):  # this pack's own form
                return RawBox(_four(inside, phrase), phrase, CORNERS, "0-1")
            if key == "bbox" and entry.get("type") in ("obj", "text"):  # the host's box editor
                return RawBox(_four(inside, phrase), phrase, ROWS_FIRST, "0-1000")
            if key == "bbox" and entry.get("bbox_mode") in (0, 1):  # Detectron2
                return RawBox(_four(inside, phrase), phrase, CORNER_SIZE if entry["bbox_mode"] else CORNERS, "pixels")
            if key == "bbox" and ("category_id" in entry or "iscrowd" in entry):  # COCO
                return RawBox(_four(inside, phrase), phrase, CORNER_SIZE, "pixels")
            return replace(_from_row(inside, box_format) if _is_row(inside) else RawBox(_four(inside, phrase)), phrase=phrase)
    raise ValueError(
        f"Invalid box: {format_value(entry)}. A box is four numbers, or numbers by name such as x, y, width, height."
    )


def _find_phrase(entry: dict) -> str:
    """The description in a dictionary, or ""."""
    metadata = entry.get("metadata")
    for source in (entry, metadata if isinstance(metadata, dict) else {}):
        if source.get("type") == "text" and isinstance(source.get("text"), str) and source["text"].strip():
            # The host's box editor: words that should be legible in the image.
            desc = source.get("desc") or source.get("description")
            quoted = f'"{source["text"].strip()}"'
            return f"{desc}, {quoted}" if isinstance(desc, str) and desc.strip() else quoted
        for key in PHRASES:
            value = source.get(key)
            if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
                value = ", ".join(value)
            if isinstance(value, str) and value.strip():
                return value.strip()
    return ""


def _from_row(row: list, box_format: str) -> RawBox:
    """A row of numbers: a box, and behind it a score, or a score and a class; YOLO's label files have the class in front."""
    order, _, unit = box_format.rpartition(", ")
    if len(row) == 4:
        return RawBox(_four(row, ""))
    if len(row) == 8:
        return RawBox(_polygon_box(row, ""), order=CORNERS)
    _check_numbers(row, "")
    class_first = unit == "0-1" and _is_class(row[0]) and all(0 <= n <= 1 for n in row[1:])
    score_last = 0 <= row[-1] <= 1 if len(row) == 5 else any(0 <= n <= 1 for n in row[4:])
    if len(row) < 7 and class_first and (order == CENTER_SIZE or not score_last):
        return RawBox(_four(row[1:5], ""))
    if score_last:
        return RawBox(_four(row[:4], ""))
    raise ValueError(
        f"Invalid box: {format_value(row)}. A row of {len(row)} numbers must be a box, then a score from 0 to 1 and a class."
    )


def _is_class(number: float) -> bool:
    return float(number).is_integer() and number >= 0


def _polygon_box(points: list, phrase: str) -> tuple[float, float, float, float]:
    """The box around a polygon, [x, y, x, y, ...] or [[x, y], ...]."""
    flat = [n for point in points for n in point] if points and isinstance(points[0], list) else points
    _check_numbers(flat, phrase)
    if len(flat) < 4 or len(flat) % 2:
        raise ValueError(f"{_named(phrase)} the polygon {format_value(flat)} needs at least two points x y.")
    return min(flat[::2]), min(flat[1::2]), max(flat[::2]), max(flat[1::2])


def _four(numbers: Any, phrase: str) -> tuple[float, float, float, float]:
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 4:
        raise ValueError(f"{_named(phrase)} the box is {format_value(numbers)}; it must be four finite numbers.")
    _check_numbers(numbers, phrase)
    a, b, c, d = (float(n) for n in numbers)
    return a, b, c, d


def _check_numbers(numbers: Any, phrase: str) -> None:
    if not isinstance(numbers, (list, tuple)) or not all(is_number(n) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{_named(phrase)} the box is {format_value(numbers)}; it must be four finite numbers.")


def _named(phrase: str) -> str:
    return f"Instance {shorten(phrase)}:" if phrase else "Boxes:"
