"""Semantic maps in the host's folders: saved below output with a numbered name, loaded from input, output or temp."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ...semantic.label_files import load_label_file, save_label_png
from ...semantic.reading import Reading
from ...semantic.semantic_map import SemanticMap
from ..inputs import check_integer, check_number

SAVE, LOAD = "Save Semantic Map", "Load Semantic Map"
EXTENSIONS = (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".gif")


def save(semantic_map: SemanticMap, prefix: str, prompt: Any = None, extra: dict | None = None) -> list[tuple[str, str]]:
    """Write one palette PNG for each map; returns (file name, subfolder of output) of each. No file is overwritten.

    Args:
        prefix: as in Save Image, with subfolders and %date:...% already resolved by the frontend.
        prompt, extra: the workflow, kept in the file as Save Image does.

    Raises:
        ValueError: a prefix that is empty or leads out of the output folder, or a file that cannot be written.
    """
    height, width = semantic_map.size
    if not isinstance(prefix, str) or not prefix.strip() or "\0" in prefix:
        raise ValueError(f"{SAVE}: filename_prefix is empty. Type the beginning of the file names, for example: map.")
    try:
        folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )
    except Exception as error:  # the host raises a bare Exception for paths outside
        raise ValueError(
            f"{SAVE}: filename_prefix {ascii(prefix)[:200]} cannot be used below the output folder. Use letters, digits, _ and /."
        ) from error
    texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
    texts |= {name: json.dumps(value) for name, value in (extra or {}).items()}
    saved = []
    for row, labels in enumerate(semantic_map.labels):
        name = stem.replace("%batch_num%", str(row))
        path = Path(folder) / f"{name}_{number:05}_.png"
        while path.exists():
            number += 1
            path = Path(folder) / f"{name}_{number:05}_.png"
        try:
            save_label_png(path, labels, semantic_map.palette, texts)
        except OSError as error:
            raise ValueError(
                f"{SAVE}: {path.name} cannot be written: {error.strerror or error}. Check the output folder."
            ) from None
        saved.append((path.name, subfolder))
        number += 1
    return saved


def files() -> list[str]:
    """The images of the input folder, as Load Image lists them."""
    root = Path(folder_paths.get_input_directory())
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())


def load(file: str, palette: str, tolerance: float, reading: str, first_class: int) -> Reading:
    """The semantic map of a file of the input folder, or of `name [output]`; see `load_label_file`."""
    tolerance = check_number(tolerance, LOAD, "tolerance", 0.0, 442.0)
    first_class = check_integer(first_class, LOAD, "first_class", 0, 255)
    path = _path(file)
    if path is None:
        raise ValueError(missing(file))
    try:
        return load_label_file(path, palette, tolerance, reading, first_class)
    except ValueError as error:
        raise ValueError(f"{LOAD}: {error}") from None


def missing(file: Any) -> str:
    """The message for a file that is not there."""
    return f"{LOAD}: there is no file {ascii(file)[:200]} in the input folder. Choose another one, or upload it."


def exists(file: Any) -> bool:
    """Whether the file can be loaded from one of the host's folders."""
    return _path(file) is not None


def fingerprint(file: Any) -> str:
    """Another text whenever the file's content changes."""
    path = _path(file)
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _path(file: Any) -> Path | None:
    """The file of a name as the host's combos list it, `name` or `name [output]`; None for paths that lead out of the host's folders."""
    if not isinstance(file, str) or not file or "\0" in file:
        return None
    name, base = folder_paths.annotated_filepath(file)
    name = name.strip().replace("\\", "/")
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ":" in parts[0] or ".." in parts:
        return None
    path = Path(base or folder_paths.get_input_directory()) / name
    return path if path.is_file() else None
