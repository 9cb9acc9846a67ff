"""Portraits as CA2-SIS sees them: their own short list of classes, the same face in other colours, and what an edit should give.

Because the world is drawn, the image that an exchange of styles or shapes must give is known, in training as in evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...py.playground.figures import random_identity
from ...py.playground.scene import Scene
from ...py.playground.scenes import SIDE, draw_scene
from ...py.playground.world import CLASS_NAMES

#: The classes of a portrait; the first is what the others leave.
CLASSES: tuple[str, ...] = ("backdrop", "skin", "hair", "brow", "eye", "nose", "mouth", "clothes", "glasses")
BACKDROP = 0
#: Which class is in front where two are claimed for one place.
_IN_FRONT = torch.tensor([0, 2, 3, 4, 4, 4, 4, 1, 4])
_TABLE = np.full(len(CLASS_NAMES), BACKDROP, dtype=np.uint8)
_TABLE[[CLASS_NAMES.index(name) for name in CLASSES]] = np.arange(len(CLASSES))


@dataclass(frozen=True)
class Trio:
    """Three images [h, w, 3] uint8 and two maps [h, w] uint8 (positions in CLASSES).

    `own` a face; `other` the same face in all the colours of `donor`, which has another pose and hair style.
    """

    own: np.ndarray
    other: np.ndarray
    donor: np.ndarray
    own_labels: np.ndarray
    donor_labels: np.ndarray


def face_labels(scene: Scene) -> np.ndarray:
    """A portrait's map in positions of CLASSES, [h, w] uint8."""
    return _TABLE[scene.labels]


def draw_trio(number: int) -> Trio:
    """Trio number `number`, always the same one. Held-out ones begin where held-out scenes do."""
    rng = np.random.default_rng([7, number])
    who, donor = random_identity(rng), random_identity(rng)
    # The same random numbers with another person of the same outline give the same lines.
    recoloured = replace(donor, style=who.style, glasses=who.glasses)
    own, other = (draw_scene("portrait", 2 * number, SIDE, who=person) for person in (who, recoloured))
    giver = draw_scene("portrait", 2 * number + 1, SIDE, who=donor)
    return Trio(own.image, other.image, giver.image, face_labels(own), face_labels(giver))


def mean_colours(pictures: Tensor, masks: Tensor) -> Tensor:
    """Of the pixels in each mask, [b, k, 3], of images [b, 3, h, w] and masks [b, k, h, w]; 0 for an empty one."""
    masks = masks.to(pictures.dtype)
    return torch.einsum("bchw,bkhw->bkc", pictures, masks) / masks.sum(dim=(2, 3))[..., None].clamp_min(1)


def restyled(own: Tensor, other: Tensor, donor: Tensor, labels: Tensor, donor_labels: Tensor, taken: Tensor) -> Tensor:
    """The image in which the classes taken have the donor's look, [b, 3, h, w].

    Args:
        own, other, donor: the images of trios, [b, 3, h, w]. labels, donor_labels: [b, h, w] int64.
        taken: [b, k] bool.
    """
    here = torch.gather(taken, 1, labels.flatten(1)).view_as(labels)[:, None]
    colour = mean_colours(donor, (donor_labels == BACKDROP)[:, None])
    look = torch.where((labels == BACKDROP)[:, None], colour[:, 0, :, None, None], other)
    return torch.where(here, look, own)


def reshaped(labels: Tensor, donor_labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The map that an exchange of one class's shape should give, where that is known.

    Args:
        labels, donor_labels: [b, h, w] int64. which: [b], the class whose places are the donor's.

    Returns:
        The new map; where it says something (what the class has left is open); where the class is new. All [b, h, w].
    """
    place = which[:, None, None]
    had, has = labels == place, donor_labels == place
    added = has & ~had & (_IN_FRONT[place] >= _IN_FRONT[labels])
    return torch.where(added, place, labels), ~(had & ~has), added
