"""Saved styles: files in the host's output and input folders. Files are never overwritten."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...ca2sis import checkpoint
from ...ca2sis.codes import Style
from ...semantic.pairs import shown
from ..inputs import check_text

SAVE, LOAD = "CA2-SIS Save Style", "CA2-SIS Load Style"
FOLDER = "ca2sis_styles"


def save(style: Style, name: str) -> str:
    """Write `output/ca2sis_styles/<name>_00001_.safetensors`, or the next number that is free; returns the file's name.

    Raises:
        ValueError: an empty name, or one that leads out of the output folder.
    """
    name = check_text(name, SAVE, "name")
    if not name.strip():
        raise ValueError(f"{SAVE}: name is empty. Type the beginning of the file's name, for example: red_hair.")
    try:
        folder, stem, number, *_ = folder_paths.get_save_image_path(
            f"{FOLDER}/{name.strip()}", folder_paths.get_output_directory()
        )
        if stem in ("", ".", "..") or not Path(folder).resolve().is_relative_to(
            Path(folder_paths.get_output_directory(), FOLDER).resolve()
        ):
            raise ValueError(f"it is outside of {FOLDER}")  # where Load Style does not list it
        path = Path(folder) / f"{stem}_{number:05}_.safetensors"
        while path.exists():  # the host counts only what it would have written itself
            number += 1
            path = Path(folder) / f"{stem}_{number:05}_.safetensors"
        checkpoint.save_codes(path, style)
    except Exception as error:  # the host raises a bare Exception for paths outside, safetensors its own type for a full disk
        reason = shown(str(error).strip("* ").partition("\n")[0])
        raise ValueError(
            f"{SAVE}: {shown(name)!r} cannot be saved in output/{FOLDER} ({reason}). Use letters, digits and _, and check that the folder "
            "is writable."
        ) from error
    return path.relative_to(folder_paths.get_output_directory()).as_posix()


def files() -> list[str]:
    """Saved styles in output and input, by the names that `load` takes."""
    roots = (Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory()))
    found = {path.relative_to(root).as_posix() for root in roots for path in (root / FOLDER).rglob("*.safetensors")}
    return sorted(found)


def load(file: str) -> Style:
    """A saved style.

    Raises:
        ValueError: no such file, or a file that does not contain a style.
    """
    roots = (folder_paths.get_output_directory(), folder_paths.get_input_directory())
    file = check_text(file, LOAD, "file").replace("\\", "/")  # workflows from Windows
    paths = [Path(root) / file for root in roots if file in files() and (Path(root) / file).is_file()]
    if not paths:
        raise ValueError(
            f"{LOAD}: there is no saved style {file!r}. Save one with {SAVE}, or put it into input/{FOLDER}, and press R."
        )
    found = checkpoint.load_codes(paths[0])
    if not isinstance(found, Style):
        raise ValueError(f"{LOAD}: {file!r} contains a shape, not a style. Choose a file of {SAVE}.")
    return found
