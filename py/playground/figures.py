"""One drawn person: the same figure in portraits and, smaller, in places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Point, darker, mix, regular
from .world import COLOURS, EYES, HAIR_STYLES, HAIRS, MOUTHS, SKINS, article


@dataclass(frozen=True)
class Identity:
    """What makes a person the same person in another image."""

    skin: str
    hair: str
    style: str
    eyes: str
    mouth: str
    shirt: str
    glasses: bool

    @property
    def phrase(self) -> str:
        words = (
            f"{article(self.skin)} person with {self.style} {self.hair} hair, {self.eyes} eyes and {article(self.shirt)} shirt"
        )
        return words + (" and glasses" if self.glasses else "")

    def attributes(self) -> dict[str, str]:
        return {
            "skin": self.skin,
            "hair": self.hair,
            "style": self.style,
            "eyes": self.eyes,
            "mouth": self.mouth,
            "shirt": self.shirt,
            "glasses": "yes" if self.glasses else "no",
        }


def random_identity(rng: np.random.Generator) -> Identity:
    """A person drawn by lot."""

    def pick(names) -> str:
        return str(rng.choice(list(names)))

    return Identity(
        pick(SKINS), pick(HAIRS), pick(HAIR_STYLES), pick(EYES), pick(MOUTHS), pick(COLOURS), bool(rng.random() < 0.25)
    )


@dataclass(frozen=True)
class _Frame:
    """Head coordinates: the centre of the face and its half-height `unit`, in fractions of the image."""

    x: float
    y: float
    unit: float

    def at(self, dx: float, dy: float) -> Point:
        return (self.x + dx * self.unit, self.y + dy * self.unit)


def _back_hair(canvas: Canvas, f: _Frame, style: str, colour, width: float, instance: int) -> None:
    u = f.unit
    if style == "long":
        canvas.ellipse(f.at(0, -0.2), (width + 0.26) * u, 1.05 * u, colour, "hair", instance)
        x0, y0 = f.at(-width - 0.26, -0.2)
        x1, y1 = f.at(width + 0.26, 1.35)
        canvas.rectangle(x0, y0, x1, y1, colour, "hair", instance, radius=0.2 * u)
    elif style == "curly":
        for k in range(11):
            a = math.pi * (0.95 + 1.1 * k / 10)
            canvas.ellipse(
                f.at((width + 0.12) * math.cos(a), -0.28 + 0.88 * math.sin(a)), 0.36 * u, 0.36 * u, colour, "hair", instance
            )
    elif style == "bun":
        canvas.ellipse(f.at(0, -1.22), 0.42 * u, 0.38 * u, colour, "hair", instance)
        canvas.ellipse(f.at(0, -0.22), (width + 0.12) * u, 0.95 * u, colour, "hair", instance)
    elif style == "spiky":
        canvas.polygon(regular(f.at(0, -0.32), 1.36 * u, 13, inner=0.95 * u), colour, "hair", instance)
    else:
        canvas.ellipse(f.at(0, -0.24), (width + 0.12) * u, 0.94 * u, colour, "hair", instance)


def _fringe(canvas: Canvas, f: _Frame, style: str, colour, width: float, rng: np.random.Generator, instance: int) -> None:
    """The hair in front of the forehead."""
    top = [f.at((width + 0.06) * math.cos(a), -0.1 + 0.98 * math.sin(a)) for a in np.linspace(math.pi * 1.06, math.pi * 1.94, 24)]
    if style == "spiky":
        low = [f.at(width * (0.85 - 1.7 * k / 8), -0.62 if k % 2 else -0.36) for k in range(9)]
    elif style == "curly":
        low = [f.at(width * (0.9 - 1.8 * k / 16), -0.5 - 0.1 * math.cos(k * math.pi / 2)) for k in range(17)]
    else:
        parting, dip = rng.uniform(-0.5, 0.5), rng.uniform(0.26, 0.4)
        low = [f.at(width * x, -0.72 + dip * min(1.0, abs(x - parting) * 1.25)) for x in np.linspace(0.95, -0.95, 17)]
    canvas.polygon(top + low, colour, "hair", instance)


def _eye(canvas: Canvas, f: _Frame, side: int, who: Identity, gap: float, size: float, instance: int) -> None:
    u, x = f.unit, side * gap
    canvas.ellipse(f.at(x, -0.08), 1.25 * size * u, size * u, (250, 250, 250), "eye", instance)
    canvas.ellipse(f.at(x, -0.08), 0.78 * size * u, 0.86 * size * u, EYES[who.eyes], "eye", instance)
    canvas.ellipse(f.at(x, -0.08), 0.36 * size * u, 0.4 * size * u, (16, 14, 18), "eye", instance)


def _mouth(canvas: Canvas, f: _Frame, who: Identity, width: float, openness: float, smile: float, instance: int) -> None:
    xs = np.linspace(-1, 1, 15)
    upper = [f.at(width * x, 0.5 + smile * (1 - x * x) - 0.07 * (1 - abs(x))) for x in xs]
    lower = [f.at(width * x, 0.5 + smile * (1 - x * x) + (0.09 + openness) * (1 - x * x)) for x in xs[::-1]]
    canvas.polygon(upper + lower, MOUTHS[who.mouth], "mouth", instance)
    if openness > 0.08:
        inner_up = [f.at(0.7 * width * x, 0.5 + smile * (1 - x * x) + 0.035) for x in xs]
        inner_low = [f.at(0.7 * width * x, 0.5 + smile * (1 - x * x) + (0.03 + openness) * (1 - x * x)) for x in xs[::-1]]
        canvas.polygon(inner_up + inner_low, (60, 16, 26), "mouth", instance)


def draw_person(canvas: Canvas, who: Identity, centre: Point, unit: float, instance: int, rng: np.random.Generator) -> None:
    """Head and shoulders. `centre` is the middle of the face, `unit` half its height, as fractions of the image.

    The pose and the shapes (width of the face, eyes, mouth) come from `rng`; everything that identifies the person from `who`.
    """
    f = _Frame(centre[0], centre[1], unit)
    skin, hair, shirt = SKINS[who.skin], HAIRS[who.hair], COLOURS[who.shirt]
    width = rng.uniform(0.7, 0.86)
    shade = darker(skin, 0.14)

    _back_hair(canvas, f, who.style, darker(hair, 0.18), width, instance)
    shoulder = rng.uniform(1.35, 1.6)
    body = [f.at(-0.34, 1.02), f.at(0.34, 1.02), f.at(shoulder * 0.8, 1.22), f.at(shoulder, 1.6), f.at(shoulder * 1.04, 4.5)]
    body += [f.at(-shoulder * 1.04, 4.5), f.at(-shoulder, 1.6), f.at(-shoulder * 0.8, 1.22)]
    canvas.polygon(body, shirt, "clothes", instance)
    collar = [f.at(-0.42, 1.06), f.at(0.42, 1.06), f.at(0, 1.62)]
    canvas.polygon(collar, mix(shirt, (255, 255, 255) if sum(shirt) < 380 else (0, 0, 0), 0.3), "clothes", instance)
    canvas.rectangle(*f.at(-0.26, 0.6), *f.at(0.26, 1.16), shade, "skin", instance, radius=0.1 * unit)
    for side in (-1, 1):
        canvas.ellipse(f.at(side * width, 0.04), 0.15 * unit, 0.22 * unit, shade, "skin", instance)
    jaw = [
        f.at(width * math.cos(a), math.copysign(abs(math.sin(a)) ** 0.9, math.sin(a))) for a in np.linspace(0, 2 * math.pi, 48)
    ]
    canvas.polygon(jaw, skin, "skin", instance)
    _fringe(canvas, f, who.style, hair, width, rng, instance)

    gap, size = rng.uniform(0.32, 0.4), rng.uniform(0.13, 0.19)
    tilt, lift = rng.uniform(-0.07, 0.07), rng.uniform(0.3, 0.38)
    for side in (-1, 1):
        _eye(canvas, f, side, who, gap, size, instance)
        brow = [f.at(side * (gap - 0.17), -lift + tilt), f.at(side * (gap + 0.19), -lift - tilt)]
        canvas.line(brow, 0.085 * unit, darker(hair, 0.35), "brow", instance)
    nose = [f.at(0.02, -0.02), f.at(-0.13, 0.26), f.at(0.12, 0.27)]
    canvas.polygon(nose, darker(skin, 0.24), "nose", instance)
    _mouth(canvas, f, who, rng.uniform(0.26, 0.44), max(0.0, rng.uniform(-0.12, 0.2)), rng.uniform(-0.05, 0.1), instance)
    if who.glasses:
        for side in (-1, 1):
            ring = [f.at(side * gap + 0.27 * math.cos(a), -0.08 + 0.24 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 28)]
            canvas.line(ring, 0.07 * unit, (40, 40, 48), "glasses", instance)
        canvas.line([f.at(-gap + 0.26, -0.1), f.at(gap - 0.26, -0.1)], 0.07 * unit, (40, 40, 48), "glasses", instance)
