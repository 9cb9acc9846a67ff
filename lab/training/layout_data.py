"""Pictures with a global caption and boxes with captions of their own, for trainers of layout adapters.

Two forms, both read one picture at a time:
- a JSON file in COCO's form: {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", "bbox": [x, y, w, h] in pixels,
  "caption"}]}. An annotation without `bbox` is a global caption, as in COCO's own caption files; one without `caption` has the name of its
  category;
- WebDataset shards: uncompressed .tar files that hold <key>.jpg (.png, .webp) and <key>.json, {"caption", "annotations": [{"bbox",
  "caption"}]}, for each picture.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .files import entries_of, files_of_shard, picture_of

Box = tuple[float, float, float, float]
SMALLEST = 0.01  # of the picture; smaller boxes teach nothing


@dataclass(frozen=True)
class Entry:
    """One picture of a data set, not read yet. Boxes are x y width height in its own pixels."""

    name: str
    read: Callable[[], bytes]
    caption: str
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    size: tuple[float, float] | None = None  # width and height that the boxes refer to, if the data says so


@dataclass(frozen=True, eq=False)
class Example:
    """A picture as it is trained on: pixels [side, side, 3] in 0..1, boxes x0 y0 x1 y1 in 0..1 of what is left of it."""

    pixels: Tensor
    caption: str
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]


def entries(data: str | Sequence[str], images: str | None = None) -> list[Entry]:
    """Every picture of a JSON file or of some shards. Pictures without a box that has a caption are left out.

    Args:
        data: the path of a .json file, of a .tar file, or a list of .tar files; `*` stands for any part of a file's name.
        images: the folder that the JSON's file names start from; by default the one that the JSON is in.

    Raises:
        ValueError: naming the file and what it lacks.
    """
    found = entries_of(data, images, _shard, _coco, "layout data; see `layout_data` for the form")
    if not found:
        raise ValueError(f"{data}: there is no picture with a box and a caption of it.")
    return found


def _coco(path: Path, folder: Path) -> list[Entry]:
    data = json.loads(path.read_text(encoding="utf-8"))
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
            found.append(_entry(image["file_name"], (folder / image["file_name"]).read_bytes, caption, known, image))
    return found


def _shard(path: Path) -> list[Entry]:
    found = []
    for key, files in files_of_shard(path).items():
        picture = picture_of(files)
        if picture is not None and ".json" in files:
            described = json.loads(files[".json"].read())
            known = [entry for entry in described["annotations"] if entry.get("caption")]
            if known:
                found.append(_entry(f"{path.name}/{key}", picture.read, described.get("caption", ""), known, described))
    return found


def _entry(name: str, read: Callable[[], bytes], caption: str, known: list[dict], described: dict) -> Entry:
    boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in (entry["bbox"] for entry in known))
    if not all(math.isfinite(number) for box in boxes for number in box):
        raise ValueError(f"{name}: a bbox is not four finite numbers.")
    size = (float(described["width"]), float(described["height"])) if {"width", "height"} <= set(described) else None
    return Entry(name, read, _text(caption), boxes, tuple(_text(entry["caption"]) for entry in known), size)


def _text(caption: str | list[str]) -> str:
    return caption if isinstance(caption, str) else ", ".join(caption)


def opened(name: str, read: Callable[[], bytes]) -> Image.Image:
    """A picture in colours, upright. Raises ValueError naming it if it cannot be read."""
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(read()))).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read: {error}.") from None


def middle(picture: Image.Image, side: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """A picture's short side resized to `side`, and the square in the middle of it."""
    width, height = picture.size
    scale = side / min(width, height)
    left, top = round((width * scale - side) / 2), round((height * scale - side) / 2)
    resized = picture.resize((max(side, round(width * scale)), max(side, round(height * scale))), how)
    return resized.crop((left, top, left + side, top + side))


def example(entry: Entry, side: int, most: int) -> Example:
    """Read a picture: its short side to `side` pixels, the middle cut out; the `most` largest boxes that are left of it.

    Raises ValueError naming the picture if it cannot be read.
    """
    picture = opened(entry.name, entry.read)
    width, height = picture.size
    scale = side / min(width, height)
    left, top = (width * scale - side) / 2, (height * scale - side) / 2
    cut = middle(picture, side)
    kept = []
    for (x, y, w, h), phrase in zip(entry.boxes, entry.phrases):
        edges = (x * scale - left, y * scale - top, (x + w) * scale - left, (y + h) * scale - top)
        x0, y0, x1, y1 = (min(max(edge / side, 0.0), 1.0) for edge in edges)
        area = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        if area >= SMALLEST:
            kept.append((area, (x0, y0, x1, y1), phrase))
    kept = sorted(kept, key=lambda known: known[0], reverse=True)[:most]
    pixels = torch.from_numpy(np.asarray(cut).astype(np.float32) / 255)
    return Example(pixels, entry.caption, tuple(box for _, box, _ in kept), tuple(phrase for _, _, phrase in kept))
