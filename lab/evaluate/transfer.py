"""How well a look was moved onto a map: does the map hold, and has each class the exemplar's colour? Judged on drawn streets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...py.playground.detector import SceneDetector, look
from ...py.playground.scene import Scene
from .playground import Figure, as_images, held_out

#: Paints targets in the look of exemplars: (exemplars, targets, seeds) -> [b, 3, h, w] in 0..1.
PaintPairs = Callable[[Sequence[Scene], Sequence[Scene], Sequence[int]], Tensor]

LEAST_SHARE = 0.01  # of the image: smaller classes are not counted
MOST_LOST_POINTS = 3.0
MOST_DISTANCE = 0.5

ALONE, CONCAT, CLASS, MATCHER = "ControlNeXt alone", "concat_only", "class_bias", "matcher"

#: Chooses one of the exemplars for each target: (exemplars, targets) -> exemplars.
Choose = Callable[[Sequence[Scene], Sequence[Scene]], Sequence[Scene]]


def pairs(count: int) -> tuple[list[Scene], list[Scene]]:
    """Held-out exemplars and targets."""
    return held_out("street", count, first=70_000), held_out("street", count, first=80_000)


def map_agreement(detector: SceneDetector, images: Tensor, targets: Sequence[Scene]) -> float:
    """mIoU of what the detector sees with the maps, over the classes of each map, averaged over images."""
    scores = []
    for seen, scene in zip((s for batch in images.split(32) for s in look(detector, batch)), targets):
        found, wanted = seen["labels"].argmax(dim=0), torch.from_numpy(scene.labels[::2, ::2].astype(np.int64))
        each = []
        for label in _large(wanted):
            both = ((found == label) & (wanted == label)).sum()
            each.append(float(both / ((found == label) | (wanted == label)).sum()))
        scores.append(float(np.mean(each)))
    return float(np.mean(scores))


def colour_distance(images: Tensor, exemplars: Sequence[Scene], targets: Sequence[Scene]) -> float:
    """CIELAB distance (dE of 1976) between a class's mean colour in the image and in the exemplar, over the classes of both."""
    scores = []
    for image, exemplar, target in zip(images, exemplars, targets):
        wanted, own = (torch.from_numpy(s.labels.astype(np.int64)) for s in (target, exemplar))
        shared = set(_large(wanted)) & set(_large(own))
        painted, shown = to_lab(image), to_lab(as_images([exemplar])[0])
        means = [(painted[:, wanted == n].mean(dim=1), shown[:, own == n].mean(dim=1)) for n in sorted(shared)]
        scores += [float((a - b).norm()) for a, b in means]
    return float(np.mean(scores))


def to_lab(image: Tensor) -> Tensor:
    """sRGB [3, h, w] in 0..1 -> CIELAB under D65, [3, h, w]."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = torch.einsum("dc, c h w -> d h w", to_xyz, linear) / torch.tensor([0.95047, 1.0, 1.08883]).view(3, 1, 1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _large(labels: Tensor) -> list[int]:
    counts = torch.bincount(labels.flatten(), minlength=256)
    return (counts >= LEAST_SHARE * labels.numel()).nonzero().flatten().tolist()


def transfer_figures(detector: SceneDetector, ways: dict[str, PaintPairs], choose: Choose, count: int = 100) -> list[Figure]:
    """Map agreement and colour distance of each way to paint; the bounds between them where the ways are there.

    `choose` takes its pick among all exemplars of the pairs, against the one that a target has been given by lot.
    """
    exemplars, targets = pairs(count)
    agreement, distance = {}, {}
    for name, paint in ways.items():
        images = paint(exemplars, targets, list(range(count)))
        agreement[name] = map_agreement(detector, images, targets)
        distance[name] = colour_distance(images, exemplars, targets)
    what = f"AM-Adapter, {count} held-out pairs"
    drawn = map_agreement(detector, as_images(targets), targets)
    figures = [Figure(f"{what}: mIoU of the drawn targets themselves", drawn, "%")]
    figures += [Figure(f"{what}: mIoU, {name}", value, "%") for name, value in agreement.items()]
    figures += [Figure(f"{what}: colour distance, {name}", value, "dE") for name, value in distance.items()]
    best = MATCHER if MATCHER in ways else CLASS
    lost = 100 * (agreement[ALONE] - agreement[best])
    figures.append(Figure(f"{what}: mIoU lost, {best} against {ALONE}", lost, "points", at_most=MOST_LOST_POINTS))
    for better, worse, most in ((best, ALONE, MOST_DISTANCE), (MATCHER, CLASS, 1.0), (CLASS, CONCAT, 1.0)):
        if better in ways and worse in ways:
            ratio = distance[better] / distance[worse]
            figures.append(Figure(f"{what}: colour distance, {better} against {worse}", ratio, "times", at_most=most))
    chosen = choose(exemplars, targets)
    images = ways[best](chosen, targets, list(range(count)))
    ratio = colour_distance(images, chosen, targets) / distance[best]
    return [
        *figures,
        Figure(f"{what}: mIoU, {best} with the retrieved exemplar", map_agreement(detector, images, targets), "%"),
        Figure(f"{what}: colour distance, retrieved exemplar against a random one", ratio, "times", at_most=1.0),
    ]
