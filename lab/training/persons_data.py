"""Pictures of persons with captions and masks, for trainers of subject models, read one picture at a time.

The caption has a marker behind the word of each person: "a man <|image|> and a woman <|image|> on a beach". The first annotation of a
picture is of the first marker's person, and so on. Two forms:
- a JSON file in COCO's form: {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", and the person's place}]}. As in
  COCO's own caption files the caption may be an annotation without a place;
- WebDataset shards: uncompressed .tar files that hold <key>.jpg (.png, .webp) and <key>.json, {"caption", "annotations"}.

The person's place is one of
- "mask": the name of a picture, white where the person is; in a shard the ending of a member, "1.png" for <key>.1.png;
- "segmentation": COCO's polygons [[x, y, x, y, ...], ...] in pixels of the picture, or of its "width" and "height" where it has them;
- "segmentation": COCO's run lengths {"size": [height, width], "counts": numbers or COCO's text}.
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
from PIL import Image, ImageDraw
from torch import Tensor

from ...py.snf.model import MARKER
from .files import entries_of, files_of_shard, picture_of
from .layout_data import middle, opened

PLACES = ("mask", "segmentation")
SMALLEST = 0.002  # of the picture; whoever is less of it is taken as not there

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Person:
    """Where a person is: a mask to be read, or COCO's segmentation and the width and height that it refers to, if the data says so."""

    read: Read | None = None
    segmentation: Any = None
    size: tuple[float, float] | None = None

    def mask(self, width: int, height: int) -> Image.Image:
        """The mask of a picture of that size, 0 or 255. Raises ValueError if it cannot be read."""
        if self.read is not None:
            try:
                found = Image.open(io.BytesIO(self.read())).convert("L")
            except (OSError, Image.DecompressionBombError) as error:
                raise ValueError(f"cannot be read: {error}") from None
            found = found.point(lambda value: 255 if value > 127 else 0)
        elif isinstance(self.segmentation, dict):
            found = Image.fromarray(_from_runs(self.segmentation))
        else:
            found = Image.new("L", (width, height))
            sx, sy = (width / self.size[0], height / self.size[1]) if self.size else (1.0, 1.0)
            for polygon in self.segmentation:
                corners = [(x * sx, y * sy) for x, y in zip(polygon[::2], polygon[1::2])]
                ImageDraw.Draw(found).polygon(corners, fill=255)
        return found if found.size == (width, height) else found.resize((width, height), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Entry:
    """One picture of a data set, not read yet; `caption` with its markers, one for each person unless the data was read without them."""

    name: str
    read: Read
    caption: str
    persons: tuple[Person, ...] = ()


@dataclass(frozen=True, eq=False)
class Example:
    """A picture as it is trained on.

    pixels: [side, side, 3] in 0..1. masks: [r, side, side], 0..1, of what is left of each person in it; zero for who is not.
    portraits: for each person the part of the whole picture around the mask [h, w, 3], and that part of the mask [h, w].
    """

    pixels: Tensor
    masks: Tensor
    portraits: tuple[tuple[Tensor, Tensor], ...]


def entries(data: str | Sequence[str], images: str | None = None, persons: bool = True) -> list[Entry]:
    """Every picture of a JSON file or of some shards.

    Args:
        data: the path of a .json file, of a .tar file, or a list of them; `*` stands for any part of a file's name.
        images: the folder that the JSON's file names start from; by default the one that the JSON is in.
        persons: pictures with neither a marker nor a person are left out, and those with as many of both are taken. Without it only
            captions count, and pictures without one are left out.

    Raises:
        ValueError: naming the file or the picture and what it lacks.
    """
    found = entries_of(data, images, _shard, _coco, "data of persons; see `persons_data` for the form")
    if not persons:
        found = [entry for entry in found if entry.caption.strip()]
        if not found:
            raise ValueError(f"{data}: there is no picture with a caption.")
        return found
    found = [entry for entry in found if entry.persons or MARKER in entry.caption]
    for entry in found:
        markers = entry.caption.count(MARKER)
        if markers != len(entry.persons):
            raise ValueError(
                f"{entry.name}: its caption has {markers} markers {MARKER} and there are masks of {len(entry.persons)} persons. "
                "Write a marker behind the word of each person that has a mask, in the order of the masks."
            )
    if not found:
        raise ValueError(f"{data}: there is no picture whose caption has a marker {MARKER} and that has a mask.")
    return found


def _coco(path: Path, folder: Path) -> list[Entry]:
    data = json.loads(path.read_text(encoding="utf-8"))
    captions: dict[Any, str] = {}
    placed: dict[Any, list[dict]] = {}
    for annotation in data["annotations"]:
        if _has_place(annotation):
            placed.setdefault(annotation["image_id"], []).append(annotation)
        elif "caption" in annotation:
            captions.setdefault(annotation["image_id"], annotation["caption"])

    def reader(name: str) -> Read:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{path.name} names {name}, which is not in {folder}.")
        return file.read_bytes

    return [
        _entry(
            image["file_name"],
            reader(image["file_name"]),
            image.get("caption") or captions.get(image["id"], ""),
            placed.get(image["id"], []),
            image,
            reader,
        )
        for image in data["images"]
    ]


def _shard(path: Path) -> list[Entry]:
    found = []
    for key, files in files_of_shard(path).items():
        picture = picture_of(files)
        if picture is None or ".json" not in files:
            continue
        name = f"{path.name}:{key}"

        def reader(ending: str, files: dict = files, name: str = name) -> Read:
            if f".{ending.lower()}" not in files:
                raise ValueError(f"{name}: there is no member {ending} for the mask.")
            return files[f".{ending.lower()}"].read

        described = json.loads(files[".json"].read())
        placed = [annotation for annotation in described.get("annotations", ()) if _has_place(annotation)]
        found.append(_entry(name, picture.read, described.get("caption", ""), placed, described, reader))
    return found


def _has_place(annotation: dict) -> bool:
    return any(annotation.get(place) for place in PLACES)


def _entry(name: str, read: Read, caption: str, placed: list[dict], described: dict, reader: Callable[[str], Read]) -> Entry:
    if not isinstance(caption, str):
        raise ValueError(f"{name}: its caption is {caption!r}; it must be a text.")
    size = (float(described["width"]), float(described["height"])) if {"width", "height"} <= set(described) else None
    if size and not min(size) > 0:
        raise ValueError(f"{name}: width and height are {size[0]:g} and {size[1]:g}; leave them out or say the picture's.")
    persons = []
    for number, annotation in enumerate(placed, 1):
        if annotation.get("mask"):
            persons.append(Person(read=reader(annotation["mask"])))
        else:
            persons.append(Person(segmentation=_checked(annotation["segmentation"], f"{name}: person {number}"), size=size))
    return Entry(name, read, caption, tuple(persons))


def _checked(segmentation: Any, who: str) -> Any:
    if isinstance(segmentation, dict):
        try:
            _runs(segmentation)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{who}: its segmentation is no run lengths of COCO's ({type(error).__name__} {error}).") from None
        return segmentation
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        numbers = [n for n in polygon if isinstance(n, (int, float)) and math.isfinite(n)]
        if len(polygon) < 6 or len(polygon) % 2 or len(numbers) != len(polygon):
            raise ValueError(f"{who}: a polygon of its segmentation is not x, y of three or more corners.")
    return polygons


def _runs(segmentation: dict) -> list[int]:
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    runs = _numbers(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError(f"the runs are {sum(runs)} pixels of a mask of {height} x {width}")
    return runs


def _from_runs(segmentation: dict) -> np.ndarray:
    """COCO's run lengths -> [height, width] uint8, 0 or 255. They go down the columns and begin with what is outside."""
    height, width = segmentation["size"]
    runs = _runs(segmentation)
    values = np.arange(len(runs)) % 2 * 255
    return np.ascontiguousarray(np.repeat(values, runs).astype(np.uint8).reshape(width, height).T)


def _numbers(text: str) -> list[int]:
    """COCO's compressed text of run lengths: six bits a character, from the third number on the difference to the last but one."""
    found: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found


def example(entry: Entry, side: int) -> Example:
    """Read a picture: its short side to `side` pixels, the middle cut out, with the persons' masks.

    Raises ValueError naming the picture if it or a mask cannot be read, or a mask is empty.
    """
    picture = opened(entry.name, entry.read)
    most = 2 * side / min(picture.size)  # larger than that, portraits have no more to show
    size = (max(1, round(most * picture.width)), max(1, round(most * picture.height)))
    whole = picture if most >= 1 else picture.resize(size, Image.Resampling.BOX)
    masks, portraits = [], []
    for number, person in enumerate(entry.persons, 1):
        try:
            mask = person.mask(*picture.size)
        except ValueError as error:
            raise ValueError(f"{entry.name}: the mask of person {number} {error}.") from None
        shown = mask.resize(whole.size, Image.Resampling.NEAREST)
        box = shown.getbbox()
        if box is None:
            raise ValueError(f"{entry.name}: the mask of person {number} is empty. Remove the person and its marker, or mend it.")
        portraits.append((_tensor(whole.crop(box)), _tensor(shown.crop(box))))
        left = _tensor(middle(mask, side, Image.Resampling.BOX))
        masks.append(left * float(left.mean() >= SMALLEST))
    pixels = _tensor(middle(picture, side))
    return Example(pixels, torch.stack(masks) if masks else torch.zeros(0, side, side), tuple(portraits))


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
