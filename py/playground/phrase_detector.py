"""Finds the objects of phrases with the playground's detector: by class, colour and texture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..evaluation.detection import Box, Detection, iou
from . import world
from .detector import Found, SceneDetector, find_objects, look
from .scenes import SIDE
from .vocabulary import split_words


class PhraseDetector:
    """A `Judge` of `evaluation.detection`; a phrase's texture counts where it names one."""

    def __init__(self, network: SceneDetector) -> None:
        self.network = network
        self._last: tuple[Tensor | None, list[Found]] = (None, [])

    def detect(self, picture: Tensor, phrase: str) -> list[Detection]:
        """Every thing of the phrase's class, surer the more of the phrase it is."""
        words = set(split_words(phrase))
        return [
            Detection(each.box, (1 + (each.colour in words) + (each.texture in words)) / 3)
            for each in self._things(picture)
            if each.name in words
        ]

    def matches(self, picture: Tensor, box: Box, phrase: str) -> bool:
        """Class and colour, and the texture if the phrase names one."""
        words = set(split_words(phrase))
        texture = words & set(world.TEXTURES)
        things = max(self._things(picture), key=lambda each: iou(each.box, box), default=None)
        return (
            things is not None and things.name in words and things.colour in words and (not texture or things.texture in texture)
        )

    def _things(self, picture: Tensor) -> list[Found]:
        """Looked at once for all phrases of an image."""
        if self._last[0] is not picture:
            seen = F.interpolate(picture[None], (SIDE, SIDE), mode="bilinear", antialias=True)  # what it has learned on
            self._last = picture, find_objects(self.network, seen[0], look(self.network, seen)[0])
        return self._last[1]
