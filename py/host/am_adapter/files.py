"""Weight files of AM-Adapter's two loaders, which share the model folder am_adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
from safetensors import safe_open

from ...am_adapter.checkpoint import CONTROLNEXT, MATCHER, kind_of
from ...weight_files import read_weights
from .. import folders

FOLDER = "am_adapter"
LOAD_MATCHER, LOAD_CONTROLNEXT = "Load AM-Adapter", "Load ControlNeXt"
LOADERS: dict[str | None, str] = {MATCHER: LOAD_MATCHER, CONTROLNEXT: LOAD_CONTROLNEXT}
LINKS = {
    LOAD_MATCHER: "https://cvlab-kaist.github.io/AM-Adapter (not published yet), or train one",
    LOAD_CONTROLNEXT: "https://huggingface.co/Pbihao/ControlNeXt, or train one",
}

Parsed = TypeVar("Parsed")


def load(file: str, node: str, parse: Callable[[Mapping[str, Any], Mapping[str, str]], Parsed]) -> Parsed:
    """A parsed weight file. Raises ValueError naming node and file, what the file is, and which loader takes it if another does."""
    path = folders.path(FOLDER, file, node, LINKS[node])
    try:
        tensors, metadata = read_weights(path)
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error
    loader = LOADERS.get(kind_of(tensors))
    if loader not in (None, node):
        raise ValueError(f"{node}: {file!r} is {kind_of(tensors)}. Load it with {loader}.")
    try:
        return parse(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{node}: {file!r}: {error}") from error


def choices(node: str) -> tuple[list[str], str | None]:
    """The files of the folder, and the one to choose by default: the first that this loader takes."""
    files = folders.files(FOLDER)
    fitting = (file for file in files if LOADERS.get(_kind_by_header(folder_paths.get_full_path(FOLDER, file))) == node)
    return files, next(fitting, files[0] if files else None)


def _kind_by_header(path: str | None) -> str | None:
    try:
        return _kind_of_version(path, Path(path).stat().st_mtime_ns) if path else None
    except OSError:
        return None


@lru_cache(maxsize=256)
def _kind_of_version(path: str, version: int) -> str | None:
    """What a safetensors file is by the names in its header; None for other files, which would have to be read whole."""
    try:
        with safe_open(path, "pt") as file:
            return kind_of(file.keys())
    except Exception:  # a damaged file of a user must not keep the node from being listed
        return None
