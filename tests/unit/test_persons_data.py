"""Data of persons for trainers: every form of a mask says the same, the crop takes masks along, and wrong data say what is wrong."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from pack.lab.training.augmentation import Augmentation
from pack.lab.training.persons_data import MARKER, load_persons, read_persons
from PIL import Image

CAPTION = f"a man {MARKER} and a woman {MARKER} at home"
LEFT, RIGHT = [10, 4, 30, 4, 30, 36, 10, 36], [50.0, 10.0, 70.0, 10.0, 70.0, 36.0, 50.0, 36.0]


def png(array):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def mask_of(polygon):
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[int(polygon[1]) : int(polygon[5]) + 1, int(polygon[0]) : int(polygon[2]) + 1] = 255
    return mask


def runs_of(mask):
    """COCO's run lengths of a mask, down the columns."""
    flat = (mask > 0).T.flatten()
    edges = np.flatnonzero(np.diff(flat)) + 1
    ends = [0, *edges.tolist(), flat.size]
    return ([0] if flat[0] else []) + np.diff(ends).tolist()


def compressed(runs):
    """COCO's text of run lengths, written from its description: the second difference in groups of five bits, lowest first."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def write(folder, annotations, caption=CAPTION, **image):
    pixels = np.stack([mask_of(LEFT), mask_of(RIGHT), np.full((40, 80), 90, dtype=np.uint8)], axis=-1)
    (folder / "one.png").write_bytes(png(pixels))
    content = {
        "images": [{"id": 1, "file_name": "one.png", **({"caption": caption} if caption else {}), **image}],
        "annotations": [{"image_id": 1, **annotation} for annotation in annotations],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return str(folder / "data.json")


FORMS = {
    "polygons": lambda polygon: {"segmentation": [polygon]},
    "one polygon": lambda polygon: {"segmentation": polygon},
    "runs": lambda polygon: {"segmentation": {"size": [40, 80], "counts": runs_of(mask_of(polygon))}},
    "text": lambda polygon: {"segmentation": {"size": [40, 80], "counts": compressed(runs_of(mask_of(polygon)))}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_in_any_form_is_where_its_person_is(tmp_path, form):
    (entry,) = read_persons(write(tmp_path, [FORMS[form](LEFT), FORMS[form](RIGHT)]))
    assert entry.caption == CAPTION and len(entry.persons) == 2
    for person, polygon in zip(entry.persons, (LEFT, RIGHT)):
        np.testing.assert_array_equal(np.asarray(person.load_mask(Image.new("RGB", (80, 40)), "mask")), mask_of(polygon))


def test_masks_are_files_too_and_the_crop_takes_them_along(tmp_path):
    for name, polygon in (("a.png", LEFT), ("b.png", RIGHT)):
        (tmp_path / name).write_bytes(png(mask_of(polygon)))
    (entry,) = read_persons(write(tmp_path, [{"mask": "a.png"}, {"mask": "b.png"}]))
    found = load_persons(entry, side=40)  # of 80x40 the columns 20..60 are left
    assert found.pixels.shape == (40, 40, 3) and found.masks.shape == (2, 40, 40)
    np.testing.assert_array_equal(found.masks[0].numpy() * 255, mask_of(LEFT)[:, 20:60])
    (picture, mask), _ = found.portraits
    assert picture.shape == (33, 21, 3) and mask.shape == (33, 21) and float(mask.min()) == 1, "the person as a whole"
    assert float(picture[..., 0].min()) == 1, "the part of the picture that the mask is on"
    far = load_persons(read_persons(write(tmp_path, [{"segmentation": [0, 4, 12, 4, 12, 36]}], f"a man {MARKER}"))[0], side=40)
    assert far.masks.max() == 0 and len(far.portraits) == 1, "cut away, but known"


def test_polygons_follow_the_size_that_they_were_drawn_in(tmp_path):
    half = [edge / 2 for edge in RIGHT]
    (entry,) = read_persons(write(tmp_path, [{"segmentation": [half]}], f"a woman {MARKER}", width=40, height=20))
    np.testing.assert_array_equal(np.asarray(entry.persons[0].load_mask(Image.new("RGB", (80, 40)), "mask")), mask_of(RIGHT))


def test_shards_give_the_same(tmp_path):
    with tarfile.open(tmp_path / "part-0.tar", "w") as archive:
        described = {"caption": f"a man {MARKER}", "annotations": [{"mask": "1.png"}]}
        files = {"x.png": png(np.zeros((40, 80, 3), dtype=np.uint8)), "x.1.png": png(mask_of(LEFT))}
        for name, data in (files | {"x.json": json.dumps(described).encode()}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (entry,) = read_persons(str(tmp_path / "part-*.tar"))
    np.testing.assert_array_equal(np.asarray(entry.persons[0].load_mask(Image.new("RGB", (80, 40)), "mask")), mask_of(LEFT))


def test_captions_may_be_annotations_and_scenes_need_nothing_else(tmp_path):
    data = write(tmp_path, [{"segmentation": [LEFT]}, {"caption": f"a man {MARKER}"}], caption=None)
    assert read_persons(data)[0].caption == f"a man {MARKER}"
    data = write(tmp_path, [{"caption": "an empty street"}], caption=None)
    assert [entry.caption for entry in read_persons(data, with_persons=False)] == ["an empty street"]
    with pytest.raises(ValueError, match="no image has both a caption with a marker"):
        read_persons(data)


@pytest.mark.parametrize(
    "annotations, caption, says",
    [
        ([{"segmentation": [LEFT]}], CAPTION, r"one\.png: its caption has 2 markers .* 1 persons have masks"),
        ([{"segmentation": [LEFT]}], "a man", "has 0 markers"),
        ([{"segmentation": [[1, 2, 3]]}], f"a man {MARKER}", "person 1: a polygon .* three or more corners"),
        ([{"segmentation": [[1, 2, "x", 4, 5, 6]]}], f"a man {MARKER}", "three or more corners"),
        ([{"segmentation": {"size": [40, 80], "counts": [7]}}], f"a man {MARKER}", "7 pixels, the mask has 40 x 80"),
        ([{"segmentation": {"counts": "a"}}], f"a man {MARKER}", "cannot be read as COCO.s run lengths"),
        ([{"mask": "gone.png"}], f"a man {MARKER}", r"names gone\.png, which is not in"),
        ([{"mask": "one.json"}], f"a man {MARKER}", r"names one\.json"),
    ],
)
def test_wrong_data_are_named_before_training(tmp_path, annotations, caption, says):
    with pytest.raises(ValueError, match=says):
        read_persons(write(tmp_path, annotations, caption))


@pytest.mark.parametrize("content, says", [("[]", "not data of persons"), ("no", "not data of persons"), ("{}", "annotations")])
def test_other_files_say_what_is_wrong(tmp_path, content, says):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_persons(str(tmp_path / "data.json"))
    with pytest.raises(ValueError, match="no data file"):
        read_persons(str(tmp_path / "other.json"))


def test_a_mask_that_is_empty_or_no_picture_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((40, 80), dtype=np.uint8)))
    (tmp_path / "b.png").write_bytes(b"nothing")
    for name, says in (("a.png", r"one\.png: the mask of person 1 is empty"), ("b.png", "the mask of person 1 cannot be read")):
        (entry,) = read_persons(write(tmp_path, [{"mask": name}], f"a man {MARKER}"))
        with pytest.raises(ValueError, match=says):
            load_persons(entry, 40)


def test_portraits_are_zoomed_and_tinted_where_asked():
    squares = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    nothing = {"flip": 0, "rotate": 0, "blur": 0, "warp": 0}
    rng = torch.Generator().manual_seed(1)
    grey = Augmentation(**nothing, grey=1)(squares, rng)
    torch.testing.assert_close(grey, squares.mean(dim=1, keepdim=True).expand_as(squares), rtol=0, atol=1e-4)
    tinted = Augmentation(**nothing, colour=1)(squares, rng)
    assert tinted.min() >= 0 and tinted.max() <= 1 and not torch.allclose(tinted, squares, atol=1e-2)
    ramp = torch.linspace(0, 1, 16).expand(8, 3, 16, 16)
    zoomed = Augmentation(**nothing, zoom=1)(ramp, rng)
    spans = zoomed[:, 0, 8].amax(dim=-1) - zoomed[:, 0, 8].amin(dim=-1)
    assert spans.max() < 1 and spans.min() > 0.4, "a part of the picture, at most twice as large"
