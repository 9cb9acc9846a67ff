"""Scenes of one to four coloured, textured objects on a plain backdrop."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, Point, darker, mix, regular
from .scene import Instance, Scene, finish_scene
from .world import BACKDROPS, COLOURS, OBJECTS, TEXTURES, article, join

OUTLINE = 0.012  # of the image's side


def _outline(name: str, centre: Point, r: float) -> list[list[Point]]:
    """The polygons of an object that fits the square of half-side `r` around `centre`."""
    x, y = centre
    if name == "box":
        return [[(x - 0.9 * r, y - 0.9 * r), (x + 0.9 * r, y - 0.9 * r), (x + 0.9 * r, y + 0.9 * r), (x - 0.9 * r, y + 0.9 * r)]]
    if name == "star":
        return [regular((x, y + 0.08 * r), 1.05 * r, 5, inner=0.46 * r)]
    if name == "heart":
        t = np.linspace(0, 2 * math.pi, 60)
        hx, hy = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return [[(x + r * px / 16.5, y - r * (py + 2.5) / 15.0) for px, py in zip(hx, hy)]]
    if name == "fish":
        t = np.linspace(0, 2 * math.pi, 40)
        body = [(x - 0.18 * r + 0.8 * r * math.cos(a), y + 0.58 * r * math.sin(a)) for a in t]
        return [[(x + 0.4 * r, y), (x + r, y - 0.58 * r), (x + 0.88 * r, y), (x + r, y + 0.58 * r)], body]
    if name == "cup":
        return [
            [(x - 0.85 * r, y - 0.85 * r), (x + 0.5 * r, y - 0.85 * r), (x + 0.36 * r, y + 0.88 * r), (x - 0.7 * r, y + 0.88 * r)]
        ]
    if name == "moon":
        outer = [(x + 0.95 * r * math.cos(a), y + 0.95 * r * math.sin(a)) for a in np.linspace(0.9, 2 * math.pi - 0.9, 40)]
        tip, tip2 = outer[-1], outer[0]
        bend = [
            (tip[0] - 0.62 * r * math.sin(a) * 1.15, tip[1] + (tip2[1] - tip[1]) * (1 - math.cos(a)) / 2)
            for a in np.linspace(0, math.pi, 30)
        ]
        return [[(px + 0.12 * r, py) for px, py in outer + bend]]
    return [regular(centre, 0.95 * r, 48)]  # ball, ring


def draw_object(
    canvas: Canvas,
    name: str,
    colour_name: str,
    texture: str,
    centre: Point,
    r: float,
    instance: int,
    backdrop,
    rng: np.random.Generator,
) -> None:
    """One object of half-side `r` with a thin outline in a darker tone."""
    colour = COLOURS[colour_name]
    edge = darker(colour, 0.45) if sum(colour) > 200 else mix(colour, (255, 255, 255), 0.3)
    pattern = canvas.pattern(texture, colour, period=rng.uniform(0.09, 0.11), phase=rng.uniform(0, 1))
    if name == "cup":  # the handle first, the cup is in front of it
        canvas.ellipse((centre[0] + 0.52 * r, centre[1] - 0.05 * r), 0.42 * r, 0.46 * r, edge, name, instance)
        canvas.ellipse((centre[0] + 0.52 * r, centre[1] - 0.05 * r), 0.22 * r, 0.26 * r, backdrop, "backdrop")
    for polygon in _outline(name, centre, r):
        canvas.polygon(polygon, edge, name, instance)
    for polygon in _outline(name, centre, r - OUTLINE):
        canvas.polygon(polygon, colour, name, instance, pattern)
    if name == "ring":
        canvas.polygon(regular(centre, 0.45 * r + OUTLINE, 40), edge, name, instance)
        canvas.polygon(regular(centre, 0.45 * r, 40), backdrop, "backdrop")
    if name == "fish":
        canvas.ellipse((centre[0] - 0.6 * r, centre[1] - 0.14 * r), 0.13 * r, 0.13 * r, (250, 250, 250), name, instance)
        canvas.ellipse((centre[0] - 0.62 * r, centre[1] - 0.14 * r), 0.07 * r, 0.07 * r, (20, 20, 24), name, instance)


def place(rng: np.random.Generator, count: int) -> list[tuple[Point, float]]:
    """Centres and half-sides of `count` objects that do not touch."""
    low, high = {1: (0.2, 0.36), 2: (0.17, 0.25), 3: (0.15, 0.21), 4: (0.14, 0.19)}[count]
    while True:
        placed: list[tuple[Point, float]] = []
        for _ in range(40):
            r = rng.uniform(low, high)
            x, y = rng.uniform(r + 0.02, 0.98 - r, size=2)
            if all(max(abs(x - px), abs(y - py)) > r + pr + 0.01 for (px, py), pr in placed):
                placed.append(((float(x), float(y)), float(r)))
            if len(placed) == count:
                return placed


def describe(colour: str, texture: str, name: str) -> str:
    """The phrase of an object; a plain one does not mention its texture."""
    return article(f"{colour} {name}" if texture == "plain" else f"{colour} {texture} {name}")


def draw_objects(rng: np.random.Generator, side: int, count: int | None = None) -> Scene:
    """A backdrop with `count` objects (by default one to four), no two of the same class and colour."""
    count = count or int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15]))
    backdrop_name = str(rng.choice(list(BACKDROPS)))
    backdrop = BACKDROPS[backdrop_name]
    canvas = Canvas(side)
    canvas.gradient(backdrop, backdrop, "backdrop")
    instances: list[Instance] = []
    # Distinct classes and distinct colours: a wrong attachment of colour to class is then visible in the image.
    names = rng.choice(OBJECTS, size=count, replace=False)
    colours = rng.choice(list(COLOURS), size=count, replace=False)
    for number, ((centre, r), name, colour) in enumerate(zip(place(rng, count), names, colours), start=1):
        texture = str(rng.choice(TEXTURES, p=[0.5, 0.18, 0.16, 0.16]))
        draw_object(canvas, str(name), str(colour), texture, centre, r, number, backdrop, rng)
        instances.append(
            Instance(describe(str(colour), texture, str(name)), str(name), {"colour": str(colour), "texture": texture})
        )
    caption = join([i.phrase for i in instances])
    if rng.random() < 0.85:  # the rest leaves the backdrop open, as short prompts do
        caption += f" on {article(backdrop_name)} background"
    return finish_scene(canvas, "objects", caption, instances, {"backdrop": backdrop_name})
