"""Pictures with their coloured maps, from a folder or from WebDataset shards. Read one by one, so any number will do.

folder    images/<name>.<jpg|png|...>, maps/<name>.<png|...>, optional captions/<name>.txt
shards    *.tar with <key>.<jpg|png|webp>, <key>.map.png (or <key>.seg.png), optional <key>.txt
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import PICTURES, Source, files_of_shard, picture_of

MAPS = (".map.png", ".seg.png")


@dataclass(frozen=True)
class Pair:
    """Where a picture, its map and its caption are."""

    name: str
    picture: Source
    coloured: Source
    caption: Source | None

    def load(self) -> tuple[Tensor, Tensor, str]:
        """The picture and its map's colours, [h, w, 3] in 0..1 both, and the caption.

        Raises:
            ValueError: one of the files is no picture; names it.
        """
        text = "" if self.caption is None else self.caption.read().decode("utf-8", "replace").strip()
        return _picture(self.picture, self.name), _picture(self.coloured, f"the map of {self.name}"), text


def find_pairs(place: Path) -> list[Pair]:
    """Every picture that has a map, by name. Raises ValueError, saying what was looked for, if there is none."""
    shards = [place] if place.suffix == ".tar" else sorted(place.glob("*.tar"))
    found = [pair for shard in shards for pair in _of_shard(shard)] if shards else _of_folder(place)
    if not found:
        raise ValueError(
            f"training: {place} holds no pairs. Give a folder with images/ and maps/, whose files have the same names, or *.tar shards with "
            "<key>.jpg and <key>.map.png."
        )
    return found


def _of_folder(place: Path) -> list[Pair]:
    maps = {path.stem: path for path in sorted((place / "maps").glob("*")) if path.suffix.lower() in PICTURES}
    found = []
    for path in sorted((place / "images").glob("*")):
        if path.suffix.lower() in PICTURES and path.stem in maps:
            text = place / "captions" / f"{path.stem}.txt"
            found.append(Pair(path.name, Source(path), Source(maps[path.stem]), Source(text) if text.is_file() else None))
    return found


def _of_shard(shard: Path) -> list[Pair]:
    found = []
    for key, files in files_of_shard(shard).items():
        picture, coloured = picture_of(files), picture_of(files, MAPS)
        if picture is not None and coloured is not None:
            found.append(Pair(f"{shard.name}:{key}", picture, coloured, files.get(".txt")))
    return found


def _picture(source: Source, name: str) -> Tensor:
    try:
        with Image.open(io.BytesIO(source.read())) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"training: {name} cannot be read as a picture ({error}). Remove or replace it.") from error
