"""Boxes and phrases from everywhere, and what is said about those that make no sense."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from pack.py.ifadapter.boxes import BOX_FORMATS
from pack.py.ifadapter.instances import Instance, Instances, mask_to_box
from pack.py.ifadapter.layouts import from_boxes, from_json

XYXY, XYWH, XYXY_PX, XYWH_PX, YXYX, XYXY_1000, CXCYWH, CXCYWH_PX = BOX_FORMATS


@pytest.mark.parametrize(
    "box, says",
    [
        ((0.5, 0.5, 0.5, 0.9), "has no area"),
        ((0.6, 0.1, 0.2, 0.9), "has no area"),
        ((1.2, 0.1, 1.5, 0.9), "outside the image"),
        ((10, 10, 200, 200), "outside the image"),
        ((float("nan"), 0, 1, 1), "four finite numbers"),
        ((0, 0, float("inf"), 1), "four finite numbers"),
        ((0, 0, 1), "four finite numbers"),
        ("0 0 1 1", "four finite numbers"),
        ((0, 0, True, 1), "four finite numbers"),
    ],
)
def test_a_box_that_makes_no_sense_is_named(box, says):
    with pytest.raises(ValueError, match=says):
        Instance(box, "a cat")


def test_a_box_is_cut_to_the_picture():
    assert Instance((-0.5, 0.5, 0.5, 1.5), "a cat").box == (0.0, 0.5, 0.5, 1.0)


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan"), "1", None])
def test_a_strength_out_of_range_is_named(strength):
    with pytest.raises(ValueError, match="strength"):
        Instance((0, 0, 1, 1), "a cat", strength=strength)


@pytest.mark.parametrize("phrase", ["", "  \n"])
def test_an_empty_phrase_is_named(phrase):
    with pytest.raises(ValueError, match="no phrase"):
        Instance((0, 0, 1, 1), phrase)


@pytest.mark.parametrize(
    "mask, says",
    [
        (torch.zeros(1, 8, 8), "is empty"),
        (torch.full((1, 2, 2), float("nan")), "NaN"),
        (torch.ones(2, 3, 8, 8), "shape"),
        (torch.ones(0, 8, 8), "shape"),
    ],
)
def test_a_mask_that_makes_no_sense_is_named(mask, says):
    with pytest.raises(ValueError, match=says):
        Instance((0, 0, 1, 1), "a cat", mask)


def test_messages_can_be_printed_on_any_console():
    with pytest.raises(ValueError) as error:
        Instance((0, 0, 0, 0), "\U0001f408 \u05d7\u05ea\u05d5\u05dc")
    assert str(error.value).isascii()


def test_a_mask_gives_its_box():
    mask = torch.zeros(8, 16)
    mask[2:4, 4:12] = 0.1
    assert mask_to_box(mask, "a") == (0.25, 0.25, 0.75, 0.5)
    single = torch.zeros(1, 8, 8)
    single[0, 7, 7] = 1
    assert mask_to_box(single, "a") == (0.875, 0.875, 1.0, 1.0)


def test_lists_never_change_and_are_not_copied():
    one = Instances((Instance((0, 0, 1, 1), "a"),))
    two = one.plus(Instance((0, 0, 0.5, 0.5), "b"))
    assert (len(one), len(two)) == (1, 2) and copy.deepcopy(two) is two


def test_json_goes_there_and_back():
    layout = Instances(
        (Instance((0.1, 0.2, 0.5, 0.9), "a \U0001f408", strength=0.5), Instance((0, 0, 1, 1), "\u05d7\u05ea\u05d5\u05dc"))
    )
    back = from_json(layout.to_json()).instances
    assert [(i.box, i.phrase, i.strength) for i in back] == [(i.box, i.phrase, i.strength) for i in layout]


def test_a_layout_file_of_ifadapter_is_read():
    layout = {
        "caption": "a room",
        "annotations": [{"box": [64, 128, 256, 128], "caption": ["a sofa", "red"]}, {"box": [0, 0, 512, 512], "caption": "b"}],
    }
    first, second = from_json(json.dumps(layout), 512, 512).instances
    assert first.box == (0.125, 0.25, 0.625, 0.5) and first.phrase == "a sofa, red" and second.box == (0, 0, 1, 1)


@pytest.mark.parametrize("layout", [{"caption": "a room"}, {"caption": "a room", "annotations": []}])
def test_a_layout_without_annotations_is_its_caption_everywhere(layout):
    (only,) = from_json(json.dumps(layout), 512, 512).instances
    assert only.box == (0, 0, 1, 1) and only.phrase == "a room"


@pytest.mark.parametrize(
    "text, says",
    [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "must be a list"),
        ('{"frames": 3}', "Invalid box:"),
        ('[{"box": [0, 0, 1, 1]}]', "Entry 1"),
        ('[{"phrase": "a"}]', "Invalid box:"),
        ("[[0, 0, 10, 10]]", "width and height"),
        ('[{"box": [0, 0, 1, 1], "phrase": "a", "strength": "very"}]', "strength"),
        ('[{"box": {"x": 0}, "phrase": "a"}]', "Invalid box:"),
        ('[{"box": [0, 0, NaN, 1], "phrase": "a"}]', "four finite numbers"),
        ('{"annotations": 3}', "must be a list"),
        ('{"annotations": [3]}', "Invalid box: 3"),
        ('{"annotations": [{"box": [0, 0, 9, 9], "caption": "a"}]}', "width and height"),
    ],
)
def test_json_that_is_not_a_layout_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        from_json(text)


@pytest.mark.parametrize(
    "numbers, box_format",
    [
        ([0.25, 0.5, 0.75, 1.0], XYXY),
        ([0.25, 0.5, 0.5, 0.5], XYWH),
        ([100, 100, 300, 200], XYXY_PX),
        ([100, 100, 200, 100], XYWH_PX),
        ([500, 250, 1000, 750], YXYX),
        ({"x": 100, "y": 100, "width": 200, "height": 100}, XYXY_PX),
        ({"x": 0.25, "y": 0.5, "width": 0.5, "height": 0.5}, XYXY),
    ],
)
def test_every_format_of_a_box(numbers, box_format):
    (only,) = from_boxes([numbers], ["a"], box_format, 400, 200).instances
    assert only.box == (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    "nesting", [lambda b: b, lambda b: [b], lambda b: [[b]], lambda b: (tuple(b),), lambda b: torch.tensor([b])]
)
def test_any_nesting_of_lists(nesting):
    assert from_boxes(nesting([0, 0, 200, 100]), ["a"], XYXY_PX, 400, 200).instances.items[0].box == (0, 0, 0.5, 0.5)


def test_segs_bring_their_own_size_and_labels():
    segment = SimpleNamespace(bbox=(100, 50, 300, 100), label="cat")
    (only,) = from_boxes(((200, 400), [segment]), [], YXYX, 512, 512).instances
    assert only.box == (0.25, 0.25, 0.75, 0.5) and only.phrase == "cat"


def test_named_boxes_bring_their_descriptions():
    boxes = [{"x": 0, "y": 0, "width": 8, "height": 8, "metadata": {"description": "a cat"}}]
    assert from_boxes(boxes, [], XYWH_PX, 16, 16).instances.items[0].phrase == "a cat"


def test_phrases_and_boxes_must_agree_in_number():
    two = [[0, 0, 1, 1], [0, 0, 0.5, 0.5]]
    assert [i.phrase for i in from_boxes(two, ["a", " ", "b"], XYXY).instances] == ["a", "b"]
    assert [i.phrase for i in from_boxes(two, ["a"], XYXY).instances] == ["a", "a"]
    with pytest.raises(ValueError, match="2 boxes but 3 phrases"):
        from_boxes(two, ["a", "b", "c"], XYXY)
    with pytest.raises(ValueError, match="2 boxes but 0 phrases"):
        from_boxes(two, [], XYXY)


def test_no_boxes_are_no_instances():
    assert len(from_boxes([], [], XYXY).instances) == 0


def test_what_is_no_box_is_named():
    with pytest.raises(ValueError, match="Invalid box: 'cat'"):
        from_boxes(["cat"], ["a"], XYXY)
    with pytest.raises(ValueError, match="box_format"):
        from_boxes([[0, 0, 1, 1]], ["a"], "pixels")


def test_noise_near_0_does_not_enlarge_the_box_of_a_mask():
    mask = torch.full((1, 100, 100), 1 / 255)
    mask[0, 40:60, 20:40] = 1
    box = mask_to_box(mask, "a")
    assert box == (0.2, 0.4, 0.4, 0.6)
    instance = Instance(box, "a", mask)
    assert set(instance.mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 1, 8, 8), (1, 8, 8, 1)])
def test_masks_of_any_precision_and_shape(dtype, shape):
    instance = Instance((0, 0, 1, 1), "a", torch.ones(shape).to(dtype))
    assert instance.mask.shape == (1, 8, 8) and instance.mask.dtype == torch.float32 and bool((instance.mask == 1).all())


def test_a_conditioning_replaces_an_empty_phrase():
    assert Instance((0, 0, 1, 1), "", conditioning=[[torch.zeros(1, 4, 8), {}]]).phrase == ""
