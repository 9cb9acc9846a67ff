"""The files that training data are in: pictures, JSON in COCO's form, and WebDataset shards, read in place member by member."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Source:
    """Bytes in a file."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Read them now."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def matching(pattern: str) -> list[Path]:
    """The files that a path names, `*` standing for any part of a file's name. Raises ValueError if there is none."""
    path = Path(pattern)
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise ValueError(f"There is no data file {pattern}.")
    return found


def files_of_shard(shard: Path) -> dict[str, dict[str, Source]]:
    """What a WebDataset .tar file holds, by key: key (with its folder) -> ending (".jpg", ".map.png") -> where it is.

    Raises ValueError naming a file that is no .tar, or a compressed one, whose members cannot be read in place.
    """
    parts: dict[str, dict[str, Source]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, ending = file.partition(".")
                if member.isfile() and key:
                    place = Source(shard, member.offset_data, member.size)
                    parts.setdefault(f"{folder}/{key}".lstrip("/"), {})[f".{ending.lower()}"] = place
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise ValueError(f"{shard.name} is no uncompressed .tar file: {type(error).__name__} {error}.") from None
    return dict(sorted(parts.items()))


def picture_of(files: dict[str, Source], endings: Sequence[str] = PICTURES) -> Source | None:
    """The first of a key's members that has one of the endings."""
    return next((files[ending] for ending in endings if ending in files), None)


def entries_of(
    data: str | Sequence[str],
    images: str | None,
    shard: Callable[[Path], list[Entry]],
    coco: Callable[[Path, Path], list[Entry]],
    form: str,
) -> list[Entry]:
    """What `shard` reads from .tar files and `coco` from JSON files.

    Args:
        data: the path of a .json file, of a .tar file, or a list of them; `*` stands for any part of a file's name.
        images: the folder that the JSON's file names start from; by default the one that the JSON is in.
        form: what the data should be, for people.

    Raises:
        ValueError: naming the file and what it lacks.
    """
    found: list[Entry] = []
    for path in [path for pattern in ([data] if isinstance(data, str) else data) for path in matching(pattern)]:
        try:
            found += shard(path) if path.suffix == ".tar" else coco(path, Path(images) if images else path.parent)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} is not {form}: {type(error).__name__} {error}.") from None
    return found
