"""Portraits on a plain backdrop, and one or two persons in a place."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, darker, mix
from .figures import Identity, draw_person, random_identity
from .scene import Instance, Scene, finish_scene
from .world import BACKDROPS, COLOURS, GRASSES, PLACES, SKIES, TREES, article, join


def draw_portrait(rng: np.random.Generator, side: int, who: Identity | None = None) -> Scene:
    """One person, head and shoulders, filling the image."""
    who = who or random_identity(rng)
    backdrop = str(rng.choice(list(BACKDROPS)))
    canvas = Canvas(side)
    canvas.gradient(BACKDROPS[backdrop], BACKDROPS[backdrop], "backdrop")
    centre = (0.5 + float(rng.uniform(-0.06, 0.06)), 0.46 + float(rng.uniform(-0.05, 0.05)))
    draw_person(canvas, who, centre, float(rng.uniform(0.24, 0.3)), 1, rng)
    instance = Instance(who.phrase, "person", who.attributes())
    caption = f"a portrait of {who.phrase}"
    if rng.random() < 0.8:
        caption += f" on {article(backdrop)} background"
    return finish_scene(canvas, "portrait", caption, [instance], {"backdrop": backdrop})


def draw_place(canvas: Canvas, place: str, rng: np.random.Generator) -> None:
    """What stands behind the persons: park, beach, city, mountains or room, or a plain backdrop by its name."""
    if place in BACKDROPS:
        canvas.gradient(BACKDROPS[place], BACKDROPS[place], "backdrop")
        return
    horizon = float(rng.uniform(0.5, 0.62))
    if place == "room":
        wall = mix(COLOURS[str(rng.choice(["orange", "green", "blue", "purple"]))], (255, 255, 255), 0.62)
        canvas.gradient(wall, darker(wall, 0.08), "wall", 0.0, 0.78)
        canvas.gradient((150, 104, 66), (120, 80, 50), "floor", 0.78, 1.0)
        x = float(rng.uniform(0.06, 0.62))
        canvas.rectangle(x, 0.1, x + 0.32, 0.42, (244, 244, 240), "window")
        canvas.rectangle(x + 0.02, 0.12, x + 0.15, 0.4, (150, 204, 240), "window")
        canvas.rectangle(x + 0.17, 0.12, x + 0.3, 0.4, (150, 204, 240), "window")
        return
    canvas.gradient(*SKIES["day"], "sky", 0.0, horizon)
    if place == "park":
        for x in rng.uniform(0.0, 1.0, size=3):
            r = float(rng.uniform(0.12, 0.2))
            canvas.rectangle(x - 0.02, horizon - 0.2, x + 0.02, horizon + 0.05, (108, 74, 44), "tree")
            canvas.ellipse((float(x), horizon - 0.24), r, r * 0.95, TREES["summer"], "tree")
        canvas.gradient(GRASSES["summer"], darker(GRASSES["summer"], 0.15), "grass", horizon, 1.0)
    elif place == "beach":
        canvas.gradient((40, 140, 204), (84, 190, 214), "sea", horizon - 0.12, horizon + 0.1)
        canvas.gradient((240, 216, 150), (226, 194, 124), "sand", horizon + 0.1, 1.0)
    elif place == "city":
        x = -0.05
        while x < 1.0:
            w, top = float(rng.uniform(0.14, 0.24)), float(rng.uniform(0.08, 0.3))
            tone = mix((96, 104, 124), (176, 168, 160), float(rng.uniform(0, 1)))
            canvas.rectangle(x, top, x + w, 0.8, tone, "house")
            for wy in np.arange(top + 0.05, 0.74, 0.1):
                for wx in np.arange(x + 0.035, x + w - 0.05, 0.065):
                    canvas.rectangle(wx, wy, wx + 0.035, wy + 0.05, (250, 232, 150), "window")
            x += w + 0.01
        canvas.gradient((112, 112, 118), (96, 96, 102), "road", 0.8, 1.0)
    else:  # mountains
        for x in (0.1, 0.5, 0.9):
            peak, top = x + float(rng.uniform(-0.12, 0.12)), float(rng.uniform(0.1, 0.26))
            canvas.polygon([(peak - 0.5, 0.8), (peak, top), (peak + 0.5, 0.8)], (126, 140, 164), "snow")
            cap = [
                (peak - 0.12, top + 0.14),
                (peak, top),
                (peak + 0.12, top + 0.14),
                (peak + 0.04, top + 0.1),
                (peak - 0.04, top + 0.17),
            ]
            canvas.polygon(cap, (250, 252, 255), "snow")
        canvas.gradient((240, 244, 250), (222, 230, 242), "snow", max(horizon, 0.56), 1.0)


def where(place: str) -> str:
    """The end of a caption: ` in a park`, ` on a mint background`."""
    return f" on {article(place)} background" if place in BACKDROPS else f" in {article(place)}"


def draw_people(rng: np.random.Generator, side: int, who: list[Identity] | None = None, place: str | None = None) -> Scene:
    """One or two persons in a place, or on a plain backdrop if `place` is one."""
    who = who or [random_identity(rng) for _ in range(1 + int(rng.random() < 0.5))]
    place = place or str(rng.choice(PLACES))
    canvas = Canvas(side)
    draw_place(canvas, place, rng)
    centres = (
        [(float(rng.uniform(0.3, 0.7)), 0.5)]
        if len(who) == 1
        else [(float(rng.uniform(0.22, 0.29)), 0.5), (float(rng.uniform(0.71, 0.78)), 0.5)]
    )
    instances = []
    for number, (person, (x, y)) in enumerate(zip(who, centres), start=1):
        draw_person(canvas, person, (x, y + float(rng.uniform(-0.05, 0.07))), float(rng.uniform(0.135, 0.16)), number, rng)
        instances.append(Instance(person.phrase, "person", person.attributes()))
    # Half of the captions do not describe the persons: a scene model must know a place without them.
    phrases = [i.phrase for i in instances] if rng.random() < 0.6 else [["a person"], ["two people"]][len(who) - 1]
    caption = join(phrases) + where(place)
    return finish_scene(canvas, "people", caption, instances, {"place": place})
