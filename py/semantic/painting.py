"""What the painter stores: a label image and the list of its classes, as one text; and how that becomes a semantic map."""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .palettes import PALETTE_NAMES, VOID, Colour, Palette, named_palette, own_palette, parse_colour
from .semantic_map import SemanticMap

#: Label of a pixel that nobody painted: it keeps the class of the incoming map, and is void without one.
UNPAINTED = 255
#: Label of a pixel that was painted with void.
ERASED = 254
MAX_CLASSES = 254
MAX_SIDE = 8192
OWN_CLASSES = "own classes"

_MAX_TEXT = 128 * 2**20
_MAX_FIELD = 80
_PREFIX = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SHOULD_BE = "It should be 8-bit grayscale or palette, not interlaced, with the number of the class as the value of each pixel."


@dataclass(frozen=True, eq=False)
class Painting:
    """Painted labels and what they mean.

    Args:
        labels: [h, w] uint8: position in `classes`, ERASED (254) for void, UNPAINTED (255) for nothing.
        classes: name and colour of each label.
        palette: one of PALETTE_NAMES, or OWN_CLASSES. Classes that it has keep its label and colour; others are added to it.

    Raises:
        ValueError: labels of another shape or type, without pixels, or beyond the classes.
    """

    labels: Tensor
    classes: tuple[tuple[str, Colour], ...]
    palette: str = OWN_CLASSES

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.numel() == 0 or self.labels.dtype != torch.uint8:
            raise ValueError(f"painting: labels are {self.labels.dtype} {tuple(self.labels.shape)}; they should be uint8 [h, w].")
        beyond = torch.bincount(self.labels.flatten(), minlength=256)[len(self.classes) : ERASED].nonzero()
        if len(beyond):
            label = len(self.classes) + int(beyond[0])
            raise ValueError(
                f"painting: the label image contains the value {label}, but there are {len(self.classes)} classes. "
                f"Add the missing classes, or use {ERASED} for void and {UNPAINTED} for unpainted pixels."
            )


def parse_painting(text: str) -> Painting | None:
    """Read what the painter stores, or what an API user supplies instead; None for an empty text.

    The text is JSON: {"palette": "ADE20K", "classes": [{"name": "sky", "color": "#06e6e6"}, ...], "labels": "data:image/png;base64,..."}.

    Raises:
        ValueError: any other text; names the entry that is wrong and what it should be.
    """
    if not text.strip():
        return None
    if len(text) > _MAX_TEXT:
        raise ValueError(
            f"painting: the text has {len(text)} characters; at most {_MAX_TEXT} are read. Use a smaller label image."
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"painting: this is not JSON ({str(error)[:80]}). Clear the input to begin a new map.") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"painting: the JSON is a {type(data).__name__}; it should be an object with palette, classes and labels."
        )
    palette = data.get("palette") or OWN_CLASSES
    if palette != OWN_CLASSES and (not isinstance(palette, str) or palette not in PALETTE_NAMES):
        raise ValueError(f"painting: palette is {_show(palette)}; choose one of: {', '.join((OWN_CLASSES, *PALETTE_NAMES))}.")
    classes = _parse_classes(data.get("classes") or [])
    labels = data.get("labels") or ""
    if not isinstance(labels, str):
        raise ValueError(f"painting: labels is {_show(labels)}; it should be a PNG file as base64 text.")
    if not labels:
        return Painting(torch.full((1, 1), UNPAINTED, dtype=torch.uint8), classes, palette)
    return Painting(decode_labels(labels), classes, palette)


def _parse_classes(entries: object) -> tuple[tuple[str, Colour], ...]:
    if not isinstance(entries, list):
        raise ValueError(f"painting: classes is {_show(entries)}; it should be a list of objects with name and color.")
    if len(entries) > MAX_CLASSES:
        raise ValueError(f"painting: {len(entries)} classes; a painting has at most {MAX_CLASSES}.")
    found: list[tuple[str, Colour]] = []
    for number, entry in enumerate(entries):
        name, colour = (entry.get("name"), entry.get("color")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(colour, str):
            raise ValueError(
                f'painting: class {number} is {_show(entry)}; it should look like {{"name": "sky", "color": "#4682b4"}}.'
            )
        try:
            name.encode()
            found.append((name.strip(), parse_colour(colour)))
        except ValueError:
            raise ValueError(
                f"painting: class {number} is {_show(entry)}; write its color as #rrggbb and its name as ordinary text."
            ) from None
    return tuple(found)


def decode_labels(text: str) -> Tensor:
    """The labels [h, w] uint8 of a PNG in base64, with or without the prefix of a data URL.

    Raises:
        ValueError: no PNG, another kind of PNG, damaged, or more than MAX_SIDE pixels wide or high.
    """
    try:
        data = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"painting: labels is {_show(text)}; it should be a PNG file as base64 text.") from None
    if len(data) < 33 or data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError(f"painting: labels holds {len(data)} bytes that are not a PNG file. {_SHOULD_BE}")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"painting: the label image is {width} x {height}; each side should be 1 to {MAX_SIDE} pixels.")
    if depth != 8 or kind not in (0, 3) or interlaced:
        raise ValueError(f"painting: the label image is a PNG of type {kind} with {depth} bits. {_SHOULD_BE}")
    try:
        if _unpacked_size(data, (width + 1) * height) != (width + 1) * height:  # PIL fills what is missing with zeros
            raise ValueError("its data does not fit its size")
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"painting: the label image is damaged ({str(error)[:80]}). {_SHOULD_BE}") from None
    if labels.dtype != np.uint8 or labels.shape != (height, width):
        raise ValueError(f"painting: the label image is damaged. {_SHOULD_BE}")
    return torch.from_numpy(labels)


