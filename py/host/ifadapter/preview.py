"""Instances drawn as an image: boxes, masks, phrases. Drawn with Pillow, so it works without a display and without the frontend."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...ifadapter.instances import Instance, Instances
from ..preview import distinct_colour

BACKGROUND = (38, 40, 46)


def draw_instances(instances: Instances, width: int, height: int, image: Tensor | None = None) -> Tensor:
    """IMAGE [b, h, w, 3] in 0..1: the boxes over each image of `image` [b, h, w, 3], or over a plain background of this size."""
    if image is None:
        backgrounds = [Image.new("RGB", (width, height), BACKGROUND)]
    else:
        backgrounds = [Image.fromarray(pixels) for pixels in (image * 255).round().byte().numpy()]
    drawn = [np.asarray(_draw(background, instances, frame)) for frame, background in enumerate(backgrounds)]
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _draw(background: Image.Image, instances: Instances, frame: int) -> Image.Image:
    w, h = background.size
    size = max(10, min(w, h) // 28)
    font = ImageFont.load_default(size)
    # Large boxes first, so that small ones on top of them stay readable.
    order = sorted(enumerate(instances), key=lambda item: -_area(item[1]))
    for number, instance in order:
        colour = distinct_colour(number, saturation=0.65)
        overlay = Image.new("RGBA", background.size, (0, 0, 0, 0))
        corners = _corners(instance, w, h)
        if instance.mask is None:
            ImageDraw.Draw(overlay).rectangle(corners, fill=(*colour, 70))
        else:
            mask = instance.mask[min(frame, instance.mask.shape[0] - 1)] * 110
            alpha = Image.fromarray(mask.byte().cpu().numpy()).resize(background.size)
            overlay = Image.merge("RGBA", [*Image.new("RGB", background.size, colour).split(), alpha])
        background = Image.alpha_composite(background.convert("RGBA"), overlay).convert("RGB")
        ImageDraw.Draw(background).rectangle(corners, outline=colour, width=max(1, size // 8))
    for number, instance in order:
        left, top, right, _ = _corners(instance, w, h)
        _label(
            ImageDraw.Draw(background),
            (left, top),
            f"{number + 1} {instance.phrase}",
            font,
            right - left,
            distinct_colour(number, saturation=0.65),
        )
    return background


def _label(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    colour: tuple,
) -> None:
    """Write the phrase on a strip of its colour into the box's upper left corner, cut off where the box ends."""
    text = " ".join(text.split())[:200]
    most = max(width - 6, 12)
    if draw.textlength(text, font=font) > most:
        while text and draw.textlength(text + "...", font=font) > most:
            text = text[:-1]
        text += "..."
    position = position[0] + 3, position[1] + 2
    _, _, right, bottom = draw.textbbox(position, text, font=font)
    draw.rectangle((position[0] - 3, position[1] - 2, right + 3, bottom + 2), fill=colour)
    draw.text(position, text, font=font, fill=(255, 255, 255) if sum(colour) < 380 else (0, 0, 0))


def _corners(instance: Instance, w: int, h: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = instance.box
    left, top = min(int(x0 * w), w - 1), min(int(y0 * h), h - 1)
    return left, top, max(left, round(x1 * w) - 1), max(top, round(y1 * h) - 1)


def _area(instance: Instance) -> float:
    x0, y0, x1, y1 = instance.box
    return (x1 - x0) * (y1 - y0)
