"""Images with maps of their classes, for trainers of semantic synthesis and of map-guided adapters, read one at a time.

Two forms:
- folders: <images>/<name>.jpg (.png, .webp, .bmp) with <maps>/<name>.png (or another ending), and optional <captions>/<name>.txt;
- WebDataset shards: uncompressed .tar files that contain <key>.jpg (.png, .webp) with <key>.map.png or <key>.seg.png, and optional <key>.txt.

A map contains either labels (one channel or a palette: the number of a pixel is its label, 255 is void) or colours of a palette.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import IMAGE_ENDINGS, Source, find_data_files, first_with_ending, read_shard
from .images import LABEL_MODES, open_map, open_rgb, to_tensor

MAP_ENDINGS = (".map.png", ".seg.png")
#: Of the side that is trained on: images are made this much larger, then cropped (286 to 256 in CA2-SIS's paper).
MARGIN = 286 / 256


@dataclass(frozen=True)
class ImagePair:
    """An image, its map and its caption, not read yet."""

    name: str
    image: Source
    map: Source
    caption: Source | None = None

    def load_colours(self) -> tuple[Tensor, Tensor, str]:
        """The image and its map's colours, [h, w, 3] in 0..1 both, and the caption; the map may have another size.

        Raises:
            ValueError: a file cannot be read, the map has one channel or other proportions than the image; names it.
        """
        image, found = self._open()
        if found.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L"):
            raise ValueError(
                f"the map of {self.name} has one channel of labels ({found.mode}). Draw it in the colours of the recipe's palette."
            )
        text = "" if self.caption is None else self.caption.read().decode("utf-8-sig", "replace").strip()
        return to_tensor(image), to_tensor(found.convert("RGB")), text

    def load_labels(self, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random square, mirrored half of the time without exchanging left and right labels, as in CA2-SIS's paper.

        Returns:
            Pixels [3, side, side] in [-1, 1]; labels [side, side] int64.

        Raises:
            ValueError: a file cannot be read, the map has colours or other proportions than the image; names it.
        """
        image, found = self._open()
        if found.mode not in LABEL_MODES:
            raise ValueError(f"the map of {self.name} has colours ({found.mode}). Write its labels as numbers, in one channel.")
        scale = round(side * MARGIN) / min(image.size)
        size = max(side, round(image.width * scale)), max(side, round(image.height * scale))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
        numbers = np.asarray(found.resize(size, Image.Resampling.NEAREST), dtype=np.int64)
        left, top = (int(torch.randint(0, length - side + 1, (), generator=rng)) for length in size)
        window = (slice(top, top + side), slice(left, left + side))
        x, labels = torch.from_numpy(pixels[window]).movedim(-1, 0), torch.from_numpy(numbers[window])
        return (x.flip(-1), labels.flip(-1)) if bool(torch.rand((), generator=rng) < 0.5) else (x.contiguous(), labels)

    def _open(self) -> tuple[Image.Image, Image.Image]:
        image = open_rgb(self.name, self.image.read)
        return image, open_map(self.name, self.map.read, image)


def pairs_in_folders(images: Path, maps: Path, captions: Path | None = None) -> list[ImagePair]:
    """Every image that has a map of its name, subfolders included.

    Raises:
        ValueError: one of the folders is missing, or they contain no pair.
    """
    for folder in (images, maps):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder. Give folders whose images and maps have the same names.")
    known = {path.relative_to(maps).with_suffix("").as_posix(): path for path in reversed(_images_in(maps))}
    found, count = [], 0
    for path in _images_in(images):
        name, count = path.relative_to(images).with_suffix("").as_posix(), count + 1
        if name in known:
            text = captions / f"{name}.txt" if captions is not None else None
            caption = Source(text) if text is not None and text.is_file() else None
            found.append(ImagePair(path.relative_to(images).as_posix(), Source(path), Source(known[name]), caption))
    if not found:
        raise ValueError(f"None of the {count} images in {images} has a map of its name in {maps}.")
    return found


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)


def pairs_in_shards(shards: Any) -> list[ImagePair]:
    """Every image with a map in the .tar files that a recipe names.

    Raises:
        ValueError: no such file, a file of another kind, or no pair in them.
    """
    return _pairs_of(find_data_files(shards, "shards"))


def find_pairs(data: str) -> list[ImagePair]:
    """Every pair of a folder with images/, maps/ and optional captions/, of a folder with shards, or of a shard.

    Raises:
        ValueError: there is no pair; says what was looked for.
    """
    place = Path(data)
    if place.suffix == ".tar" or list(place.glob("*.tar")):
        return _pairs_of([place] if place.suffix == ".tar" else sorted(place.glob("*.tar")))
    if not ((place / "images").is_dir() and (place / "maps").is_dir()):
        raise ValueError(
            f"data is {data!r}, where no images are found. Give a folder with images/ and maps/, whose files have the same names, or "
            "with *.tar shards of <key>.jpg and <key>.map.png."
        )
    return pairs_in_folders(place / "images", place / "maps", place / "captions")


def _pairs_of(shards: Iterable[Path]) -> list[ImagePair]:
    paths, found = list(shards), []
    for path in paths:
        for key, members in read_shard(path).items():
            image, labels = first_with_ending(members), first_with_ending(members, MAP_ENDINGS)
            if image is not None and labels is not None:
                found.append(ImagePair(f"{path.name}/{key}", image, labels, members.get(".txt")))
    if not found:
        raise ValueError(f"{', '.join(path.name for path in paths)}: no <key>.jpg with <key>.map.png or <key>.seg.png.")
    return found
