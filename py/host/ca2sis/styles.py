"""Styles on disk: what was read off one face today can be given to another tomorrow. Never overwrites a file."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...ca2sis import checkpoint
from ...ca2sis.codes import Style

SAVE, LOAD = "CA2-SIS Save Style", "CA2-SIS Load Style"
FOLDER = "ca2sis_styles"


def save(style: Style, name: str) -> str:
    """Write `output/ca2sis_styles/<name>_00001_.safetensors`, or the next number that is free; returns the file's name.

    Raises:
        ValueError: an empty name, or one that leads out of the output folder.
    """
    if not name.strip():
        raise ValueError(f"{SAVE}: name is empty. Type the beginning of the file's name, for example: red_hair.")
    try:
        folder, stem, number, *_ = folder_paths.get_save_image_path(
            f"{FOLDER}/{name.strip()}", folder_paths.get_output_directory()
        )
    except Exception as error:  # the host raises a bare Exception for paths outside
        raise ValueError(f"{SAVE}: {name!r} cannot be a file below the output folder. Use letters, digits and _.") from error
    path = Path(folder) / f"{stem}_{number:05}_.safetensors"
    while path.exists():  # the host counts only what it would have written itself
        number += 1
        path = Path(folder) / f"{stem}_{number:05}_.safetensors"
    checkpoint.save_codes(path, style)
    return path.relative_to(folder_paths.get_output_directory()).as_posix()


def files() -> list[str]:
    """Saved styles in output and input, by the names that `load` takes."""
    roots = (Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory()))
    found = {path.relative_to(root).as_posix() for root in roots for path in (root / FOLDER).rglob("*.safetensors")}
    return sorted(found)


def load(file: str) -> Style:
    """A saved style.

    Raises:
        ValueError: no such file, or one of another kind.
    """
    roots = (folder_paths.get_output_directory(), folder_paths.get_input_directory())
    paths = [Path(root) / file for root in roots if file in files() and (Path(root) / file).is_file()]
    if not paths:
        raise ValueError(
            f"{LOAD}: there is no saved style {file!r}. Save one with {SAVE}, or put it into input/{FOLDER}, and press R."
        )
    found = checkpoint.load_codes(paths[0])
    if not isinstance(found, Style):
        raise ValueError(f"{LOAD}: {file!r} holds a shape, not a style. Choose a file of {SAVE}.")
    return found
