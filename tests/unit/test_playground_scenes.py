"""The drawn world: the same scene for the same number, and everything that a scene says of itself is true of its picture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pack.py.playground import vocabulary, world
from pack.py.playground.scenes import HELD_OUT, KINDS, draw_scene


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_always_draws_the_same_scene(kind):
    first, again, other = draw_scene(kind, 5), draw_scene(kind, 5), draw_scene(kind, 6)
    assert (first.image == again.image).all() and first.caption == again.caption
    assert (first.image != other.image).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2, HELD_OUT])
def test_boxes_are_tight_around_what_is_visible(kind, seed):
    scene = draw_scene(kind, seed)
    side = scene.labels.shape[0]
    assert scene.instances
    for number, instance in enumerate(scene.instances, start=1):
        x0, y0, x1, y1 = (round(v * side) for v in instance.box)
        inside = scene.instance_map[y0:y1, x0:x1] == number
        assert (scene.instance_map == number).sum() == inside.sum() > 0
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_of_captions_and_phrases_is_known_and_fits_one_prompt(kind):
    for seed in range(60):
        scene = draw_scene(kind, seed, side=64)
        for text in (scene.caption, *(i.phrase for i in scene.instances)):
            assert vocabulary.unknown_words(text) == []
            assert len(vocabulary.encode(text)) <= vocabulary.LENGTH - 2, text


def test_an_object_has_the_colour_that_its_phrase_says():
    for seed in range(40):
        scene = draw_scene("objects", seed)
        for number, instance in enumerate(scene.instances, start=1):
            if instance.attributes["texture"] == "plain":
                seen = np.median(scene.image[scene.instance_map == number], axis=0)
                assert np.abs(seen - world.COLOURS[instance.attributes["colour"]]).max() <= 2
            assert instance.name in instance.phrase and instance.attributes["colour"] in instance.phrase


def test_maps_hold_whole_labels_at_any_size():
    for side in (64, 128, 200):
        scene = draw_scene("street", 3, side=side)
        assert scene.image.shape == (side, side, 3) and scene.labels.shape == (side, side)
        assert scene.labels.max() < len(world.CLASSES)


def test_an_unknown_kind_names_the_kinds():
    with pytest.raises(ValueError, match=r"'castle'.*objects, street, portrait, people"):
        draw_scene("castle", 0)


def test_tokens_start_end_and_pad_as_clip_does():
    (row,) = vocabulary.encode_padded(["A RED ball, a dragon!"])
    assert row[0] == vocabulary.START and len(row) == 77
    assert row[6] == vocabulary.UNKNOWN and set(row[7:]) == {vocabulary.END}
    assert vocabulary.unknown_words("a red dragon and a Dragon") == ["dragon"]


def test_the_vocabulary_is_the_one_that_the_shipped_weights_know():
    """A word more, less or elsewhere gives every token another meaning: prompts still run, and draw something else."""
    assert len(world.WORDS) == 101
    assert hashlib.sha256(" ".join(world.WORDS).encode()).hexdigest()[:16] == "dcec984590c51cd6"
