"""Images of persons with captions and masks, for trainers of subject models, read one image at a time.

The caption has a marker behind the word of each person: "a man <|image|> and a woman <|image|> on a beach". The first annotation of an
image belongs to the first marker, and so on. Two forms:
- a JSON file in COCO's form: {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", and the person's mask}]}. As in
  COCO's own caption files the caption may be an annotation without a mask;
- WebDataset shards: uncompressed .tar files that contain <key>.jpg (.png, .webp) and <key>.json, {"caption", "annotations"}.

The person's mask is one of
- "mask": the name of an image, white where the person is; in a shard the ending of a member, "1.png" for <key>.1.png;
- "segmentation": COCO's polygons [[x, y, x, y, ...], ...] in pixels of the image, or of its "width" and "height" where it has them;
- "segmentation": COCO's run lengths {"size": [height, width], "counts": numbers or COCO's text}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...py.snf.model import MARKER
from .files import first_with_ending, read_entries, read_shard
from .images import Read, center_square, have_same_proportions, open_image, open_rgb, to_tensor
from .layout_data import scale_to, size_of

MASK_FIELDS = ("mask", "segmentation")
SMALLEST_SHARE = 0.002  # of the image's area; a person that covers less counts as absent
MAX_MASK_PIXELS = 2 * 89_478_485  # Pillow's bound for decompression bombs


@dataclass(frozen=True)
class Person:
    """The mask of a person, not read yet: a file, or COCO's segmentation and the width and height it refers to, if the data says so."""

    read: Read | None = None
    segmentation: Any = None
    size: tuple[float, float] | None = None

    def load_mask(self, image: Image.Image, name: str) -> Image.Image:
        """The mask in the image's size, 0 or 255.

        Raises:
            ValueError: it cannot be read or has other proportions than the image; names it.
        """
        if self.read is None and not isinstance(self.segmentation, dict):
            mask = Image.new("L", image.size)
            sx, sy = scale_to(image, self.size, name)
            for polygon in self.segmentation:
                corners = [(x * sx, y * sy) for x, y in zip(polygon[::2], polygon[1::2])]
                ImageDraw.Draw(mask).polygon(corners, fill=255)
            return mask
        if self.read is not None:
            mask = open_image(name, self.read).convert("L").point(lambda value: 255 if value > 127 else 0)
        else:
            mask = Image.fromarray(_decode_runs(self.segmentation))
        if mask.size == image.size:
            return mask
        if not have_same_proportions(mask.size, image.size):
            raise ValueError(
                f"{name} has {mask.width} x {mask.height} pixels, the image {image.width} x {image.height}. "
                "They must have the same proportions. Replace the mask, or remove the person and its marker."
            )
        return mask.resize(image.size, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class PersonsEntry:
    """One image of a data set, not read yet; `caption` with its markers, one per person unless the data was read without persons."""

    name: str
    read: Read
    caption: str
    persons: tuple[Person, ...] = ()


@dataclass(frozen=True, eq=False)
class PersonsExample:
    """A training image.

    pixels: [side, side, 3] in 0..1. masks: [r, side, side], 0..1, of the part of each person inside the crop; zero for absent persons.
    portraits: for each person the bounding box of the mask in the whole image [h, w, 3], and that part of the mask [h, w].
    """

    pixels: Tensor
    masks: Tensor
    portraits: tuple[tuple[Tensor, Tensor], ...]


def read_persons(data: Any, images: str | None = None, with_persons: bool = True) -> list[PersonsEntry]:
    """Every image of a JSON file or of some shards.

    Args:
        data: the path of a .json file, of a .tar file, or a list of them; `*` in the file name matches any text.
        images: the folder that the JSON's file names are relative to; by default the one that contains the JSON.
        with_persons: images with neither a marker nor a person are left out, and the others need as many of both. Without it only
            captions count, and images without one are left out.

    Raises:
        ValueError: names the file or the image and what it lacks.
    """
    found = read_entries(
        data, images, _read_shard_persons, _read_json_persons, "data of persons; see `persons_data` for the form"
    )
    if not with_persons:
        found = [entry for entry in found if entry.caption.strip()]
        if not found:
            raise ValueError(f"{data}: no image has a caption. Add a caption to each image.")
        return found
    found = [entry for entry in found if entry.persons or MARKER in entry.caption]
    for entry in found:
        markers = entry.caption.count(MARKER)
        if markers != len(entry.persons):
            raise ValueError(
                f"{entry.name}: its caption has {markers} markers {MARKER}, and {len(entry.persons)} persons have masks. "
                "Write a marker behind the word of each person that has a mask, in the order of the masks."
            )
    if not found:
        raise ValueError(f"{data}: no image has both a caption with a marker {MARKER} and a mask. Add them.")
    return found


def _read_json_persons(path: Path, folder: Path) -> list[PersonsEntry]:
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    captions: dict[Any, str] = {}
    masked: dict[Any, list[dict]] = {}
    for annotation in data["annotations"]:
        if _has_mask(annotation):
            masked.setdefault(annotation["image_id"], []).append(annotation)
        elif "caption" in annotation:
            captions.setdefault(annotation["image_id"], annotation["caption"])

    def reader(name: str) -> Read:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{path.name} names {name}, which is not in {folder}.")
        return file.read_bytes

    return [
        _to_entry(
            image["file_name"],
            reader(image["file_name"]),
            image.get("caption") or captions.get(image["id"], ""),
            masked.get(image["id"], []),
            image,
            reader,
        )
        for image in data["images"]
    ]


def _read_shard_persons(path: Path) -> list[PersonsEntry]:
    found = []
    for key, members in read_shard(path).items():
        image = first_with_ending(members)
        if image is None or ".json" not in members:
            continue
        name = f"{path.name}:{key}"

        def reader(ending: str, members: dict = members, name: str = name) -> Read:
            if f".{ending.lower()}" not in members:
                raise ValueError(f"{name}: the shard has no member {ending} for the mask.")
            return members[f".{ending.lower()}"].read

        described = json.loads(members[".json"].read())
        masked = [annotation for annotation in described.get("annotations", ()) if _has_mask(annotation)]
        found.append(_to_entry(name, image.read, described.get("caption", ""), masked, described, reader))
    return found


def _has_mask(annotation: dict) -> bool:
    return any(annotation.get(field) for field in MASK_FIELDS)


def _to_entry(
    name: str, read: Read, caption: Any, masked: list[dict], described: dict, reader: Callable[[str], Read]
) -> PersonsEntry:
    if not isinstance(caption, str):
        raise ValueError(f"{name}: its caption is {caption!r}; it must be a text.")
    size = size_of(described, name)
    persons = []
    for number, annotation in enumerate(masked, 1):
        if annotation.get("mask"):
            persons.append(Person(read=reader(annotation["mask"])))
        else:
            persons.append(Person(segmentation=_checked(annotation["segmentation"], f"{name}: person {number}"), size=size))
    return PersonsEntry(name, read, caption, tuple(persons))


def _checked(segmentation: Any, person: str) -> Any:
    if isinstance(segmentation, dict):
        try:
            _run_lengths(segmentation)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{person}: its segmentation cannot be read as COCO's run lengths ({type(error).__name__} {error})."
            ) from None
        return segmentation
    polygons = segmentation if isinstance(segmentation, list) and isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        numbers = [n for n in polygon if isinstance(n, int | float) and math.isfinite(n)] if isinstance(polygon, list) else []
        if len(numbers) < 6 or len(numbers) % 2 or len(numbers) != len(polygon):
            raise ValueError(f"{person}: a polygon of its segmentation must list x and y of three or more corners.")
    return polygons


