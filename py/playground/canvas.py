"""A canvas that draws an image, its semantic map and its instance map with the same strokes.

Coordinates are fractions of the image's side, x to the right and y down. The image is drawn `SUPERSAMPLING` times larger and
reduced with a box filter (anti-aliased); the two maps take the centre sample of each pixel, so that they hold whole labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .world import LABEL, Colour

SUPERSAMPLING = 3
Point = tuple[float, float]
Fill = Any  # what a pen takes as a colour: one number or three
Draw = Callable[[ImageDraw.ImageDraw, Fill], None]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b` in it."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b))  # type: ignore[return-value]


def darker(colour: Colour, share: float) -> Colour:
    """`colour` with `share` of black in it."""
    return mix(colour, (0, 0, 0), share)


def second_tone(colour: Colour) -> Colour:
    """The other colour of a texture: darker for light colours, lighter for dark ones, of the same hue."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return darker(colour, 0.38) if light > 110 else mix(colour, (255, 255, 255), 0.42)


class Canvas:
    """`side` pixels square; every shape names its class, and its instance (1, 2, ...) where it belongs to one."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._full = side * SUPERSAMPLING
        self._picture = Image.new("RGB", (self._full, self._full))
        self._labels = Image.new("L", (self._full, self._full), 0)
        self._instances = Image.new("L", (self._full, self._full), 0)
        self._pens = [ImageDraw.Draw(i) for i in (self._picture, self._labels, self._instances)]

    def _px(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._full, y * self._full) for x, y in points]

    def _stroke(self, draw: Draw, colour: Colour, label: str, instance: int, pattern: Image.Image | None = None) -> None:
        _, labels, instances = self._pens
        draw(labels, LABEL[label])
        draw(instances, instance)
        if pattern is None:
            draw(self._pens[0], colour)
        else:
            mask = Image.new("L", self._picture.size, 0)
            draw(ImageDraw.Draw(mask), 255)
            self._picture.paste(pattern, mask=mask)

    def gradient(self, top: Colour, bottom: Colour, label: str, y0: float = 0.0, y1: float = 1.0) -> None:
        """Fill the band y0..y1 over the whole width, from one colour to the other."""
        a, b = round(y0 * self._full), round(y1 * self._full)
        t = np.linspace(0.0, 1.0, max(b - a, 1))[:, None]
        column = np.asarray(top) + (np.asarray(bottom) - np.asarray(top)) * t
        band = np.broadcast_to(column[:, None, :].round().astype(np.uint8), (max(b - a, 1), self._full, 3))
        self._picture.paste(Image.fromarray(np.ascontiguousarray(band)), (0, a))
        self._pens[1].rectangle([0, a, self._full, b], fill=LABEL[label])
        self._pens[2].rectangle([0, a, self._full, b], fill=0)

    def polygon(
        self, points: Sequence[Point], colour: Colour, label: str, instance: int = 0, pattern: Image.Image | None = None
    ) -> None:
        px = self._px(points)
        self._stroke(lambda pen, fill: pen.polygon(px, fill=fill), colour, label, instance, pattern)

    def ellipse(
        self,
        centre: Point,
        rx: float,
        ry: float,
        colour: Colour,
        label: str,
        instance: int = 0,
        pattern: Image.Image | None = None,
    ) -> None:
        (x, y), f = centre, self._full
        box = [(x - rx) * f, (y - ry) * f, (x + rx) * f, (y + ry) * f]
        self._stroke(lambda pen, fill: pen.ellipse(box, fill=fill), colour, label, instance, pattern)

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, label: str, instance: int = 0, radius: float = 0.0
    ) -> None:
        box = [v * self._full for v in (x0, y0, x1, y1)]
        self._stroke(lambda pen, fill: pen.rounded_rectangle(box, radius=radius * self._full, fill=fill), colour, label, instance)

    def line(self, points: Sequence[Point], width: float, colour: Colour, label: str, instance: int = 0) -> None:
        px, w = self._px(points), max(1, round(width * self._full))
        self._stroke(lambda pen, fill: pen.line(px, fill=fill, width=w, joint="curve"), colour, label, instance)

    def pattern(self, texture: str, colour: Colour, period: float, phase: float) -> Image.Image | None:
        """A full-size image of the texture in `colour` and its second tone; None for `plain`."""
        if texture == "plain":
            return None
        other, f = second_tone(colour), self._full
        ys, xs = np.mgrid[0:f, 0:f].astype(np.float32) / (period * f)
        if texture == "striped":
            on = (xs + ys + phase) % 1.0 < 0.5
        elif texture == "checked":
            on = ((xs + phase) % 1.0 < 0.5) ^ ((ys + phase) % 1.0 < 0.5)
        else:  # dotted
            on = ((xs + phase) % 1.0 - 0.5) ** 2 + ((ys + phase) % 1.0 - 0.5) ** 2 < 0.3**2
        return Image.fromarray(np.where(on[..., None], np.asarray(other, np.uint8), np.asarray(colour, np.uint8)))

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image [side, side, 3] uint8, the labels and the instance numbers [side, side] uint8."""
        centre = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
        picture = np.asarray(self._picture.reduce(SUPERSAMPLING))
        return picture, np.asarray(self._labels)[centre, centre].copy(), np.asarray(self._instances)[centre, centre].copy()


def regular(centre: Point, radius: float, corners: int, turn: float = 0.0, inner: float | None = None) -> list[Point]:
    """A regular polygon, or a star where `inner` gives the radius of its inner corners."""
    count = corners * 2 if inner is not None else corners
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    return [
        (centre[0] + r * math.sin(turn + 2 * math.pi * i / count), centre[1] - r * math.cos(turn + 2 * math.pi * i / count))
        for i, r in enumerate(radii)
    ]