def _unpacked_size(data: bytes, most: int) -> int:
    """How many bytes the image data of a PNG file has, counted up to one more than `most`."""
    unpack, size, at = zlib.decompressobj(), 0, 8
    while at + 8 <= len(data) and size <= most:
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT" and not unpack.eof:
            size += len(unpack.decompress(data[at + 8 : at + 8 + length], most + 1 - size))
        at += 12 + length
    return size if unpack.eof or size > most else -1


def encode_labels(labels: Tensor) -> str:
    """Labels [h, w] uint8 as a data URL of a grayscale PNG, without loss."""
    file = io.BytesIO()
    Image.fromarray(labels.numpy()).save(file, "PNG", optimize=True)
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


def serialize_painting(painting: Painting) -> str:
    """The text that `parse_painting` reads."""
    classes = [{"name": name, "color": _hex(colour)} for name, colour in painting.classes]
    return json.dumps(
        {"palette": painting.palette, "classes": classes, "labels": encode_labels(painting.labels)}, ensure_ascii=False
    )


def describe_map(semantic_map: SemanticMap) -> str:
    """The first map of a batch for the painter's page: {"palette", "void", "classes", "labels"}, label 255 is void."""
    palette = semantic_map.palette
    classes = [{"name": name, "color": _hex(colour)} for name, colour in zip(palette.names, palette.colours)]
    return json.dumps(
        {
            "palette": palette.name,
            "void": _hex(palette.void_colour),
            "classes": classes,
            "labels": encode_labels(semantic_map.labels[0]),
        },
        ensure_ascii=False,
    )


def apply_painting(painting: Painting | None, width: int, height: int, semantic_map: SemanticMap | None = None) -> SemanticMap:
    """Paint over a map, or on an empty one of the given size.

    Without a map the palette is the painting's. With one it is the map's, and `width` and `height` are not used; classes that its palette
    does not have are added to it. A painting of another size is resized without new labels (nearest pixel). Every map of a batch is painted.

    Raises:
        ValueError: a class twice, a name that no palette takes, or more classes than a map can hold.
    """
    if semantic_map is not None:
        height, width = semantic_map.size
    if painting is None:
        return semantic_map or SemanticMap(torch.full((1, height, width), VOID, dtype=torch.uint8), own_palette())
    palette, table = _painted_palette(painting, _first_palette(painting) if semantic_map is None else semantic_map.palette)
    labels = resize_labels(painting.labels, width, height)
    below = torch.full((1, height, width), VOID, dtype=torch.uint8) if semantic_map is None else semantic_map.labels
    return SemanticMap(torch.where(labels == UNPAINTED, below, table[labels.int()]), palette)


def _first_palette(painting: Painting) -> Palette:
    return own_palette() if painting.palette == OWN_CLASSES else named_palette(painting.palette)


def _painted_palette(painting: Painting, palette: Palette) -> tuple[Palette, Tensor]:
    """The palette with every painted class, and the label [256] in it of each label of the painting."""
    table = torch.full((256,), VOID, dtype=torch.uint8)
    seen: dict[int, str] = {}
    for index, (name, colour) in enumerate(painting.classes):
        label = palette.find(name)
        if label is None:
            try:
                palette = palette.with_class(name, colour)
            except ValueError as error:
                raise ValueError(f"painting: class {index}: {error}") from None
            label = len(palette.names) - 1
        if label in seen and label != VOID:
            raise ValueError(f"painting: the classes {seen[label]!r} and {name!r} have the same name; rename one.")
        seen[label] = name
        table[index] = label
    return palette, table


def resize_labels(labels: Tensor, width: int, height: int) -> Tensor:
    """Labels [h, w] at another size: each pixel takes the label at its centre, as js/painter_raster.js does."""
    h, w = labels.shape
    if (h, w) == (height, width):
        return labels
    rows = ((torch.arange(height) * 2 + 1) * h) // (2 * height)
    columns = ((torch.arange(width) * 2 + 1) * w) // (2 * width)
    return labels[rows][:, columns]


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_FIELD else text[: _MAX_FIELD - 3] + "..."
