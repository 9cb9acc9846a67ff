"""Instances drawn as a picture: boxes, masks, phrases. Pillow only, so it works without a screen and without the frontend."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...ifadapter.instances import Instance, Instances
from ..preview import distinct_colour

PAPER = (38, 40, 46)


def draw_instances(instances: Instances, width: int, height: int, image: Tensor | None = None) -> Tensor:
    """IMAGE [b, h, w, 3] in 0..1: the boxes over each picture of `image` ([b, h, w, c]), or over plain paper of width and height."""
    if image is None:
        papers = [Image.new("RGB", (width, height), PAPER)]
    else:
        pixels = (image[..., :3].detach().float().nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()
        papers = [Image.fromarray(np.repeat(p, 3, axis=-1) if p.shape[-1] == 1 else p) for p in pixels]
    drawn = [np.asarray(_drawn(paper, instances, frame)) for frame, paper in enumerate(papers)]
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _drawn(paper: Image.Image, instances: Instances, frame: int) -> Image.Image:
    w, h = paper.size
    size = max(10, min(w, h) // 28)
    font = ImageFont.load_default(size)
    # Large boxes first, so that a small one on top of them stays readable.
    order = sorted(enumerate(instances), key=lambda item: -_area(item[1]))
    for number, instance in order:
        colour = distinct_colour(number, saturation=0.65)
        veil = Image.new("RGBA", paper.size, (0, 0, 0, 0))
        corners = _corners(instance, w, h)
        if instance.mask is None:
            ImageDraw.Draw(veil).rectangle(corners, fill=(*colour, 70))
        else:
            mask = instance.mask[min(frame, instance.mask.shape[0] - 1)] * 110
            alpha = Image.fromarray(mask.byte().cpu().numpy()).resize(paper.size)
            veil = Image.merge("RGBA", [*Image.new("RGB", paper.size, colour).split(), alpha])
        paper = Image.alpha_composite(paper.convert("RGBA"), veil).convert("RGB")
        ImageDraw.Draw(paper).rectangle(corners, outline=colour, width=max(1, size // 8))
    for number, instance in order:
        left, top, right, _ = _corners(instance, w, h)
        _label(
            ImageDraw.Draw(paper),
            (left, top),
            f"{number + 1} {instance.phrase}",
            font,
            right - left,
            distinct_colour(number, saturation=0.65),
        )
    return paper


def _label(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    colour: tuple,
) -> None:
    """The phrase on a strip of its colour in the box's upper left corner, cut where the box ends."""
    text = " ".join(text.split())[:200]
    room = max(width - 6, 12)
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(text + "...", font=font) > room:
            text = text[:-1]
        text += "..."
    place = place[0] + 3, place[1] + 2
    _, _, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle((place[0] - 3, place[1] - 2, right + 3, bottom + 2), fill=colour)
    draw.text(place, text, font=font, fill=(255, 255, 255) if sum(colour) < 380 else (0, 0, 0))


def _corners(instance: Instance, w: int, h: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = instance.box
    left, top = min(int(x0 * w), w - 1), min(int(y0 * h), h - 1)
    return left, top, max(left, round(x1 * w) - 1), max(top, round(y1 * h) - 1)


def _area(instance: Instance) -> float:
    x0, y0, x1, y1 = instance.box
    return (x1 - x0) * (y1 - y0)
