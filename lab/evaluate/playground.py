"""The playground's figures: what is measured, on which held-out scenes. How images are made is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...py.playground.detector import (
    Found,
    SceneDetector,
    agreement,
    as_batch,
    find_objects,
    is_found_at,
    is_person,
    look,
    person_in,
    place_of,
    shows,
)
from ...py.playground.scene import Instance, Scene
from ...py.playground.scenes import HELD_OUT, KINDS, draw_scene
from ..playground.persons import Pairing, held_out_pairings
from .features import frechet_distance

#: Makes one image a prompt: (prompts, seeds) -> [b, 3, h, w] in 0..1.
Paint = Callable[[Sequence[str], Sequence[int]], Tensor]
#: The same with a layout: (scenes whose caption and instances are wanted, seeds) -> [b, 3, h, w] in 0..1.
PaintLayout = Callable[[Sequence[Scene], Sequence[int]], Tensor]
#: Persons known from portraits in places: (pairings, seeds) -> [b, 3, h, w] in 0..1.
PaintSubjects = Callable[[Sequence[Pairing], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Figure:
    """One measured number with the bound that it is held to. Shares are 0..1 with the unit "%"."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def record(self) -> dict[str, object]:
        """The form that reports keep: name, value, unit, and target and ok where there is a bound."""
        found: dict[str, object] = {"name": self.name, "value": self.value, "unit": self.unit}
        if self.at_least is not None:
            found |= {"target": f">= {self._shown(self.at_least)}", "ok": self.value >= self.at_least}
        if self.at_most is not None:
            found |= {"target": f"<= {self._shown(self.at_most)}", "ok": self.value <= self.at_most}
        return found

    def _shown(self, bound: float) -> str:
        return f"{100 * bound:g} %" if self.unit == "%" else f"{bound:g} {self.unit}"


def held_out(kind: str, number: int, first: int = 0, **wish) -> list[Scene]:
    """Scenes that no training has seen."""
    return [draw_scene(kind, HELD_OUT + first + k, **wish) for k in range(number)]


def held_out_layouts(count: int) -> list[Scene]:
    """Layouts of two, three and four objects in turn."""
    return [draw_scene("objects", HELD_OUT + 10_000 + k, count=2 + k % 3) for k in range(count)]


def as_images(scenes: Sequence[Scene]) -> Tensor:
    """The drawn images, [b, 3, h, w] in 0..1."""
    return as_batch(np.stack([scene.image for scene in scenes]))


def detect_objects(detector: SceneDetector, images: Tensor) -> list[list[Found]]:
    """What the detector finds in each image."""
    return [find_objects(detector, i, seen) for batch in images.split(32) for i, seen in zip(batch, look(detector, batch))]


def _right(found: list[Found], instances: Sequence[Instance]) -> bool:
    return all(shows(found, i.name, i.attributes["colour"]) for i in instances)


