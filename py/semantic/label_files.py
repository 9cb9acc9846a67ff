"""Semantic maps as files: palette PNGs that every program shows in the right colours, with the class names in their metadata.

Files of other programs are read too: palette, grey (1, 8 and 16 bit), RGB and RGBA, turned upright as their EXIF data say.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

from .palettes import AUTOMATIC_NAME, Palette, named_palette
from .reading import READINGS, Reading, are_class_numbers, read_labels, share_in_colours
from .semantic_map import SemanticMap

#: The PNG text chunk that holds names and colours.
CHUNK = "exemplary_semantic_map"
_FORMAT = 1
_MOST_PIXELS = 1 << 27
_GREY_MODES = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


def save_label_png(path: Path, labels: torch.Tensor, palette: Palette, texts: Mapping[str, str] | None = None) -> None:
    """Write labels [h, w] uint8 as a palette PNG: pixel value = label, 255 = void. It is written under another name, then renamed.

    Args:
        texts: further PNG text chunks by name.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    about = {
        "format": _FORMAT,
        "palette": palette.name,
        "names": palette.names,
        "colours": palette.colours,
        "void_colour": palette.void_colour,
        "is_open": palette.is_open,
    }
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, json.dumps(about))
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    image = Image.fromarray(labels.numpy(), "L")
    image.putpalette(palette.colour_table().tobytes())  # turns grey values into palette indices
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}_", suffix=".tmp", delete=False) as file:
        written = Path(file.name)
        try:
            image.save(file, format="PNG", pnginfo=info, optimize=False)
            file.flush()
        except BaseException:
            file.close()
            with suppress(OSError):
                written.unlink()
            raise
    written.chmod(0o666 & ~_umask())
    written.replace(path)


def load_label_file(
    path: Path, palette_name: str, tolerance: float = 32.0, reading: str = READINGS[0], first_class: int = 0
) -> Reading:
    """The semantic map of a file. One that `save_label_png` wrote brings its own palette; for others see `read_labels`.

    In a palette PNG of another program, colours count if they are the chosen palette's, else the palette indices are class numbers.

    Raises:
        ValueError: a damaged file, one that is not an image, or as `read_labels`.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > _MOST_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than the {_MOST_PIXELS} that a map may have")
            texts = getattr(file, "text", {})
            about = texts.get(CHUNK) if isinstance(texts, dict) else None
            upright = ImageOps.exif_transpose(file)
            upright.load()
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise ValueError(f"{path.name}: not a readable image ({_reason(error, path)}). Save the file again.") from None
    if about is not None and upright.mode in ("P", "L"):
        return Reading(SemanticMap(torch.from_numpy(np.array(upright))[None], parse_palette_text(about, path)))
    if upright.mode == "P" and reading != "colours" and palette_name != AUTOMATIC_NAME:
        indices = np.array(upright)
        as_numbers = torch.from_numpy(indices.astype(np.float32) / 255.0)[None, ..., None]
        if reading == "class numbers":
            return read_labels(as_numbers, palette_name, tolerance, reading=reading, first_class=first_class)
        palette = named_palette(palette_name)
        if share_in_colours(_as_tensor(upright), palette) < 0.9 and are_class_numbers(indices[None], palette):
            return read_labels(as_numbers, palette_name, tolerance, reading=reading, first_class=first_class)
    return read_labels(_as_tensor(upright), palette_name, tolerance, reading=reading, first_class=first_class)


def image_to_rgba(image: Image.Image) -> np.ndarray:
    """[h, w, 4] uint8 of an image in any mode. 16-bit grey values up to 255 stay numbers, 65535 is void (255), larger ones are scaled."""
    if image.mode in _GREY_MODES - {"1", "L"}:
        grey = _grey_to_bytes(np.array(image))
        return np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    return np.array(image.convert("RGBA"))


def _grey_to_bytes(values: np.ndarray) -> np.ndarray:
    whole = np.nan_to_num(values.astype(np.float64), nan=65535.0).round().clip(0, 65535).astype(np.int64)
    used = whole[whole != 65535]
    if not len(used) or used.max() <= 255:
        return np.where(whole == 65535, 255, whole).astype(np.uint8)
    if not (whole % 257).any():
        return (whole // 257).astype(np.uint8)
    return (whole >> 8).astype(np.uint8)


def _as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(image_to_rgba(image).astype(np.float32) / 255.0)[None]


def parse_palette_text(text: str, path: Path) -> Palette:
    """The palette that `save_label_png` wrote into a file's CHUNK. Raises ValueError if it is damaged; names the file."""
    try:
        about = json.loads(text)
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r} is of a newer version")
        names = tuple(str(name) for name in about["names"])
        colours = tuple((int(r), int(g), int(b)) for r, g, b in about["colours"])
        red, green, blue = (int(channel) for channel in about["void_colour"])
        return Palette(str(about["palette"]), names, colours, (red, green, blue), bool(about["is_open"]))
    except Exception as error:
        raise ValueError(
            f"{path.name}: the class names in its metadata are damaged ({_reason(error, path)}). Save the map again, or remove its metadata."
        ) from None


def _reason(error: Exception, path: Path) -> str:
    return " ".join(str(error).replace(str(path), "the file").split())[:300] or type(error).__name__


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
