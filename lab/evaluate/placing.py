"""Objects of one drawn scene placed into a hole of another: the test images, and what is measured of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...py.playground.detector import Found, SceneDetector
from ...py.playground.scene import Box, Instance, Scene
from ...py.playground.scenes import HELD_OUT, draw_scene
from .playground import Figure, detect_objects

#: Makes one image a placing: (placings, seeds) -> [b, 3, h, w] in 0..1, of the size of the sources.
Place = Callable[[Sequence["Placing"], Sequence[int]], Tensor]
FIRST = HELD_OUT + 60_000
ROOM = 0.03  # of the image: how much larger than the thing's box the exemplar is cut


@dataclass
class Placing:
    """A scene, the box of the one of its objects that becomes the hole, and another thing cut out of another scene."""

    source: Scene
    box: Box
    exemplar: np.ndarray  # [h, w, 3] uint8
    thing: Instance

    @property
    def hole(self) -> Tensor:
        """[side, side], 1 in the hole."""
        side = self.source.image.shape[0]
        x0, y0, x1, y1 = _pixels(self.box, side, 0.0)
        mask = torch.zeros(side, side)
        mask[y0:y1, x0:x1] = 1
        return mask

    @property
    def picture(self) -> Tensor:
        """The source, [side, side, 3] in 0..1."""
        return torch.tensor(self.source.image).float() / 255


def _pixels(box: Box, side: int, room: float) -> tuple[int, int, int, int]:
    x0, y0 = (max(0, int((v - room) * side)) for v in box[:2])
    x1, y1 = (min(side, round((v + room) * side)) for v in box[2:])
    return x0, y0, x1, y1


def held_out_placings(count: int) -> list[Placing]:
    """Scenes and exemplars that no training has seen. The thing is of another class and another colour than what stood in the hole."""
    found: list[Placing] = []
    number = 0
    while len(found) < count:
        source = draw_scene("objects", FIRST + 2 * number, count=1 + number % 3)
        other = draw_scene("objects", FIRST + 2 * number + 1, count=1)
        number += 1
        gone, thing = source.instances[0], other.instances[0]
        if gone.name == thing.name or gone.attributes["colour"] == thing.attributes["colour"]:
            continue
        x0, y0, x1, y1 = _pixels(thing.box, other.image.shape[0], ROOM)
        found.append(Placing(source, gone.box, other.image[y0:y1, x0:x1].copy(), thing))
    return found


def stands_inside(found: Sequence[Found], placing: Placing) -> bool:
    """Is an object of the exemplar's class and colour in the hole, its middle in it at least?"""
    x0, y0, x1, y1 = placing.box
    for thing in found:
        x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
        if (
            x0 <= x <= x1
            and y0 <= y <= y1
            and (thing.name, thing.colour)
            == (
                placing.thing.name,
                placing.thing.attributes["colour"],
            )
        ):
            return True
    return False


def seam(picture: Tensor, hole: Tensor) -> float:
    """How sharp the border of the hole [h, w] is: the mean step of brightness between neighbouring pixels [h, w, 3] across it."""
    light = picture.mean(dim=-1)
    steps = [light.diff(dim=axis).abs()[hole.diff(dim=axis) != 0] for axis in (0, 1)]
    return float(torch.cat(steps).mean())


def placing_figures(detector: SceneDetector, place: Place, count: int = 100) -> list[Figure]:
    """Is the thing there, are its colour and the seams right, is everything else untouched?"""
    placings = held_out_placings(count)
    pictures = place(placings, list(range(count)))
    found = detect_objects(detector, pictures)
    right = sum(stands_inside(f, p) for f, p in zip(found, placings)) / count
    seams = [
        sum(seam(picture, p.hole) for picture, p in zip(which, placings))
        for which in (pictures.movedim(1, -1), [p.picture for p in placings])
    ]
    name = f"Paint by Example, {count} held-out objects and holes"
    return [
        Figure(f"{name}: class and colour of the exemplar found in the hole", right, "%", 0.85),
        Figure(f"{name}: seams against the drawn original's edges", seams[0] / max(seams[1], 1e-6), "times", at_most=1.5),
    ]