def autoencoder_figures(round_trip: Callable[[Tensor], Tensor], count: int = 80) -> list[Figure]:
    """PSNR of the VAE on held-out scenes of all kinds."""
    scenes = [scene for kind in KINDS for scene in held_out(kind, count // len(KINDS), first=20_000)]
    images = as_images(scenes)
    error = (round_trip(images).clamp(0, 1) - images).square().flatten(1).mean(dim=1)
    return [Figure(f"VAE, {len(scenes)} held-out scenes", float(-10 * error.log10().mean()), "dB PSNR", 28.0)]


def detector_figures(detector: SceneDetector, count: int = 100) -> list[Figure]:
    """The detector against drawn scenes: pixels, and whole objects found where they are."""
    shares: dict[str, list[float]] = {}
    scenes = [scene for kind in KINDS for scene in held_out(kind, count // len(KINDS), first=30_000)]
    for scene, seen in zip(scenes, look(detector, as_images(scenes))):
        for name, share in agreement(seen, scene).items():
            shares.setdefault(name, []).append(share)
    figures = [Figure(f"detector, pixels right: {name}", float(np.mean(v)), "%") for name, v in shares.items()]
    layouts = held_out_layouts(count)
    drawn = detect_objects(detector, as_images(layouts))
    return [*figures, Figure(f"detector, objects of {count} drawn layouts found in place", success(drawn, layouts), "%")]


def success(found: list[list[Found]], layouts: Sequence[Scene]) -> float:
    """The share of all instances that stand, in the right class and colour, in their box (IoU at least 0.5)."""
    each = [is_found_at(f, i.name, i.attributes["colour"], i.box) for f, scene in zip(found, layouts) for i in scene.instances]
    return sum(each) / len(each)


def text_figures(detector: SceneDetector, paint: Paint, count: int = 200) -> list[Figure]:
    """Prompts with one and with two objects: are the asked classes there in the asked colours?"""
    figures = []
    for objects, bound in ((1, 0.90), (2, 0.75)):
        scenes = held_out("objects", count // 2, first=40_000 + objects * 1000, count=objects)
        found = detect_objects(detector, paint([s.caption for s in scenes], list(range(len(scenes)))))
        share = sum(_right(f, s.instances) for f, s in zip(found, scenes)) / len(scenes)
        words = "one object" if objects == 1 else "both of two objects"
        figures.append(Figure(f"text, {len(scenes)} held-out prompts: class and colour right, {words}", share, "%", bound))
    return figures


def layout_figures(
    detector: SceneDetector,
    weight_free: PaintLayout,
    text_alone: PaintLayout,
    trained: dict[str, PaintLayout],
    features: Callable[[Tensor], Tensor],
    count: int = 200,
) -> list[Figure]:
    """Instance success on layouts of two to four objects, and how far the images are from drawn ones.

    Args:
        trained: the trained adapter first, then its ablations, each with its name; empty if there is no trained adapter.
        features: images [b, 3, h, w] -> features [b, c] for the Frechet distance.
    """
    layouts, seeds = held_out_layouts(count), list(range(count))
    drawn = features(as_images(layouts))

    def measured(paint: PaintLayout) -> tuple[float, float]:
        images = paint(layouts, seeds)
        return success(detect_objects(detector, images), layouts), frechet_distance(features(images), drawn)

    where = f"{count} held-out layouts"
    text, text_distance = measured(text_alone)
    free, free_distance = measured(weight_free)
    figures = [
        Figure(f"text alone, {where}: instance success", text, "%"),
        Figure(f"text alone, {where}: Frechet distance to drawn scenes", text_distance, ""),
        Figure(f"IFAdapter, weight-free, {where}: instance success", free, "%"),
        Figure(f"IFAdapter, weight-free, {where}: Frechet distance to drawn scenes", free_distance, ""),
        Figure("IFAdapter, weight-free, against text alone", free / max(text, 1e-9), "times", 3.0),
    ]
    whole = None
    for name, paint in trained.items():
        share, distance = measured(paint)
        ablation = whole is not None
        figures.append(Figure(f"{name}, {where}: instance success", share, "%", None if ablation else 0.80))
        if whole is not None:
            figures.append(Figure(f"{name}: instance success lost", whole - share, "%"))
            continue
        whole = share
        figures += [
            Figure(f"{name} ahead of the weight-free method", share - free, "%", 0.15),
            Figure(f"{name}: Frechet distance against text alone", distance / text_distance, "times", None, 1.1),
        ]
    return figures


def _who_and_where(detector: SceneDetector, images: Tensor, pairings: Sequence[Pairing]) -> tuple[float, float, float]:
    """The shares of images with the right person, with the right place, and with both."""
    seen = [one for batch in images.split(32) for one in look(detector, batch)]
    who = [is_person(person_in(one), pairing.people[0].attributes()) for one, pairing in zip(seen, pairings)]
    where = _right_places(seen, pairings)
    return float(np.mean(who)), float(np.mean(where)), float(np.mean([a and b for a, b in zip(who, where)]))


def _right_places(seen: Sequence[dict[str, Tensor]], pairings: Sequence[Pairing]) -> list[bool]:
    return [place_of(one) == pairing.place for one, pairing in zip(seen, pairings)]


def both_whole(seen: dict[str, Tensor], pairing: Pairing) -> bool:
    """Two persons, each with all that is theirs, in either order: nothing of one on the other."""
    halves = [person_in(seen, 0.0, 0.5), person_in(seen, 0.5, 1.0)]
    known = [person.attributes() for person in pairing.people]
    return any(all(is_person(h, k) for h, k in zip(halves, order)) for order in (known, known[::-1]))


def subject_figures(
    detector: SceneDetector, fused: PaintSubjects, subject_alone: PaintSubjects, scene_alone: PaintSubjects, count: int = 100
) -> list[Figure]:
    """Noise fusion against each of its models alone, on the same prompts; and two persons in one image."""
    drawn = held_out("people", count, first=70_000)
    readable = [(s, one) for s, one in zip(drawn, look(detector, as_images(drawn))) if len(s.instances) == 1]
    ceiling = float(np.mean([is_person(person_in(one), s.instances[0].attributes) for s, one in readable]))
    pairings, seeds = held_out_pairings(count), list(range(count))
    name = f"SNF, {count} held-out pairs of person and place"
    identity, place, both = _who_and_where(detector, fused(pairings, seeds), pairings)
    alone = {
        "subject model": _who_and_where(detector, subject_alone(pairings, seeds), pairings),
        "scene model": _who_and_where(detector, scene_alone(pairings, seeds), pairings),
    }
    pairs = held_out_pairings(count, people=2)
    twos = [one for batch in fused(pairs, seeds).split(32) for one in look(detector, batch)]
    whole = float(np.mean([both_whole(one, pairing) for one, pairing in zip(twos, pairs)]))
    there = float(np.mean(_right_places(twos, pairs)))
    return [
        Figure(f"detector, identity of {len(readable)} drawn persons read right", ceiling, "%"),
        Figure(f"{name}: identity right", identity, "%", 0.85),
        Figure(f"{name}: scene right", place, "%", 0.85),
        Figure("SNF: both right in one image", both, "%"),
        *[
            Figure(f"the {model} alone: {what}", value, "%")
            for model, values in alone.items()
            for what, value in zip(("identity right", "scene right", "both right in one image"), values)
        ],
        Figure(
            "SNF, identity x scene, against the better of its models alone",
            identity * place / max(1e-9, *(who * where for who, where, _ in alone.values())),
            "times",
            1.01,
        ),
        Figure(f"SNF, {count} images of two persons: both identities on their own bodies", whole, "%", 0.70),
        Figure("two persons: scene right", there, "%"),
    ]
