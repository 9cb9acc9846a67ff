"""CA2-SIS's figures on held-out portraits, and those of class-adaptive attention on held-out maps. How images are made is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...py.playground import world
from ...py.playground.detector import SceneDetector, as_batch, find_outlined, look, shows
from ...py.playground.scene import Scene
from ...py.playground.scenes import HELD_OUT, draw_scene
from ..playground.faces import BACKDROP, CLASSES, Trio, draw_trio, mean_colours, reshaped
from .playground import Figure

Redraw = Callable[[Tensor, Tensor], Tensor]  # images, maps -> images
Restyle = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]  # images, maps, donors, their maps, class -> images
Reshape = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # images, maps, donors' maps, class -> images
#: Paints held-out scenes from their maps with a phrase a class, or from the phrases joined in one prompt: (scenes, seeds) -> images.
PaintMaps = Callable[[Sequence[Scene], Sequence[int]], Tensor]

LEAST_PIXELS = 30  # of a class that is judged
VISIBLE = 0.75  # IoU on drawn faces from which on the detector can be asked about a class; brows and noses are too small for it
_WORLD = torch.tensor([world.LABEL[name] for name in CLASSES])


def face_figures(
    detector: SceneDetector, redraw: Redraw, restyle: Restyle, reshape: Reshape, count: int = 200
) -> Iterator[Figure]:
    """Reconstruction, style exchange and shape exchange of `count` held-out faces."""
    trios = [draw_trio(HELD_OUT + number) for number in range(count)]
    own, donor = (as_batch(np.stack([getattr(t, name) for t in trios])) for name in ("own", "donor"))
    labels, donor_labels = _labels(trios)
    error = (redraw(own, labels) - own).square().flatten(1).mean(dim=1)
    yield Figure(f"CA2-SIS, {count} held-out faces: reconstruction", float(-10 * error.log10().mean()), "dB PSNR", 24.0)
    moved, stayed = _style_movement(own, donor, labels, donor_labels, redraw, restyle)
    yield Figure("style exchange: the class's colour goes this far to the donor's", moved, "%", 0.8)
    yield Figure("style exchange: other classes' colours move, of the same distance", stayed, "%", at_most=0.1)
    drawn = _confusion(_detected(detector, own), labels, torch.ones_like(labels, dtype=torch.bool))
    visible = [number for number, share in enumerate(_iou(drawn).tolist()) if share >= VISIBLE]
    agreed = _iou(_shape_confusion(detector, own, labels, donor_labels, reshape, visible))[visible].mean()
    name = f"the {len(visible)} classes that the detector sees in drawn faces"
    yield Figure(f"shape exchange: detector and edited map agree, mean IoU of {name}", float(agreed), "%", 0.85)
    yield Figure("the same agreement on the drawn faces themselves", float(_iou(drawn)[visible].mean()), "%")


def attention_figures(detector: SceneDetector, adaptive: PaintMaps, joined: PaintMaps, count: int = 100) -> Iterator[Figure]:
    """Right class and colour for each region of held-out maps: class-adaptive attention, and the same phrases in one prompt."""
    scenes = [draw_scene("objects", HELD_OUT + 60_000 + k, count=2 + k % 2) for k in range(count)]
    seeds = list(range(count))
    yield Figure(
        f"class-adaptive attention, {count} held-out maps: class and colour right per region",
        regions_right(detector, adaptive(scenes, seeds), scenes),
        "%",
        0.75,
    )
    yield Figure("the same phrases in one prompt", regions_right(detector, joined(scenes, seeds), scenes), "%")


def phrases_of(scene: Scene) -> dict[str, str]:
    """A phrase for each class of a scene of objects. Objects of one class share theirs."""
    found: dict[str, list[str]] = {}
    for instance in scene.instances:
        found.setdefault(instance.name, []).append(instance.phrase)
    phrases = {name: " and ".join(texts) for name, texts in found.items()}
    return {**phrases, "backdrop": f"{world.article(scene.attributes['backdrop'])} background"}


def regions_right(detector: SceneDetector, images: Tensor, scenes: Sequence[Scene]) -> float:
    """The share of instances whose own pixels belong, more than half of them, to one thing of the right class and colour.

    An object is named by its whole outline: pixels in the middle of a star look like those of a ball, so that pixel by pixel the detector
    names only half of the instances even in drawn images. The backdrop has a phrase but no outline, and does not count; it is easy.
    """
    right = []
    for image, seen, scene in zip(images, _looks(detector, images), scenes):
        things = find_outlined(detector, image, seen)
        for number, instance in enumerate(scene.instances, start=1):
            here = scene.instance_map[::2, ::2] == number
            if here.sum() < LEAST_PIXELS:
                continue
            there = [thing for mask, thing in things if 2 * (mask & here).sum() > here.sum()]
            right.append(shows(there, instance.name, instance.attributes["colour"]))
    return sum(right) / max(1, len(right))


def _labels(trios: Sequence[Trio]) -> tuple[Tensor, Tensor]:
    return tuple(torch.from_numpy(np.stack([getattr(t, name) for t in trios])).long() for name in ("own_labels", "donor_labels"))  # type: ignore[return-value]


def _mean_colour(images: Tensor, here: Tensor) -> Tensor:
    """[b, 3] of the pixels here [b, h, w]."""
    return mean_colours(images, here[:, None])[:, 0]


def _style_movement(own, donor, labels, donor_labels, redraw: Redraw, restyle: Restyle) -> tuple[float, float]:
    """How far the exchanged class's mean colour goes from its own to the donor's, and the others' in the same measure."""
    moved, stayed, before = [], [], redraw(own, labels)
    for number in range(len(CLASSES)):
        rows = _rows_with(labels, donor_labels, number)
        if not len(rows):
            continue
        after = restyle(own[rows], labels[rows], donor[rows], donor_labels[rows], number)
        start = _mean_colour(own[rows], labels[rows] == number)
        way = _mean_colour(donor[rows], donor_labels[rows] == number) - start
        length = way.norm(dim=1)
        far = length > 0.15  # two faces with the same hair say nothing
        change = _mean_colour(after, labels[rows] == number) - _mean_colour(before[rows], labels[rows] == number)
        moved += ((change * way).sum(dim=1) / length.square())[far].tolist()
        for other in range(len(CLASSES)):
            there = labels[rows] == other
            seen = far & (there.sum(dim=(1, 2)) >= LEAST_PIXELS)
            if other != number and bool(seen.any()):
                drift = (_mean_colour(after, there) - _mean_colour(before[rows], there)).norm(dim=1)
                stayed += (drift / length)[seen].tolist()
    return float(np.mean(moved)), float(np.mean(stayed))


