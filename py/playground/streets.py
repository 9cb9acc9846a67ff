"""Streets seen from the side: sky, houses, trees, grass, a road, cars and people."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, darker, mix
from .scene import Instance, Scene, finish_scene
from .world import COLOURS, GRASSES, ROADS, SKIES, SKINS, TREES, article, join

HOUSE_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
_COUNT = {1: "a", 2: "two", 3: "three"}


def _house(
    canvas: Canvas, x0: float, x1: float, top: float, ground: float, colour, lit: bool, rng: np.random.Generator, n: int
) -> None:
    wall = mix(colour, (128, 128, 128), 0.12)
    canvas.rectangle(x0, top, x1, ground, wall, "house", n)
    roof = darker(mix(colour, (120, 70, 50), 0.55), 0.25)
    if rng.random() < 0.7:
        canvas.polygon([(x0 - 0.02, top), ((x0 + x1) / 2, top - 0.11), (x1 + 0.02, top)], roof, "roof", n)
    else:
        canvas.rectangle(x0 - 0.012, top - 0.035, x1 + 0.012, top + 0.01, roof, "roof", n)
    pane = (252, 230, 140) if lit else (190, 220, 240)
    for y in np.arange(top + 0.045, ground - 0.12, 0.12):
        for x in np.arange(x0 + 0.035, x1 - 0.06, 0.09):
            canvas.rectangle(x, y, x + 0.05, y + 0.07, pane, "window", n)


def _tree(canvas: Canvas, x: float, ground: float, season: str, rng: np.random.Generator, n: int) -> None:
    r, leaf = float(rng.uniform(0.07, 0.11)), TREES[season]
    canvas.rectangle(x - 0.014, ground - 0.16, x + 0.014, ground, (108, 74, 44), "tree", n)
    if rng.random() < 0.5:
        canvas.ellipse((x, ground - 0.14 - r), r, r * 1.15, leaf, "tree", n)
    else:
        canvas.polygon([(x - r, ground - 0.1), (x, ground - 0.18 - 2 * r), (x + r, ground - 0.1)], leaf, "tree", n)


def _car(canvas: Canvas, x: float, y: float, size: float, colour, n: int) -> None:
    w, h = size, size * 0.3
    cabin = [(x + 0.18 * w, y - h), (x + 0.3 * w, y - 1.9 * h), (x + 0.68 * w, y - 1.9 * h), (x + 0.84 * w, y - h)]
    canvas.polygon(cabin, colour, "car", n)
    glass = [(x + 0.25 * w, y - 1.05 * h), (x + 0.34 * w, y - 1.7 * h), (x + 0.64 * w, y - 1.7 * h), (x + 0.75 * w, y - 1.05 * h)]
    canvas.polygon(glass, (196, 222, 236), "car", n)
    canvas.rectangle(x, y - 1.1 * h, x + w, y, colour, "car", n, radius=0.3 * h)
    for wheel in (0.22, 0.78):
        canvas.ellipse((x + wheel * w, y), 0.12 * w, 0.12 * w, (28, 28, 32), "car", n)
        canvas.ellipse((x + wheel * w, y), 0.05 * w, 0.05 * w, (170, 170, 176), "car", n)


def _pedestrian(canvas: Canvas, x: float, ground: float, shirt, skin, n: int) -> None:
    canvas.rectangle(x - 0.026, ground - 0.09, x + 0.026, ground, (60, 62, 84), "person", n)
    canvas.rectangle(x - 0.036, ground - 0.2, x + 0.036, ground - 0.085, shirt, "person", n, radius=0.02)
    canvas.ellipse((x, ground - 0.235), 0.034, 0.038, skin, "person", n)


def draw_street(rng: np.random.Generator, side: int) -> Scene:
    """One to three houses, up to three trees, cars and people; the season colours what grows, the hour the sky."""
    sky, season, road = (str(rng.choice(list(names))) for names in (SKIES, GRASSES, ROADS))
    ground = float(rng.uniform(0.58, 0.68))
    kerb = ground + float(rng.uniform(0.08, 0.13))
    canvas = Canvas(side)
    canvas.gradient(*SKIES[sky], "sky", 0.0, ground)
    instances: list[Instance] = []
    groups: dict[str, list[str]] = {"house": [], "tree": [], "car": [], "person": []}

    def note(name: str, phrase: str, **attributes: str) -> int:
        instances.append(Instance(phrase, name, attributes))
        return len(instances)

    houses = int(rng.integers(1, 4))
    slots = np.linspace(0.03, 0.97, houses + 1)
    for k, colour in enumerate(rng.choice(HOUSE_COLOURS, size=houses, replace=False)):
        x0 = slots[k] + float(rng.uniform(0.0, 0.05))
        x1 = min(slots[k + 1] - 0.02, x0 + float(rng.uniform(0.22, 0.4)))
        n = note("house", f"{article(str(colour))} house", colour=str(colour))
        _house(canvas, x0, x1, float(rng.uniform(0.2, 0.38)), ground, COLOURS[str(colour)], sky == "night", rng, n)
        groups["house"].append(instances[-1].phrase)
    canvas.gradient(GRASSES[season], darker(GRASSES[season], 0.1), "grass", ground, kerb)
    canvas.gradient(ROADS[road], darker(ROADS[road], 0.12), "road", kerb, 1.0)
    middle = (kerb + 1.0) / 2
    for x in np.arange(float(rng.uniform(-0.1, 0.05)), 1.0, 0.22):
        canvas.rectangle(x, middle - 0.008, x + 0.11, middle + 0.008, (236, 232, 214), "road")
    trees = int(rng.integers(0, 4))
    for x in rng.uniform(0.04, 0.96, size=trees):
        _tree(canvas, float(x), (ground + kerb) / 2, season, rng, note("tree", "a tree", season=season))
    if trees:
        groups["tree"].append("a tree" if trees == 1 else f"{_COUNT[trees]} trees")
    for x in rng.permutation(np.linspace(0.1, 0.9, 5))[: int(rng.integers(0, 3))]:
        shirt, skin = str(rng.choice(list(COLOURS))), str(rng.choice(list(SKINS)))
        n = note("person", f"a person in {shirt}", shirt=shirt, skin=skin)
        _pedestrian(canvas, float(x), kerb - 0.01, COLOURS[shirt], SKINS[skin], n)
        groups["person"].append(instances[-1].phrase)
    cars = int(rng.integers(0, 3))
    for k, colour in enumerate(rng.choice(list(COLOURS), size=cars, replace=False)):
        size = float(rng.uniform(0.26, 0.34))
        x = float(rng.uniform(0.02, 0.98 - size)) if cars == 1 else (0.03 + 0.5 * k + float(rng.uniform(0, 0.1)))
        n = note("car", f"{article(str(colour))} car", colour=str(colour))
        _car(canvas, x, float(rng.uniform(kerb + 0.12, 0.95)), size, COLOURS[str(colour)], n)
        groups["car"].append(instances[-1].phrase)
    parts = [phrase for group in groups.values() for phrase in group]
    light = {"fog": "in the fog", "night": "at night", "sunset": "at sunset", "day": "by day"}[sky]
    caption = f"{article(season)} street {light} with {join(parts)}"
    if rng.random() < 0.5:
        caption += f" and {article(road)} road"
    return finish_scene(canvas, "street", caption, instances, {"sky": sky, "season": season, "road": road})
