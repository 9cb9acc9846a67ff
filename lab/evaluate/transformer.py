"""Measures the techniques on the playground's transformer base. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...py.host import playground, playground_transformer
from ...py.host.ifadapter import apply as ifadapter
from ...py.host.ifadapter import references
from ...py.host.schedule import PercentRange
from ...py.ifadapter.instances import Instance, Instances
from ...py.ifadapter.regional import Settings
from ...py.playground.detector import is_found_at
from ...py.playground.scene import Scene
from ...py.playground.world import article
from ..playground.recipes.transformer_data import draw_reference
from ..training import sampling
from . import ca2sis, face_edits
from . import playground as measures
from .playground import Figure
from .setup import Studio, records

NEEDS = ["transformer"]
STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "euler", "simple"
SEPARATE = 3.0  # of Apply IFAdapter


class TransformerStudio(Studio):
    """The playground's transformer base in place of its UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.model = playground_transformer.load_transformer()
        self.clip = playground.load_clip(trimmed=True)

    def sample(
        self, model, positive: list, seed: int, steps: int = STEPS, side: int = 128, negative: list | None = None
    ) -> Tensor:
        """One image [1, 3, side, side] in 0..1, as KSampler and VAEDecode make it."""
        negative = negative if negative is not None else self.encode("")
        return sampling.sample_image(
            model, self.vae, positive, negative, seed, steps=steps, cfg=CFG, side=side, sampler=SAMPLER, scheduler=SCHEDULER
        )


def reference_pairs(count: int) -> list[tuple[Scene, list[Tensor], list[Tensor]]]:
    """Held-out scenes of two objects; per object a reference image [64, 64, 3] of it, and one of the other scene objects' colours.

    The second list belongs to the swapped run: the reference of the other object.
    """
    pairs = []
    for number, scene in enumerate(measures.held_out("objects", count, first=60_000, count=2)):
        rng = np.random.default_rng([81, number])
        drawn = [draw_reference(rng, i.name, i.attributes["colour"], i.attributes["texture"]) for i in scene.instances]
        images = [torch.from_numpy(image.astype(np.float32) / 255)[None] for image in drawn]
        pairs.append((scene, images, images[::-1]))
    return pairs


def paint_references(studio: TransformerStudio, scene: Scene, images: Sequence[Tensor], seed: int) -> Tensor:
    """Both objects as Regional References places them: a reference and a box each.

    The prompt names the classes only. Colours and textures, and which object is in which box, are known from the references.
    """
    regions = [
        Instance(instance.box, article(instance.name), reference=image) for instance, image in zip(scene.instances, images)
    ]
    objects = " and ".join(article(instance.name) for instance in scene.instances)
    prompt = studio.encode(f"{objects} on {article(scene.attributes['backdrop'])} background")
    model, positive, negative = references.apply(
        studio.model, studio.vae, prompt, studio.encode(""), regions, 1.0, PercentRange(), 1.0
    )
    return studio.sample(model, positive, seed, negative=negative)


def reference_figures(studio: TransformerStudio, count: int) -> list[Figure]:
    """The right object from the right reference in its region, and what swapped references do."""
    pairs = reference_pairs(count)
    right: list[bool] = []
    swapped: list[bool] = []
    for seed, (scene, images, other) in enumerate(pairs):
        first, second = scene.instances
        for results, given, expected in ((right, images, (first, second)), (swapped, other, (second, first))):
            found = measures.detect_objects(studio.detector, paint_references(studio, scene, given, seed))[0]
            for region, shown in zip((first, second), expected):
                results.append(is_found_at(found, shown.name, shown.attributes["colour"], region.box))
    name = f"transformer, references by region, {count} held-out layouts of two objects"
    return [
        Figure(f"{name}: right class and colour in its region", float(np.mean(right)), "%", 0.70),
        Figure(f"{name}, references swapped: the other object in each region", float(np.mean(swapped)), "%", 0.70),
    ]


def layout_figures(studio: TransformerStudio, count: int) -> list[Figure]:
    """Instance success of boxes, weight-free, against the caption without boxes.

    A background prompt describes the space between the boxes, and boxes are partly isolated: with the defaults, objects of this small
    model grow beyond their boxes.
    """
    layouts, seeds = measures.held_out_layouts(count), list(range(count))
    images = []
    for scene, seed in zip(layouts, seeds):
        instances = Instances(tuple(Instance(i.box, i.phrase) for i in scene.instances))
        background = f"{article(scene.attributes['backdrop'])} background"
        model = ifadapter.apply(studio.model, studio.clip, instances, background=background, settings=Settings(separate=SEPARATE))
        images.append(studio.sample(model, studio.encode(scene.caption), seed))

    def success(painted: Tensor) -> float:
        return measures.success(measures.detect_objects(studio.detector, painted), layouts)

    name = f"{count} held-out layouts: instance success"
    return [
        Figure(f"transformer, text alone, {name}", success(studio.paint_captions(layouts, seeds)), "%"),
        Figure(f"transformer, IFAdapter weight-free, {name}", success(torch.cat(images)), "%", 0.55),
    ]


def figures(quick: bool) -> Iterator[dict]:
    """Every figure of the transformer base. `quick` takes a twentieth of the images, too few for the bounds, which are then left out."""
    studio, share = TransformerStudio(), 20 if quick else 1
    for figure in measures.text_figures(studio.detector, studio.paint, 200 // share):
        named = Figure(f"transformer, {figure.name}", figure.value, figure.unit, figure.at_least, figure.at_most)
        yield from records([named], quick)
    yield from records(layout_figures(studio, 200 // share), quick)
    yield from records(reference_figures(studio, 100 // share), quick)
    found = face_edits.attention_figures(
        studio.detector,
        ca2sis.by_classes(studio),
        lambda scenes, seeds: studio.paint([ca2sis.join_phrases(scene) for scene in scenes], seeds),
        100 // share,
    )
    for figure in found:
        named = Figure(f"transformer, {figure.name}", figure.value, figure.unit, figure.at_least, figure.at_most)
        yield from records([named], quick)