def _shape_confusion(detector: SceneDetector, own, labels, donor_labels, reshape: Reshape, visible: Sequence[int]) -> Tensor:
    """Of images in which one visible class has the donor's shape; each face is edited in one class, the classes take turns."""
    found, edited = torch.zeros(len(CLASSES), len(CLASSES)), [number for number in visible if number != BACKDROP]
    for turn, number in enumerate(edited):
        rows = _rows_with(labels, donor_labels, number)[turn :: len(edited)]
        if len(rows):
            pictures = reshape(own[rows], labels[rows], donor_labels[rows], number)
            wanted, known, _ = reshaped(labels[rows], donor_labels[rows], torch.full((len(rows),), number))
            found += _confusion(_detected(detector, pictures), wanted, known)
    return found


def _rows_with(labels: Tensor, donor_labels: Tensor, number: int) -> Tensor:
    enough = [(m == number).sum(dim=(1, 2)) >= LEAST_PIXELS for m in (labels, donor_labels)]
    return (enough[0] & enough[1]).nonzero().flatten()


def _looks(detector: SceneDetector, images: Tensor) -> Iterator[dict[str, Tensor]]:
    for batch in images.split(32):
        yield from look(detector, batch)


def _detected(detector: SceneDetector, images: Tensor) -> Iterator[Tensor]:
    """The class of CLASSES that the detector sees in each pixel, [h/2, w/2]; what is none of them counts as backdrop."""
    table = torch.full((len(world.CLASS_NAMES),), BACKDROP)
    table[_WORLD] = torch.arange(len(CLASSES))
    for seen in _looks(detector, images):
        yield table[seen["labels"].argmax(dim=0).cpu()]


def _confusion(seen: Iterator[Tensor], wanted: Tensor, known: Tensor) -> Tensor:
    """Pixels of each class of the maps [k] that the detector sees as each class [k], on its grid, of all images together."""
    count, found = len(CLASSES), torch.zeros(len(CLASSES), len(CLASSES))
    for look_, want, ask in zip(seen, wanted[:, ::2, ::2], known[:, ::2, ::2]):
        found += torch.bincount((want * count + look_)[ask], minlength=count * count).view(count, count)
    return found


def _iou(confusion: Tensor) -> Tensor:
    """Of each class, [k]; 0 for one that nobody has seen or asked for."""
    meet = confusion.diagonal()
    return meet / (confusion.sum(dim=0) + confusion.sum(dim=1) - meet).clamp_min(1)
