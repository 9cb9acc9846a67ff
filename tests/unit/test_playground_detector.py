"""The detector's reading of a picture, on pixels that are perfect by construction; the names of objects are the shipped detector's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pack.lab.evaluate.face_edits import regions_right
from pack.lab.evaluate.playground import as_images, held_out_layouts, success
from pack.py.playground import detector, world
from pack.py.playground.scenes import HELD_OUT, KINDS, draw_scene
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shipped() -> detector.SceneDetector:
    return detector.load_detector(load_file(ROOT / "assets" / "playground" / "judge.safetensors"))


def perfect(scene) -> dict[str, torch.Tensor]:
    """The logits of a detector that knows the scene."""
    seen = {}
    for name, expected in detector.truth(scene).items():
        half = torch.from_numpy(expected[::2, ::2].astype(np.int64))
        sure = torch.nn.functional.one_hot(half.clamp(max=detector.HEADS[name] - 1), detector.HEADS[name]).permute(2, 0, 1)
        seen[name] = 9.0 * sure * (half != detector.IGNORE)
    return seen


def objects(shipped, scene):
    return detector.find_objects(shipped, as_images([scene])[0], perfect(scene))


def test_a_perfect_answer_finds_every_object_in_its_box(shipped):
    layouts = held_out_layouts(12)
    found = [objects(shipped, scene) for scene in layouts]
    assert success(found, layouts) > 0.95
    for things, scene in zip(found, layouts):
        looks = {(i.attributes["colour"], i.attributes["texture"]) for i in scene.instances}
        assert {(f.colour, f.texture) for f in things} == looks


def test_success_needs_class_colour_and_place(shipped):
    things = objects(shipped, held_out_layouts(1)[0])
    first = things[0]
    other = next(c for c in world.COLOURS if c != first.colour)
    x0, y0, x1, y1 = first.box
    assert detector.is_found_at(things, first.name, first.colour, first.box)
    assert not detector.is_found_at(things, first.name, other, first.box)
    assert not detector.is_found_at(things, first.name, first.colour, ((x0 + x1) / 2, y0, (3 * x1 - x0) / 2, y1))


def test_two_objects_that_touch_are_told_apart_by_their_colours():
    scene = draw_scene("objects", 5, count=2)
    seen = perfect(scene)
    x0, x1 = sorted(int(i.box[0] * 64) for i in scene.instances)
    bridge = seen["labels"].clone()
    bridge[:, 30:34, x0 : x1 + 8] = 0
    bridge[world.LABEL["box"], 30:34, x0 : x1 + 8] = 9.0
    assert len(detector.silhouettes({**seen, "labels": bridge})) >= 2


def test_nothing_is_found_where_nothing_is(shipped):
    scene = draw_scene("street", 3)
    assert detector.find_objects(shipped, as_images([scene])[0], perfect(scene)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_has_words_for_most_of_a_picture(kind):
    scene = draw_scene(kind, 4)
    words = detector.truth(scene)
    assert all(v.shape == scene.labels.shape for v in words.values())
    assert (words["colours"] != detector.IGNORE).mean() > 0.15
    assert all(v[v != detector.IGNORE].max(initial=0) < detector.HEADS[name] for name, v in words.items())


def test_the_network_answers_at_half_size():
    out = detector.SceneDetector()(torch.rand(2, 3, 64, 96))
    assert {name: tuple(v.shape) for name, v in out.items()} == {name: (2, k, 32, 48) for name, k in detector.HEADS.items()}


@pytest.mark.parametrize(
    "a, b, expected",
    [((0, 0, 1, 1), (0, 0, 1, 1), 1.0), ((0, 0, 0.5, 1), (0.5, 0, 1, 1), 0.0), ((0, 0, 1, 1), (0, 0, 0.5, 1), 0.5)],
)
def test_intersection_over_union(a, b, expected):
    assert detector.iou(a, b) == pytest.approx(expected)


def test_a_region_is_right_if_the_thing_in_it_has_its_class_and_its_colour(shipped):
    """Drawn pictures are all right; the pictures of other maps are not, though things stand in them too."""
    scenes = [draw_scene("objects", HELD_OUT + 60_000 + k, count=2) for k in range(12)]
    drawn = as_images(scenes)
    assert regions_right(shipped, drawn, scenes) >= 0.95
    assert regions_right(shipped, drawn.roll(1, dims=0), scenes) <= 0.1
