"""Boxes of detectors, language models, editors and data sets: each form gives the box and phrase that its source means."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pack.py.ifadapter.boxes import BOX_FORMATS
from pack.py.ifadapter.layouts import from_boxes, from_json

XYXY, XYWH, XYXY_PX, XYWH_PX, YXYX_1000, XYXY_1000, CXCYWH, CXCYWH_PX = BOX_FORMATS
SIZE = (400, 200)  # width, height
BOX = (0.25, 0.5, 0.75, 1.0)


def read(boxes, box_format=XYWH_PX, phrases=(), size=SIZE, **more):
    layout = from_boxes(boxes, phrases, box_format, *size, **more)
    return [(pytest.approx(i.box, abs=1e-6), i.phrase) for i in layout.instances], layout.warnings


#: (what the source returns, the user's box_format); each is BOX, "cat" in an image of SIZE.
SOURCES = {
    "Florence-2": ({"bboxes": [[100, 100, 300, 200]], "labels": ["cat"]}, XYWH_PX),
    "Florence-2, per image": ([{"bboxes": [[100, 100, 300, 200]], "labels": ["cat"]}], XYWH_PX),
    "Florence-2, under its task": ({"<OD>": {"bboxes": [[100, 100, 300, 200]], "labels": ["cat"]}}, XYWH_PX),
    "Florence-2, open vocabulary": ({"bboxes": [[100, 100, 300, 200]], "bboxes_labels": ["cat"], "polygons": []}, XYWH_PX),
    "Florence-2, text with region": ({"quad_boxes": [[100, 100, 300, 100, 300, 200, 100, 200]], "labels": ["cat"]}, XYWH_PX),
    "Grounding DINO": (
        {
            "scores": torch.tensor([0.9]),
            "boxes": torch.tensor([[100.0, 100, 300, 200]]),
            "labels": torch.tensor([3]),
            "text_labels": ["cat"],
        },
        XYWH_PX,
    ),
    "Grounding DINO, raw": ({"boxes": [[0.5, 0.75, 0.5, 0.5]], "labels": ["cat"]}, CXCYWH),
    "transformers pipeline": (
        [{"score": 0.9, "label": "cat", "box": {"xmin": 100, "ymin": 100, "xmax": 300, "ymax": 200}}],
        XYWH_PX,
    ),
    "Qwen2.5-VL": ([{"bbox_2d": [100, 100, 300, 200], "label": "cat"}], XYWH_PX),
    "Qwen3-VL": ([{"bbox_2d": [250, 500, 750, 1000], "label": "cat"}], XYXY_1000),
    "Gemini": ([{"box_2d": [500, 250, 1000, 750], "label": "cat"}], XYWH_PX),
    "core box editor": ([{"type": "obj", "bbox": [500, 250, 1000, 750], "desc": "cat", "text": ""}], XYWH_PX),
    "core bounding boxes": ([[{"x": 100, "y": 100, "width": 200, "height": 100, "metadata": {"desc": "cat"}}]], XYXY_PX),
    "RT-DETR": ([[{"x": 100.0, "y": 100.0, "width": 200.0, "height": 100.0, "label": "cat", "score": 0.8}]], XYWH_PX),
    "Ultralytics": (
        [{"name": "cat", "class": 15, "confidence": 0.9, "box": {"x1": 100, "y1": 100, "x2": 300, "y2": 200}}],
        XYWH_PX,
    ),
    "Roboflow": (
        {"predictions": [{"x": 200, "y": 150, "width": 200, "height": 100, "class": "cat", "class_id": 0, "confidence": 0.9}]},
        XYWH_PX,
    ),
    "Rekognition": ([{"Name": "cat", "BoundingBox": {"Left": 0.25, "Top": 0.5, "Width": 0.5, "Height": 0.5}}], XYWH),
    "COCO": (
        {"annotations": [{"bbox": [100, 100, 200, 100], "category_id": 1}], "categories": [{"id": 1, "name": "cat"}]},
        XYXY,
    ),
    "labelme": ({"shapes": [{"label": "cat", "points": [[100, 100], [300, 200]], "shape_type": "rectangle"}]}, XYWH_PX),
    "SEGS": (((200, 400), [SimpleNamespace(bbox=np.array([100, 100, 300, 200]), label="cat")]), YXYX_1000),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_its_box_and_its_phrase(source):
    boxes, box_format = SOURCES[source]
    found, warnings = read(boxes, box_format)
    assert found == [(BOX, "cat")] and not warnings


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("SEGS", "Grounding DINO")])
def test_the_same_as_json_text_and_in_a_code_fence(source):
    boxes, box_format = SOURCES[source]
    for text in (json.dumps(boxes), f"Here it is:\n```json\n{json.dumps(boxes)}\n```"):
        (only,) = from_json(text, *SIZE, box_format=box_format).instances
        assert only.box == pytest.approx(BOX) and only.phrase == "cat"


@pytest.mark.parametrize(
    "row, box_format",
    [
        ([100, 100, 300, 200, 0.9, 15], XYXY_PX),  # score, class
        ([100, 100, 300, 200, 15, 0.9], XYXY_PX),
        ([100, 100, 300, 200, 0.9], XYXY_PX),
        ([100, 100, 300, 200, 7, 0.9, 15], XYXY_PX),  # with a track
        ([15, 0.5, 0.75, 0.5, 0.5], CXCYWH),  # a line of YOLO labels
        ([0, 0.5, 0.75, 0.5, 0.5, 0.9], CXCYWH),
        ([0.5, 0.75, 0.5, 0.5], CXCYWH),
        ([200, 150, 200, 100], CXCYWH_PX),
        ([250, 500, 750, 1000], XYXY_1000),
        ([0.25, 0.5, 0.75, 1.0, 0.9], XYXY),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_rows_with_score_and_class(row, box_format, as_tensor):
    boxes = torch.tensor([row], dtype=torch.float64) if as_tensor else [row]
    assert read(boxes, box_format, ["cat"])[0] == [(BOX, "cat")]


def test_the_words_of_a_text_element_are_quoted():
    words = {"type": "text", "bbox": [500, 250, 1000, 750], "text": "OPEN"}
    assert read([words])[0] == [(BOX, '"OPEN"')]
    assert read([{**words, "desc": "a neon sign"}])[0] == [(BOX, 'a neon sign, "OPEN"')]


def test_written_phrases_replace_labels():
    assert read({"bboxes": [[100, 100, 300, 200]], "labels": ["cat"]}, phrases=["a grey cat"])[0] == [(BOX, "a grey cat")]


def test_corners_in_the_default_format_are_pointed_out():
    found = [[231.9, 0.4, 747, 766.8], [302.6, 0.4, 671.2, 282.2]]
    _, warnings = read(found, phrases=["human", "hair"], size=(1024, 768))
    assert "would also be valid as x0 y0 x1 y1" in warnings[0]
    assert not read(found, XYXY_PX, phrases=["human", "hair"], size=(1024, 768))[1]


def test_boxes_of_a_larger_image_are_pointed_out():
    across = [[50, 50, 100, 100], [400, 300, 900, 700]]
    layout = from_boxes(across, ["a", "b"], XYXY_PX, 512, 512)
    assert layout.instances.items[1].box == pytest.approx((400 / 512, 300 / 512, 1, 1))
    assert "1 of 2 boxes leave the image and are cut off (2)" in layout.warnings[0]
    assert not from_boxes([[-2, 0, 514, 512]], ["a"], XYXY_PX, 512, 512).warnings  # detectors are a pixel or two off
    with pytest.raises(ValueError, match="outside the image"):
        from_boxes([[600, 0, 700, 100]], ["a"], XYXY_PX, 512, 512)


@pytest.mark.parametrize(
    "boxes, box_format, says",
    [
        ([[100, 100, 300, 200]], XYXY, "choose a pixel format"),
        ([[0.1, 0.2, 5, 0.9]], XYXY, "choose a pixel format"),
        ([[0.1, 0.2, 0.5, 0.9]], XYXY_PX, "choose a format with 0-1"),
        ([{"bbox_2d": [10, 20, 1500, 900], "label": "cat"}], XYXY_1000, "numbers above 1000"),
        ([[100, 100, 300, 200, 5]], XYXY_PX, "then a score"),
        ({"bboxes": [[1, 2, 30, 40]], "labels": ["a", "b"]}, XYXY_PX, "1 boxes but 2 labels"),
        ([[1, 2, float("nan"), 4]], XYXY_PX, "four finite numbers"),
        ([{"bbox_2d": [1, 2, 3], "label": "cat"}], XYXY_PX, "four finite numbers"),
        ([{"label": "cat"}], XYXY_PX, "Invalid box:"),
        ([[100, 100, 300, 200]], "pixels", "choose one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(boxes, box_format, says):
    with pytest.raises(ValueError, match=says):
        read(boxes, box_format, ["cat"])


def test_boxes_of_several_images():
    first, second = {"bboxes": [[100, 100, 300, 200]], "labels": ["cat"]}, {"bboxes": [[0, 0, 100, 100]], "labels": ["dog"]}
    found, warnings = read([first, second])
    assert [phrase for _, phrase in found] == ["cat", "dog"] and "2 images" in warnings[0]
    assert read([first, second], image_index=1) == ([((0, 0, 0.25, 0.5), "dog")], [])
    lists = [[{"x": 100, "y": 100, "width": 200, "height": 100, "label": "cat"}], []]
    assert read(lists, image_index=0)[0] == [(BOX, "cat")] and read(lists, image_index=1)[0] == []
    with pytest.raises(ValueError, match="image_index is 2"):
        read([first, second], image_index=2)
