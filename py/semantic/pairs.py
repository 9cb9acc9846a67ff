"""A folder of exemplars: images, each with its semantic map.

Two layouts; the first is used if both subfolders exist:

    images/a/town.jpg  with  maps/a/town.png          the same relative path and name in `images` and `maps`
    a/town.jpg         with  a/town_map.png           side by side

Subfolders are searched, links are followed, and names that begin with a dot are ignored.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .label_files import CHUNK, image_to_rgba, parse_palette_text
from .palettes import Palette
from .reading import are_class_numbers, grey_values, read_labels, share_in_colours
from .remap import matching_table
from .semantic_map import SemanticMap, look_up

IMAGES, MAPS, MAP_ENDING = "images", "maps", "_map"
#: In the order of preference if one name has several; maps are best lossless.
EXTENSIONS = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
#: A folder is scanned at every queueing; one with more files is not a folder of exemplars.
MOST_IMAGES, MOST_OTHERS = 400_000, 50_000


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a folder, in the order of the maps' names. Names are relative to the folder, with "/".

    Args:
        stamps: [n, 4] int64, time of change in ns and size in bytes, of the image, then of the map.
        unpaired: image files without a partner.
        skipped: entries that cannot be read, with the reason.
    """

    folder: Path
    images: tuple[str, ...]
    maps: tuple[str, ...]
    stamps: np.ndarray
    unpaired: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.maps)

    def fingerprint(self) -> str:
        """A text that changes whenever a pair is added, removed or changed on the disk."""
        digest = hashlib.sha256(self.stamps.tobytes())
        for names in (self.images, self.maps):
            digest.update("\n".join(names).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def find_pairs(folder: Path) -> Pairs:
    """The pairs of a folder.

    Raises:
        ValueError: no such folder, one that cannot be read, has too many files, or no pair; says how pairs are named.
    """
    scan = _Scan(folder)
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ValueError(f"folder: {shown(folder)!r} {what}; give a folder that contains images and their maps.")
        if (folder / IMAGES).is_dir() and (folder / MAPS).is_dir():
            images = _by_stem(scan.files(IMAGES), len(IMAGES) + 1)
            maps = _by_stem(scan.files(MAPS), len(MAPS) + 1)
        else:
            images = _by_stem(scan.files(), 0)
            maps = {
                stem.removesuffix(MAP_ENDING): file
                for stem, file in images.items()
                if stem.endswith(MAP_ENDING) and stem.removesuffix(MAP_ENDING) in images
            }
            for file in [stem + MAP_ENDING for stem in maps]:
                images.pop(file)
    except OSError as error:
        raise ValueError(f"folder: {shown(folder)!r} cannot be read: {error.strerror}. Check its name and permissions.") from None
    both = sorted((maps[stem], images[stem]) for stem in maps.keys() & images.keys())
    unpaired = sorted(
        file[0] for one, other in ((images, maps), (maps, images)) for stem, file in one.items() if stem not in other
    )
    if not both:
        skipped = f" Skipped: {'; '.join(scan.skipped[:3])}." if scan.skipped else ""
        raise ValueError(
            f"folder: {shown(folder)!r} contains no image with its map ({len(unpaired)} image files in all).{skipped} Name a pair town.jpg "
            f"and town{MAP_ENDING}.png, or put both with the same name into the subfolders {IMAGES} and {MAPS}."
        )
    stamps = np.array([[*image[1:], *semantic_map[1:]] for semantic_map, image in both], dtype=np.int64)
    names = (tuple(image[0] for _, image in both), tuple(file[0] for file, _ in both))
    return Pairs(folder, *names, stamps, tuple(unpaired), tuple(sorted(scan.skipped)))


def shown(name: str | Path) -> str:
    """A file's name as text that can be sent and printed: question marks for bytes that are not UTF-8, the middle of a very long one left out."""
    text = str(name).encode("utf-8", "replace").decode()
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def read_image(path: Path) -> Tensor:
    """The image of a pair, [1, h, w, 3] float32 in 0..1, turned as its EXIF data say.

    Raises:
        ValueError: the file is damaged or not an image; names it.
    """
    pixels = image_to_rgba(_open_upright(path)[0])[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


@dataclass(frozen=True, eq=False)
class MapFile:
    """A map as its file stores it: `colours` [h, w, 4] uint8 (red, green, blue, opacity); for class numbers their `labels` [h, w] uint8."""

    colours: np.ndarray
    labels: np.ndarray | None
    notes: tuple[str, ...] = ()


def read_map(path: Path, palette: Palette) -> MapFile:
    """The map of a pair. As Load Semantic Map, it recognises class numbers of the palette (grey or palette indices, 8 or 16 bits).

    A map of Save Semantic Map has its class names with it; its classes are matched to the palette by name.

    Raises:
        ValueError: the file is damaged or not an image; names it.
    """
    upright, about = _open_upright(path)
    colours = image_to_rgba(upright)
    if about is not None and upright.mode in ("P", "L"):
        own = parse_palette_text(about, path)
        return MapFile(colours, look_up(matching_table(own, palette), np.array(upright)))
    rgba = torch.from_numpy(colours)[None].float().div_(255.0)
    numbers: np.ndarray | None
    if upright.mode == "P":
        numbers = np.array(upright) if share_in_colours(rgba, palette) < 0.9 else None
    else:
        found = grey_values(rgba)
        numbers = None if found is None else found[0]
    if numbers is None or not are_class_numbers(numbers[None], palette):
        return MapFile(colours, None)
    like = SemanticMap(torch.zeros(1, 1, 1, dtype=torch.uint8), palette)
    reading = read_labels(torch.from_numpy(numbers)[None, ..., None].float() / 255.0, palette.name, like=like)
    return MapFile(colours, reading.semantic_map.labels[0].numpy(), reading.notes)


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., h, w] in another size: every pixel takes the value at its centre. For labels, which cannot be mixed."""
    rows = (2 * np.arange(height) + 1) * array.shape[-2] // (2 * height)
    columns = (2 * np.arange(width) + 1) * array.shape[-1] // (2 * width)
    return np.ascontiguousarray(array[..., rows[:, None], columns])


_File = tuple[str, int, int]


@dataclass
class _Scan:
    """Walks through folders and counts what it sees, so that a folder like `/` ends with a message after a second or two."""

    folder: Path
    skipped: list[str] = field(default_factory=list)
    images: int = 0
    others: int = 0

    def files(self, subfolder: str = "") -> Iterator[_File]:
        """(name, time of change, size) of every image file, each real folder once. What cannot be read is added to `skipped`.

        Raises:
            OSError: the folder itself cannot be read.
            ValueError: too many files.
        """
        top = str(self.folder / subfolder)
        waiting, seen = [(top, f"{subfolder}/" if subfolder else "")], set()
        while waiting:
            path, prefix = waiting.pop()
            real = os.path.realpath(path)
            if real in seen:
                continue
            seen.add(real)
            try:
                entries = os.scandir(path)
            except OSError as error:
                if path == top:
                    raise
                self._skip(prefix, error.strerror)
                continue
            with entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = prefix + entry.name
                    try:
                        is_folder = entry.is_dir()
                        is_image = not is_folder and entry.name.lower().endswith(EXTENSIONS)
                        status = entry.stat() if is_image else None
                    except FileNotFoundError:  # a link to nothing, or deleted this moment
                        continue
                    except OSError as error:  # a link to itself, a network folder that is offline
                        self._skip(name, error.strerror)
                        continue
                    self._count(is_image)
                    if is_folder:
                        waiting.append((entry.path, f"{name}/"))
                    elif status is not None and not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                        self._skip(name, "not a regular file")
                    elif status is not None:
                        yield name, status.st_mtime_ns, status.st_size

    def _skip(self, name: str, reason: str | None) -> None:
        self.skipped.append(f"{shown(name)}: cannot be read ({reason})")

    def _count(self, is_image: bool) -> None:
        self.images += is_image
        self.others += not is_image
        if self.images > MOST_IMAGES or self.others > MOST_OTHERS:
            raise ValueError(
                f"folder: {shown(self.folder)!r} contains more than {MOST_IMAGES} images or {MOST_OTHERS} other files and subfolders. "
                "Give a folder that contains only images and their maps."
            )


def _by_stem(files: Iterator[_File], skip: int) -> dict[str, _File]:
    """Files by their name without extension and without the first `skip` characters, accents composed: macOS stores them decomposed."""
    found: dict[str, _File] = {}
    for file in files:
        stem = unicodedata.normalize("NFC", file[0].rpartition(".")[0][skip:])
        rival = found.get(stem)
        if rival is None or _preference(file) < _preference(rival):
            found[stem] = file
    return found


def _preference(file: _File) -> tuple[int, str, str]:
    extension = file[0][file[0].rindex(".") :]
    return EXTENSIONS.index(extension.lower()), extension, file[0]


def _open_upright(path: Path) -> tuple[Image.Image, str | None]:
    """The decoded image, turned as its EXIF data say, and the class names that Save Semantic Map writes into its maps."""
    try:
        with Image.open(path) as file:
            texts = getattr(file, "text", {})
            about = texts.get(CHUNK) if isinstance(texts, dict) else None
            upright = ImageOps.exif_transpose(file)
            upright.load()
            return upright, about
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        reason = " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__
        raise ValueError(f"{shown(path.name)}: not a readable image ({shown(reason)})") from None
