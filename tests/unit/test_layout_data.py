"""Layout data for trainers: both forms give the same pictures, boxes follow the crop, and a wrong file says what it lacks."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from pack.lab.training.layout_data import load_layout, read_layouts
from PIL import Image


def picture(width=80, height=40):
    """Left half black, right half white."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 255
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "one.png").write_bytes(picture())
    content = {
        "images": [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "nothing.png"}],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "caption": "black and white"},
            {"image_id": 1, "bbox": [40, 0, 20, 40], "caption": "a white half"},
            {"image_id": 1, "bbox": [20, 10, 10, 10], "category_id": 7},
            {"image_id": 1, "bbox": [0, 0, 10, 40], "caption": "outside of the middle"},
            {"image_id": 1, "bbox": [30, 30, 1, 1], "caption": "too small"},
            {"image_id": 2, "caption": "no box"},
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    return tmp_path


def test_a_coco_file_gives_pictures_with_both_kinds_of_captions(coco):
    (entry,) = read_layouts(str(coco / "data.json"))
    found = load_layout(entry, side=20, max_boxes=10)
    assert found.caption == "black and white" and found.phrases == ("a white half", "dog")
    # 80x40 becomes 40x20, of which 10..30 is kept: pixel 40 is the middle, pixel 20 the left edge.
    assert found.boxes[0] == pytest.approx((0.5, 0.0, 1.0, 1.0)) and found.boxes[1] == pytest.approx((0.0, 0.25, 0.25, 0.5))
    assert found.pixels.shape == (20, 20, 3)
    assert float(found.pixels[:, :8].max()) < 0.1 and float(found.pixels[:, 12:].min()) > 0.9
    assert load_layout(entry, side=20, max_boxes=1).phrases == ("a white half",), "the largest stay"


def test_shards_give_the_same(coco):
    (expected,) = read_layouts(str(coco / "data.json"))
    described = {
        "caption": expected.caption,
        "annotations": [{"bbox": b, "caption": [p]} for b, p in zip(expected.boxes, expected.phrases)],
    }
    for number in range(2):
        with tarfile.open(coco / f"part-{number}.tar", "w") as archive:
            for name, data in ((f"k{number}.png", picture()), (f"k{number}.json", json.dumps(described).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    found = read_layouts(str(coco / "part-*.tar"))
    assert len(found) == 2
    one, other = (load_layout(entry, 20, 10) for entry in (found[1], expected))
    assert (one.caption, one.boxes, one.phrases) == (other.caption, other.boxes, other.phrases)
    assert bool((one.pixels == other.pixels).all())


@pytest.mark.parametrize(
    "content, says",
    [
        ("[]", "not layout data"),
        ("{}", "annotations"),
        ("no", "not layout data"),
        ('{"images": [], "annotations": []}', "no image has a box"),
    ],
)
def test_other_files_say_what_is_wrong(tmp_path, content, says):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_layouts(str(tmp_path / "data.json"))
    with pytest.raises(ValueError, match="no data file"):
        read_layouts(str(tmp_path / "other.json"))


def test_a_picture_that_cannot_be_read_is_named(coco):
    (coco / "one.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"one.png cannot be read"):
        load_layout(read_layouts(str(coco / "data.json"))[0], 20, 10)
