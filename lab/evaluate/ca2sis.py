"""Measures CA2-SIS on the playground: edited portraits, and class-adaptive attention on its UNet. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from ...py.host import folders
from ...py.host.ca2sis import attention as ca2sis_attention
from ...py.host.ca2sis import codes as ca2sis
from ...py.playground.scene import Scene
from ...py.semantic.palettes import Palette, named_palette
from ...py.semantic.semantic_map import SemanticMap
from ..playground.adapters import CA2SIS_FILE
from ..playground.faces import CLASSES
from . import face_edits
from .setup import Studio, records

NEEDS = ["ca2sis/playground_faces"]
FACES = Palette("faces", CLASSES, tuple((n, n, n) for n in range(len(CLASSES))))


class FaceStudio:
    """The nodes' own calls on the shipped generator; images [b, 3, h, w] in 0..1, maps [b, h, w]."""

    def __init__(self) -> None:
        self.loaded = ca2sis.load(f"{CA2SIS_FILE.split('/')[1]}.safetensors")

    def style(self, images: Tensor, labels: Tensor) -> ca2sis.Style:
        return ca2sis.encode_style(self.loaded, images.movedim(1, -1), SemanticMap(labels, FACES))

    def shape(self, labels: Tensor) -> ca2sis.EncodedShape:
        return ca2sis.encode_shape(self.loaded, SemanticMap(labels, FACES))

    def draw(self, shape: ca2sis.EncodedShape, style: ca2sis.Style) -> Tensor:
        return ca2sis.generate(self.loaded, shape, style).movedim(-1, 1)

    def redraw(self, images: Tensor, labels: Tensor) -> Tensor:
        """Each from its own codes."""
        parts = zip(images.split(16), labels.split(16))
        return torch.cat([self.draw(self.shape(m), self.style(i, m)) for i, m in parts])

    def restyle(self, images: Tensor, labels: Tensor, donors: Tensor, donor_labels: Tensor, number: int) -> Tensor:
        """With the donor's style of one class."""
        pictures = []
        for i, m, d, dm in zip(*(t.split(16) for t in (images, labels, donors, donor_labels))):
            mixed = ca2sis.mix_styles(self.style(i, m), self.style(d, dm), CLASSES[number], ca2sis.NO_GROUP, 1.0, "keep")
            pictures.append(self.draw(self.shape(m), mixed))
        return torch.cat(pictures)

    def reshape(self, images: Tensor, labels: Tensor, donor_labels: Tensor, number: int) -> Tensor:
        """With the donor's shape of one class."""
        pictures = []
        for i, m, dm in zip(*(t.split(16) for t in (images, labels, donor_labels))):
            edited = ca2sis.edit_shape(self.shape(m), self.shape(dm), CLASSES[number], ca2sis.NO_GROUP, "swap if both", 1.0)
            pictures.append(self.draw(edited, self.style(i, m)))
        return torch.cat(pictures)


def by_classes(studio: Studio, settings: ca2sis_attention.Settings = ca2sis_attention.DEFAULTS) -> face_edits.PaintMaps:
    """A way to paint maps: a phrase a class, the caption as the sampler's prompt."""

    def paint(scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        pictures = []
        for scene, seed in zip(scenes, seeds):
            prompts = ca2sis_attention.ClassPrompts()
            for name, phrase in face_edits.phrases_of(scene).items():
                prompts = ca2sis_attention.class_prompt(name, studio.encode(phrase), prompts=prompts)
            semantic_map = SemanticMap(torch.from_numpy(scene.labels)[None], named_palette("playground"))
            model = ca2sis_attention.apply(studio.model, semantic_map, prompts, settings=settings)
            pictures.append(studio.sample(model, studio.encode(join_phrases(scene)), seed))
        return torch.cat(pictures)

    return paint


def join_phrases(scene: Scene) -> str:
    """The phrases of a scene's classes as one prompt."""
    return ", ".join(face_edits.phrases_of(scene).values())


def figures(quick: bool) -> Iterator[dict]:
    """Every figure of CA2-SIS. `quick` takes a tenth of the images, too few for the bounds, which are then left out."""
    folders.register()
    share, studio, faces = 10 if quick else 1, Studio(), FaceStudio()
    found = [
        face_edits.face_figures(studio.detector, faces.redraw, faces.restyle, faces.reshape, 200 // share),
        face_edits.attention_figures(
            studio.detector,
            by_classes(studio),
            lambda scenes, seeds: studio.paint([join_phrases(scene) for scene in scenes], seeds),
            100 // share,
        ),
    ]
    yield from records(chain.from_iterable(found), quick)
