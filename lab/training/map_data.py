"""Pictures with label maps, for trainers of semantic synthesis, read one at a time.

Two forms:
- a folder of pictures and a folder of maps, <name>.jpg (.png, .webp) and <name>.png;
- WebDataset shards: uncompressed .tar files that hold <key>.jpg (.png, .webp) and <key>.seg.png.

A map is a picture with one channel, or with a palette: the number of a pixel is its label, 255 is no class.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import PICTURES, files_of_shard, matching, picture_of

MAP = ".seg.png"
#: Of the side that is trained on: pictures are made this much larger, then cropped (286 to 256 in the paper).
MARGIN = 286 / 256


@dataclass(frozen=True)
class Pair:
    """One picture and its map, not read yet."""

    name: str
    picture: Callable[[], bytes]
    labels: Callable[[], bytes]


def pairs_of_folders(pictures: Path, maps: Path) -> list[Pair]:
    """Every picture that has a map.

    Raises:
        ValueError: no folder, or no pair in them.
    """
    for folder in (pictures, maps):
        if not folder.is_dir():
            raise ValueError(f"training data: {folder} is no folder.")
    found = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in PICTURES)
    both = [(path, maps / path.relative_to(pictures).with_suffix(".png")) for path in found]
    pairs = [Pair(str(a.relative_to(pictures)), a.read_bytes, b.read_bytes) for a, b in both if b.is_file()]
    if not pairs:
        raise ValueError(
            f"training data: none of the {len(found)} pictures in {pictures} has a map of its name (.png) in {maps}."
        )
    return pairs


def pairs_of_shards(pattern: str | Sequence[str]) -> list[Pair]:
    """Every picture with a map in .tar files; `*` stands for any part of a file's name.

    Raises:
        ValueError: no such file, one that is no .tar, or no pair in them.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    paths = [path for text in patterns for path in matching(text)]
    pairs = []
    for path in paths:
        for key, files in files_of_shard(path).items():
            picture, labels = picture_of(files), files.get(MAP)
            if picture is not None and labels is not None:
                pairs.append(Pair(f"{path.name}/{key}", picture.read, labels.read))
    if not pairs:
        raise ValueError(f"training data: no <key>.jpg with a <key>{MAP} in {len(paths)} files of {patterns}.")
    return pairs


def example(pair: Pair, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random square of it, mirrored half of the time without exchanging left and right labels, as in the paper.

    Returns:
        Pixels [3, side, side] in [-1, 1]; labels [side, side] int64.

    Raises:
        ValueError: a picture or map that cannot be read, or maps in colours.
    """
    try:
        picture = Image.open(io.BytesIO(pair.picture())).convert("RGB")
        labels = Image.open(io.BytesIO(pair.labels()))
        labels.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"training data: {pair.name} or its map cannot be read ({error}).") from None
    if labels.mode not in ("L", "P", "I", "I;16", "1"):
        raise ValueError(
            f"training data: the map of {pair.name} is in colours ({labels.mode}); write its labels as numbers, one channel."
        )
    short = min(picture.size)
    scale = round(side * MARGIN) / short
    size = max(side, round(picture.width * scale)), max(side, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    numbers = np.asarray(labels.resize(size, Image.Resampling.NEAREST), dtype=np.int64)
    left, top = (int(torch.randint(0, length - side + 1, (), generator=rng)) for length in size)
    window = (slice(top, top + side), slice(left, left + side))
    x, m = torch.from_numpy(pixels[window]).movedim(-1, 0), torch.from_numpy(numbers[window])
    return (x.flip(-1), m.flip(-1)) if bool(torch.rand((), generator=rng) < 0.5) else (x.contiguous(), m)
