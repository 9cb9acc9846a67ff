"""Where the weights of the techniques are looked for: the host's model folders, what the user configured, and what ships."""

from __future__ import annotations

from pathlib import Path

import folder_paths

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "playground"
EXTENSIONS = frozenset({".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth"})
FOLDERS = ("am_adapter", "ifadapter", "face_diffuser", "paint_by_example", "ca2sis")


def register() -> None:
    """Register the pack's model folders with the host. Harmless to repeat; paths from extra_model_paths.yaml stay first.

    `models/<name>` is added after them, then `assets/playground/<name>` if it ships. The host gives a new name an empty set of
    extensions, with which it would list every file; a set that is there is extended, never replaced by a smaller one.
    """
    for name in FOLDERS:
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        if (SHIPPED / name).is_dir():
            folder_paths.add_model_folder_path(name, str(SHIPPED / name))
        paths, extensions = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(extensions) | EXTENSIONS)


def files(folder: str) -> list[str]:
    """What the user can choose from, sub-folders and links included; an empty list if there is nothing."""
    if folder not in folder_paths.folder_names_and_paths:  # asked for a node's schema before the host has called our entry point
        register()
    return folder_paths.get_filename_list(folder)


def path(folder: str, file: str, node: str, link: str) -> str:
    """The full path of a chosen file. Raises ValueError saying which file belongs where and where it is from."""
    found = folder_paths.get_full_path(folder, file) if file and isinstance(file, str) else None
    if found is None:
        places = " or ".join(folder_paths.get_folder_paths(folder))
        raise ValueError(f"{node}: {file!r} is not in {places}. Download it from {link}, put it there and press R to refresh.")
    return found
