"""A folder of exemplars: images, each with its coloured map.

Two ways to lay them out, the first where both subfolders exist:

    images/a/town.jpg  with  maps/a/town.png          the same place and name below `images` and `maps`
    a/town.jpg         with  a/town_map.png           side by side

Subfolders count, links are followed, names that begin with a dot are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGES, MAPS, MAP_ENDING = "images", "maps", "_map"
#: In the order of preference where one name has several; maps are best without loss.
EXTENSIONS = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Pairs:
    """What a folder holds, in the order of the maps' names. Names are relative to the folder, with "/".

    `stamps` [n, 4] int64: time of change in ns and size in bytes, of the image, then of the map. `alone`: files without their partner.
    """

    folder: Path
    images: tuple[str, ...]
    maps: tuple[str, ...]
    stamps: np.ndarray
    alone: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.maps)

    def fingerprint(self) -> str:
        """Another text whenever a pair came, went, or changed on the disk."""
        digest = hashlib.sha256(self.stamps.tobytes())
        for names in (self.images, self.maps):
            digest.update("\n".join(names).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def find_pairs(folder: Path) -> Pairs:
    """The pairs of a folder.

    Raises:
        ValueError: no such folder, one that cannot be read, or one without a pair; says how pairs are named.
    """
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ValueError(f"folder: {shown(folder)!r} {what}; give a folder that holds images and their maps.")
        if (folder / IMAGES).is_dir() and (folder / MAPS).is_dir():
            pictures = _by_stem(_files(folder / IMAGES, f"{IMAGES}/"), len(IMAGES) + 1)
            maps = _by_stem(_files(folder / MAPS, f"{MAPS}/"), len(MAPS) + 1)
        else:
            pictures = _by_stem(_files(folder, ""), 0)
            maps = {
                stem.removesuffix(MAP_ENDING): file
                for stem, file in pictures.items()
                if stem.endswith(MAP_ENDING) and stem.removesuffix(MAP_ENDING) in pictures
            }
            for file in [stem + MAP_ENDING for stem in maps]:
                pictures.pop(file)
    except OSError as error:
        raise ValueError(f"folder: {shown(folder)!r} cannot be read: {error.strerror}. Check its name and permissions.") from None
    both = sorted((maps[stem], pictures[stem]) for stem in maps.keys() & pictures.keys())
    alone = sorted(
        file[0] for one, other in ((pictures, maps), (maps, pictures)) for stem, file in one.items() if stem not in other
    )
    if not both:
        raise ValueError(
            f"folder: {shown(folder)!r} holds no image with its map ({len(alone)} image files in all). Name a pair town.jpg and "
            f"town{MAP_ENDING}.png, or put them under one name into the subfolders {IMAGES} and {MAPS}."
        )
    stamps = np.array([[*image[1:], *semantic_map[1:]] for semantic_map, image in both], dtype=np.int64)
    return Pairs(folder, tuple(image[0] for _, image in both), tuple(file[0] for file, _ in both), stamps, tuple(alone))


def shown(name: str | Path) -> str:
    """A file's name as text that can be sent and printed: question marks for bytes that are not UTF-8, the middle of a very long one left out."""
    text = str(name).encode("utf-8", "replace").decode()
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def read_picture(path: Path) -> Tensor:
    """The image of a pair, [1, h, w, 3] float32 in 0..1, turned as its camera says.

    Raises:
        ValueError: the file is damaged or no image; names it.
    """
    return torch.from_numpy(_pixels(path, "RGB").astype(np.float32) / 255.0)[None]


def read_map(path: Path) -> np.ndarray:
    """The coloured map of a pair, [h, w, 4] uint8: red, green, blue, opacity. Otherwise as `read_picture`."""
    return _pixels(path, "RGBA")


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., h, w] in another size: every pixel takes the value at its centre. For labels, which cannot be mixed."""
    rows = (2 * np.arange(height) + 1) * array.shape[-2] // (2 * height)
    columns = (2 * np.arange(width) + 1) * array.shape[-1] // (2 * width)
    return np.ascontiguousarray(array[..., rows[:, None], columns])


_File = tuple[str, int, int]


def _files(folder: Path, prefix: str) -> Iterator[_File]:
    """(name, time of change, size) of every image file below a folder, each real folder once."""
    waiting, seen = [(str(folder), prefix)], set()
    while waiting:
        place, prefix = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.name.lower().endswith(EXTENSIONS):
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # a link to nowhere, or deleted this moment
                        continue
                    yield prefix + entry.name, stat.st_mtime_ns, stat.st_size


def _by_stem(files: Iterator[_File], skip: int) -> dict[str, _File]:
    """Files by their name without ending and without the first `skip` letters."""
    found: dict[str, _File] = {}
    for file in files:
        stem = file[0].rpartition(".")[0][skip:]
        rival = found.get(stem)
        if rival is None or _preference(file) < _preference(rival):
            found[stem] = file
    return found


def _preference(file: _File) -> tuple[int, str]:
    ending = file[0][file[0].rindex(".") :]
    return EXTENSIONS.index(ending.lower()), ending


def _pixels(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return np.array(ImageOps.exif_transpose(file).convert(mode))
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        reason = " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__
        raise ValueError(f"{shown(path.name)}: not a readable image ({shown(reason)})") from None
