"""Drawings and texts about a map, for people: a legend, and how much of the image each class covers."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .palettes import VOID
from .semantic_map import SemanticMap
from .snapping import AUTOMATIC, best_palette

_PANEL = (32, 32, 36)
_INK = (240, 240, 240)
_LEAST_SIDE = 384
#: From this share of void on, the palette is probably not the one that the image was drawn with.
MUCH_VOID = 0.5


def coverage_text(semantic_map: SemanticMap) -> str:
    """One line per class of the map, the largest first: `road: 41.2 %`. A batch gets one such block per map.

    Where void covers more than a half, the first line of the block is a warning.
    """
    blocks = []
    for number, shares in enumerate(semantic_map.shares(), start=1):
        lines = [f"{semantic_map.palette.class_name(label)}: {_percent(float(shares[label]))}" for label in _by_size(shares)]
        if shares[VOID] > MUCH_VOID:
            lines.insert(0, void_warning(float(shares[VOID]), semantic_map.palette.name))
        if len(semantic_map) > 1:
            lines.insert(0, f"map {number} of {len(semantic_map)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def reading_report(semantic_map: SemanticMap, image: Tensor, tolerance: float) -> str:
    """The coverage of a map that was read from an image, and advice in front where void covers more than a half of it."""
    text = coverage_text(semantic_map)
    if float(semantic_map.shares()[:, VOID].mean()) <= MUCH_VOID:
        return text
    fit = best_palette(image, tolerance)
    if fit.share > MUCH_VOID and fit.name != semantic_map.palette.name:
        tied = "".join(f" or {name!r}" for name in fit.ties)
        advice = f"The palette {fit.name!r}{tied} fits better; choose {'the one that it was drawn with' if tied else 'it'}."
    else:
        advice = f"No known palette fits. Choose {AUTOMATIC!r}, or check that the image is a map, not a photo (use Segment Image for photos)."
    return f"{advice}\n{text}"


def void_warning(share: float, palette_name: str) -> str:
    """The warning when too much of an image (`share`, 0..1) belongs to no class."""
    return f"Warning: {_percent(share)} of the image is void: it belongs to no class of the palette {palette_name!r}."


def draw_legend(semantic_map: SemanticMap) -> Tensor:
    """The map above a legend of its classes and their coverage, [b, h', w', 3] float32 in 0..1.

    Small maps are enlarged by a whole factor so that the words stay readable. The legend lists the classes of the whole batch, so that
    all drawings have one size; the figures are each map's own.
    """
    shares = semantic_map.shares()
    listed = _by_size(shares.mean(dim=0))
    h, w = semantic_map.size
    factor = max(1, -(-_LEAST_SIDE // max(h, w)))
    width = max(w * factor, _LEAST_SIDE)
    font = _font(min(40, max(15, round((width * h * factor) ** 0.5 / 36))))
    names = [_fitting(_drawable(semantic_map.palette.class_name(label), font), font, width * 0.6) for label in listed]
    line = int(font.getbbox("Ag|")[3] * 1.35)
    swatch, gap = int(line * 0.72), line // 3
    figures = max(font.getlength(text) for text in ("100.0 %", "< 0.1 %"))
    entry = int(swatch + max(font.getlength(name) for name in names) + figures + 4 * gap)
    columns = max(1, min(len(listed), (width - gap) // entry))
    rows = -(-len(listed) // columns)
    width = max(width, entry + gap)
    pictures = []
    table = semantic_map.palette.colour_table()
    for labels, share in zip(semantic_map.labels.numpy(), shares):
        picture = Image.new("RGB", (width, h * factor + rows * line + 2 * gap), _PANEL)
        drawn = Image.fromarray(np.take(table, labels, axis=0, mode="clip"))
        picture.paste(drawn if factor == 1 else drawn.resize((w * factor, h * factor), Image.Resampling.NEAREST))
        draw = ImageDraw.Draw(picture)
        for place, (label, name) in enumerate(zip(listed, names)):
            column, row = divmod(place, rows)
            x, y = gap + column * ((width - gap) // columns), h * factor + gap + row * line
            colour = tuple(int(channel) for channel in table[label])
            draw.rectangle((x, y + (line - swatch) // 2, x + swatch, y + (line + swatch) // 2), fill=colour, outline=_INK)
            draw.text((x + swatch + gap, y), name, fill=_INK, font=font)
            figure = _percent(float(share[label]))
            draw.text((x + entry - gap - font.getlength(figure), y), figure, fill=_INK, font=font)
        pictures.append(torch.from_numpy(np.asarray(picture, dtype=np.uint8).astype(np.float32) / 255.0))
    return torch.stack(pictures)


def _by_size(shares: Tensor) -> list[int]:
    """Labels with a share above 0, the largest first, void last."""
    order = [label for label in shares.argsort(descending=True, stable=True).tolist() if shares[label] > 0 and label != VOID]
    return order + ([VOID] if shares[VOID] > 0 else [])


def _percent(share: float) -> str:
    return "< 0.1 %" if 0.0 < share < 0.0005 else f"{100.0 * share:.1f} %"


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):  # Pillow before 10.1, or one built without FreeType: a small bitmap font
        return ImageFont.load_default()


def _drawable(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The bitmap font knows Latin-1 only."""
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("ascii", "replace").decode()


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
