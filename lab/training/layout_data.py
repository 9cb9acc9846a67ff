"""Images with a global caption and boxes with captions, for trainers of layout adapters.

Two forms, both read one image at a time:
- a JSON file in COCO's form: {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", "bbox": [x, y, w, h] in pixels,
  "caption"}]}. An annotation without `bbox` is a global caption, as in COCO's own caption files; one without `caption` has the name of its
  category;
- WebDataset shards: uncompressed .tar files that contain <key>.jpg (.png, .webp) and <key>.json, {"caption", "annotations": [{"bbox",
  "caption"}]}, for each image.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .files import first_with_ending, read_entries, read_shard
from .images import Read, center_square, have_same_proportions, open_rgb, to_tensor

log = logging.getLogger("exemplary")

Box = tuple[float, float, float, float]
SMALLEST_BOX = 0.01  # of the image's area; smaller boxes teach nothing


@dataclass(frozen=True)
class LayoutEntry:
    """One image of a data set, not read yet. Boxes are x y width height in its own pixels."""

    name: str
    read: Read
    caption: str
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    size: tuple[float, float] | None = None  # width and height that the boxes refer to, if the data says so


@dataclass(frozen=True, eq=False)
class LayoutExample:
    """A training image: pixels [side, side, 3] in 0..1, boxes x0 y0 x1 y1 in 0..1 of the part inside the crop."""

    pixels: Tensor
    caption: str
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]


def read_layouts(data: Any, images: str | None = None) -> list[LayoutEntry]:
    """Every image of a JSON file or of some shards that has a box with a caption. Boxes without area are left out, with a warning.

    Args:
        data: the path of a .json file, of a .tar file, or a list of them; `*` in the file name matches any text.
        images: the folder that the JSON's file names are relative to; by default the one that contains the JSON.

    Raises:
        ValueError: names the file and what it lacks.
    """
    found = read_entries(data, images, _read_shard_layouts, _read_json_layouts, "layout data; see `layout_data` for the form")
    empty = [entry.name for entry in found if not all(map(_has_area, entry.boxes))]
    kept = [entry for entry in map(_without_empty_boxes, found) if entry.boxes]
    if empty:
        log.warning("Boxes without area are left out in %d images, the first is %s.", len(empty), empty[0])
    if not kept:
        raise ValueError(f"{data}: no image has a box with a caption and an area above 0. Add annotations with bbox and caption.")
    return kept


def _has_area(box: Box) -> bool:
    return box[2] > 0 and box[3] > 0


def _without_empty_boxes(entry: LayoutEntry) -> LayoutEntry:
    kept = [(box, phrase) for box, phrase in zip(entry.boxes, entry.phrases) if _has_area(box)]
    return replace(entry, boxes=tuple(box for box, _ in kept), phrases=tuple(phrase for _, phrase in kept))


def _read_json_layouts(path: Path, folder: Path) -> list[LayoutEntry]:
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    categories = {entry["id"]: entry["name"] for entry in data.get("categories", ())}
    captions: dict[Any, list[str]] = {}
    local: dict[Any, list[dict]] = {}
    for annotation in data["annotations"]:
        if "bbox" in annotation:
            phrase = annotation.get("caption") or categories.get(annotation.get("category_id"))
            if phrase:
                local.setdefault(annotation["image_id"], []).append({**annotation, "caption": phrase})
        else:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    found = []
    for image in data["images"]:
        known = local.get(image["id"])
        if known:
            caption = image.get("caption") or next(iter(captions.get(image["id"], ())), "")
            found.append(_to_entry(image["file_name"], (folder / image["file_name"]).read_bytes, caption, known, image))
    return found


def _read_shard_layouts(path: Path) -> list[LayoutEntry]:
    found = []
    for key, members in read_shard(path).items():
        image = first_with_ending(members)
        if image is not None and ".json" in members:
            described = json.loads(members[".json"].read())
            known = [entry for entry in described["annotations"] if entry.get("caption")]
            if known:
                found.append(_to_entry(f"{path.name}/{key}", image.read, described.get("caption", ""), known, described))
    return found


def _to_entry(name: str, read: Read, caption: Any, known: list[dict], described: dict) -> LayoutEntry:
    boxes = [_to_box(entry["bbox"], name) for entry in known]
    phrases = tuple(_to_text(entry["caption"], name) for entry in known)
    return LayoutEntry(name, read, _to_text(caption, name), tuple(boxes), phrases, size_of(described, name))


def _to_box(value: Any, name: str) -> Box:
    numbers = [float(n) for n in value if isinstance(n, int | float) and math.isfinite(n)] if isinstance(value, list) else []
    if len(numbers) != 4 or len(numbers) != len(value):
        raise ValueError(f"{name}: bbox is {value!r}; it must be a list of four finite numbers: x, y, width, height.")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def size_of(described: dict, name: str) -> tuple[float, float] | None:
    """The width and height that an entry states, None if it states none. Raises ValueError if they are not above 0."""
    if not {"width", "height"} <= set(described):
        return None
    try:
        size = (float(described["width"]), float(described["height"]))
    except (TypeError, ValueError):
        size = (math.nan, math.nan)
    if not (min(size) > 0 and math.isfinite(max(size))):
        raise ValueError(
            f"{name}: width and height are {described['width']!r} and {described['height']!r}; remove them or give the image's size."
        )
    return size


def scale_to(image: Image.Image, size: tuple[float, float] | None, name: str) -> tuple[float, float]:
    """What coordinates that refer to `size` are multiplied by, to refer to the image.

    Raises:
        ValueError: the two have other proportions, as a photo has that was rotated after the coordinates were made.
    """
    if size is None or size == image.size:
        return 1.0, 1.0
    if not have_same_proportions(size, image.size):
        raise ValueError(
            f"{name}: its annotations refer to {size[0]:g} x {size[1]:g} pixels, the upright image has {image.width} x {image.height}. "
            "They must have the same proportions. Correct width and height, or rotate the annotations with the image."
        )
    return image.width / size[0], image.height / size[1]


def _to_text(caption: Any, name: str) -> str:
    parts = caption if isinstance(caption, list) else [caption]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{name}: a caption is {caption!r}; it must be a text.")
    return ", ".join(parts)


def load_layout(entry: LayoutEntry, side: int, max_boxes: int) -> LayoutExample:
    """Read an image: its short side resized to `side` pixels, the center square, and the `max_boxes` largest boxes inside it.

    Raises:
        ValueError: the image cannot be read; names it.
    """
    image = open_rgb(entry.name, entry.read)
    width, height = image.size
    sx, sy = scale_to(image, entry.size, entry.name)
    scale = side / min(width, height)
    left, top = (width * scale - side) / 2, (height * scale - side) / 2
    kept = []
    for box, phrase in zip(entry.boxes, entry.phrases):
        x, y, w, h = box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy
        edges = (x * scale - left, y * scale - top, (x + w) * scale - left, (y + h) * scale - top)
        x0, y0, x1, y1 = (min(max(edge / side, 0.0), 1.0) for edge in edges)
        area = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        if area >= SMALLEST_BOX:
            kept.append((area, (x0, y0, x1, y1), phrase))
    kept = sorted(kept, key=lambda known: known[0], reverse=True)[:max_boxes]
    pixels = to_tensor(center_square(image, side))
    return LayoutExample(pixels, entry.caption, tuple(box for _, box, _ in kept), tuple(phrase for _, _, phrase in kept))