def _run_lengths(segmentation: dict) -> list[int]:
    height, width = (int(edge) for edge in segmentation["size"])
    if not 0 < height * width <= MAX_MASK_PIXELS or min(height, width) < 1:
        raise ValueError(f"the mask has {width} x {height} pixels; it must have 1 to {MAX_MASK_PIXELS:,}")
    counts = segmentation["counts"]
    runs = _decode_text(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError(f"the runs have {sum(runs)} pixels, the mask has {height} x {width}")
    return runs


def _decode_runs(segmentation: dict) -> np.ndarray:
    """COCO's run lengths -> [height, width] uint8, 0 or 255. They go down the columns and begin with the outside."""
    height, width = (int(edge) for edge in segmentation["size"])
    runs = _run_lengths(segmentation)
    values = (np.arange(len(runs)) % 2 * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _decode_text(text: str) -> list[int]:
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


def load_persons(entry: PersonsEntry, side: int) -> PersonsExample:
    """Read an image: its short side resized to `side` pixels, the center square, and the persons' masks.

    Raises:
        ValueError: the image or a mask cannot be read, or a mask is empty; names the image.
    """
    image = open_rgb(entry.name, entry.read)
    factor = 2 * side / min(image.size)  # portraits larger than that have no more detail to give
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    whole = image if factor >= 1 else image.resize(size, Image.Resampling.BOX)
    masks, portraits = [], []
    for number, person in enumerate(entry.persons, 1):
        name = f"{entry.name}: the mask of person {number}"
        mask = person.load_mask(image, name)
        small = mask.resize(whole.size, Image.Resampling.NEAREST)
        box = small.getbbox()
        if box is None:
            raise ValueError(f"{name} is empty. Remove the person and its marker, or replace the mask.")
        portraits.append((to_tensor(whole.crop(box)), to_tensor(small.crop(box))))
        inside = to_tensor(center_square(mask, side, Image.Resampling.BOX))
        masks.append(inside * float(inside.mean() >= SMALLEST_SHARE))
    pixels = to_tensor(center_square(image, side))
    return PersonsExample(pixels, torch.stack(masks) if masks else torch.zeros(0, side, side), tuple(portraits))
