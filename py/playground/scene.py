"""What a drawn scene consists of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .canvas import Canvas

Box = tuple[float, float, float, float]


@dataclass
class Instance:
    """One thing in a scene. `box` is x0, y0, x1, y1 in 0..1, tight around what is visible of it."""

    phrase: str
    name: str
    attributes: dict[str, str]
    box: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass
class Scene:
    """An image with everything that is known about it.

    `image` [side, side, 3] uint8; `labels` [side, side] uint8, positions in `world.CLASSES`; `instance_map` [side, side] uint8, 0 where
    there is no instance and k where `instances[k - 1]` is visible; `attributes` what holds for the whole scene (backdrop, sky, place).
    """

    kind: str
    image: np.ndarray
    labels: np.ndarray
    instance_map: np.ndarray
    caption: str
    instances: list[Instance]
    attributes: dict[str, str] = field(default_factory=dict)


def finish_scene(canvas: Canvas, kind: str, caption: str, instances: list[Instance], attributes: dict[str, str]) -> Scene:
    """Read the canvas, give every instance its visible box, and drop the instances that nothing is left of."""
    image, labels, instance_map = canvas.finish()
    seen: list[Instance] = []
    numbers = np.zeros(256, dtype=np.uint8)
    for number, instance in enumerate(instances, start=1):
        ys, xs = np.nonzero(instance_map == number)
        if len(xs) == 0:
            continue
        x0, y0, x1, y1 = (float(v) / canvas.side for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        instance.box = (x0, y0, x1, y1)
        seen.append(instance)
        numbers[number] = len(seen)
    return Scene(kind, image, labels, numbers[instance_map], caption, seen, attributes)
