"""The files of training data: images, JSON in COCO's form, and WebDataset shards, whose members are read in place."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
Entry = TypeVar("Entry")
#: What reading a file of another form raises; a `ValueError` of an entry has a message of its own.
_OTHER_FORM = (
    json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A range of bytes in a file."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Read them now."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def find_data_files(patterns: Any, field: str = "data") -> list[Path]:
    """The files that a recipe names.

    Args:
        patterns: a path or a list of paths; `*` in the file name matches any text.
        field: the recipe's field, for messages.

    Raises:
        ValueError: no path, or a path without a file.
    """
    names = patterns if isinstance(patterns, list | tuple) else [patterns]
    if not names or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise ValueError(f"{field} is {patterns!r}; it must be the path of a file, or a list of paths.")
    found = []
    for name in names:
        path = Path(name)
        matching = [path] if path.is_dir() else sorted(path.parent.glob(path.name))
        if not matching:
            raise ValueError(f"There is no data file {name}.")
        folders = [each for each in matching if not each.is_file()]
        if folders:
            raise ValueError(f"{field}: {folders[0]} is a folder; give the path of a .json or .tar file in it.")
        found += matching
    return found


def read_shard(shard: Path) -> dict[str, dict[str, Source]]:
    """The members of a WebDataset .tar file by key: key (with its folder) -> ending (".jpg", ".map.png") -> its bytes.

    Raises:
        ValueError: the file is not a .tar file, or a compressed one, whose members cannot be read in place; names it.
    """
    members: dict[str, dict[str, Source]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, ending = file.partition(".")
                if member.isfile() and key:
                    source = Source(shard, member.offset_data, member.size)
                    members.setdefault(f"{folder}/{key}".lstrip("/"), {})[f".{ending.lower()}"] = source
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shard.name} is not an uncompressed .tar file: {type(error).__name__} {error}.") from None
    return dict(sorted(members.items()))


def first_with_ending(members: dict[str, Source], endings: Sequence[str] = IMAGE_ENDINGS) -> Source | None:
    """The first of a key's members that has one of the endings."""
    return next((members[ending] for ending in endings if ending in members), None)


def read_entries(
    data: Any,
    images: str | None,
    read_shard_entries: Callable[[Path], list[Entry]],
    read_json_entries: Callable[[Path, Path], list[Entry]],
    form: str,
) -> list[Entry]:
    """The entries of all .tar files and JSON files of a recipe.

    Args:
        data: the path of a .json file, of a .tar file, or a list of them; `*` in the file name matches any text.
        images: the folder that the JSON's file names are relative to; by default the one that contains the JSON.
        form: what the data should be, for messages.

    Raises:
        ValueError: names the file and what it lacks.
    """
    found: list[Entry] = []
    for path in find_data_files(data):
        try:
            if path.suffix == ".tar":
                found += read_shard_entries(path)
            else:
                found += read_json_entries(path, Path(images) if images else path.parent)
        except _OTHER_FORM as error:
            raise ValueError(f"{path.name} is not {form}: {type(error).__name__} {error}.") from None
        except ValueError as error:
            raise ValueError(str(error) if path.name in str(error) else f"{path.name}: {error}") from None
    return found
