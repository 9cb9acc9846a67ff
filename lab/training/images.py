"""Reading and writing the images of a training: upright, in 8 bits per channel, bounded in size; every failure names the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

#: Bytes of a file or of a shard's member, read when they are needed.
Read = Callable[[], bytes]
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def open_image(name: str, read: Read) -> Image.Image:
    """An image as its file holds it, decoded and rotated upright by its EXIF orientation.

    Raises:
        ValueError: the file cannot be decoded, or is larger than Pillow's bound for decompression bombs; names it.
    """
    try:
        data = read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # up to twice that size is an ordinary photo here
            return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise ValueError(f"{name} cannot be read as an image: {error}. Replace or remove it.") from None


def open_rgb(name: str, read: Read) -> Image.Image:
    """The same in RGB; images of 16 bits per pixel are scaled to 8. Raises ValueError as `open_image` does."""
    image = open_image(name, read)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> (8 if values.max(initial=0) > 255 else 0)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def open_map(name: str, read: Read, image: Image.Image) -> Image.Image:
    """The map of an image, as its file holds it; it may have another size but must have the image's proportions.

    Raises:
        ValueError: the map cannot be read, or its proportions differ from the image's by more than a pixel.
    """
    found = open_image(f"the map of {name}", read)
    if not have_same_proportions(found.size, image.size):
        raise ValueError(
            f"the map of {name} has {found.width} x {found.height} pixels, the image {image.width} x {image.height}. "
            "They must have the same proportions. Replace the map, or remove both files."
        )
    return found


def have_same_proportions(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two sizes (width, height) are the same but for a scale, to a pixel."""
    return min(abs(a[1] - b[1] * a[0] / b[0]), abs(a[0] - b[0] * a[1] / b[1])) <= 1


def center_square(image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The image with its short side resized to `side` pixels, and the square in its center."""
    width, height = image.size
    scale = side / min(width, height)
    left, top = round((width * scale - side) / 2), round((height * scale - side) / 2)
    resized = image.resize((max(side, round(width * scale)), max(side, round(height * scale))), resampling)
    return resized.crop((left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """[h, w, 3] (or [h, w] of one channel), float32 in 0..1."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def save_image(pixels: Tensor, path: Path) -> None:
    """Write [3, h, w] in 0..1 as a PNG of 8 bits."""
    values = pixels.detach().float().mul(255).round().clamp(0, 255).byte().movedim(0, -1).cpu().numpy()
    Image.fromarray(np.ascontiguousarray(values)).save(path)
