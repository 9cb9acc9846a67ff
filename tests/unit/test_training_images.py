"""Images of a training are upright, bounded and belong to their maps; whatever cannot be read is named."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from pack.lab.training.checkpoints import load_checkpoint, save_checkpoint
from pack.lab.training.images import open_rgb
from pack.lab.training.layout_data import load_layout, read_layouts
from pack.lab.training.paired_data import pairs_in_folders
from pack.lab.training.persons_data import load_persons, read_persons
from pack.lab.training.recipe import prepare_output
from PIL import Image

UPRIGHT = np.zeros((60, 40, 3), dtype=np.uint8)
UPRIGHT[:30] = (250, 0, 0)  # the upper half is red


def lying_jpeg() -> bytes:
    """The upright image as phones store it: 60 x 40 pixels, orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(np.rot90(UPRIGHT).copy()).save(data, "JPEG", exif=exif, quality=95)
    return data.getvalue()


def png(array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def pair(tmp_path):
    def make(image: bytes, labels: bytes):
        for folder, name, data in (("images", "a.jpg", image), ("maps", "a.png", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(data)
        return pairs_in_folders(tmp_path / "images", tmp_path / "maps")[0]

    return make


def test_a_photo_that_its_exif_turns_is_upright_in_every_reader(tmp_path, pair):
    labels = np.repeat(np.array([1, 2], dtype=np.uint8), 30)[:, None].repeat(40, 1)
    pixels, numbers = pair(lying_jpeg(), png(labels)).load_labels(32, torch.Generator().manual_seed(0))
    red = pixels[0] > 0
    assert ((numbers == 1) == red).float().mean() > 0.95, "the map lies on its image"
    image, colours, _ = pair(lying_jpeg(), png(UPRIGHT)).load_colours()
    assert image.shape == colours.shape == (60, 40, 3) and float((image - colours).abs().mean()) < 0.05
    (tmp_path / "a.jpg").write_bytes(lying_jpeg())
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "caption": "a <|image|>"}],
        "annotations": [
            {"image_id": 1, "bbox": [0, 10, 40, 20], "caption": "red", "segmentation": [0, 10, 40, 10, 40, 30, 0, 30]}
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    found = load_layout(read_layouts(str(tmp_path / "data.json"))[0], 40, 1)
    assert found.boxes[0] == pytest.approx((0, 0, 1, 0.5)) and float(found.pixels[:18, :, 0].min()) > 0.8
    persons = load_persons(read_persons(str(tmp_path / "data.json"))[0], 40)
    assert persons.masks[0, 1:20].min() == 1 and persons.masks[0, 22:].max() == 0


def test_annotations_of_the_lying_photo_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(lying_jpeg())
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 10, 10], "caption": "red"}],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a.jpg: its annotations refer to 60 x 40 pixels, the upright image has 40 x 60"):
        load_layout(read_layouts(str(tmp_path / "data.json"))[0], 40, 1)


def test_a_map_of_other_proportions_is_refused_and_a_smaller_one_is_not(pair):
    with pytest.raises(ValueError, match=r"the map of a.jpg has 60 x 40 pixels, the image 40 x 60"):
        pair(png(UPRIGHT), png(np.zeros((40, 60), np.uint8))).load_labels(32, torch.Generator())
    pair(png(UPRIGHT), png(np.zeros((30, 20), np.uint8))).load_labels(32, torch.Generator())


def test_maps_of_the_other_kind_are_refused(pair):
    with pytest.raises(ValueError, match=r"the map of a.jpg has one channel of labels"):
        pair(png(UPRIGHT), png(np.zeros((60, 40), np.uint8))).load_colours()
    with pytest.raises(ValueError, match=r"the map of a.jpg has colours"):
        pair(png(UPRIGHT), png(UPRIGHT)).load_labels(32, torch.Generator())


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"bomb.png cannot be read as an image: .*400000000 pixels"):
        open_rgb("bomb.png", lambda: bomb)


def test_sixteen_bits_become_eight():
    image = open_rgb("x.png", lambda: png(np.full((2, 2), 0x80FF, dtype=np.uint16)))
    assert image.getpixel((0, 0)) == (0x80, 0x80, 0x80)


def test_run_lengths_of_a_mask_beyond_the_bound_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(UPRIGHT))
    runs = {"size": [400_000, 400_000], "counts": [0, 160_000_000_000]}
    content = {"images": [{"id": 1, "file_name": "a.png", "caption": "a <|image|>"}]}
    content["annotations"] = [{"image_id": 1, "segmentation": runs}]
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the mask has 400000 x 400000 pixels"):
        read_persons(str(tmp_path / "data.json"))


@pytest.mark.parametrize("data", [7, None, [], [3], "no.json", "."])
def test_data_of_another_kind_are_named(data):
    with pytest.raises(ValueError, match=r"data is|no data file|is a folder"):
        read_layouts(data)


@pytest.mark.parametrize(
    "annotation, says",
    [
        ({"bbox": "a"}, "bbox is 'a'; it must be a list of four finite numbers"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "a"]}, "it must be a list of four finite numbers"),
        ({"bbox": [1, 2, 0, 5]}, "no image has a box with a caption and an area above 0"),
        ({"bbox": [1, 2, 5, 5], "caption": 7}, "a caption is 7; it must be a text"),
    ],
)
def test_wrong_boxes_are_named_with_their_file(tmp_path, annotation, says):
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x", **annotation}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says) as found:
        read_layouts(str(tmp_path / "data.json"))
    assert "data.json" in str(found.value)


def test_boxes_without_area_are_left_out_with_a_warning(tmp_path, caplog):
    annotations = [{"image_id": 1, "caption": "x", "bbox": box} for box in ([1, 1, 5, 5], [1, 1, 0, 5])]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations}
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert read_layouts(str(tmp_path / "data.json"))[0].boxes == ((1, 1, 5, 5),)
    assert "Boxes without area are left out in 1 images, the first is a.png" in caplog.text


def test_an_output_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "a\0b"):
        with pytest.raises(ValueError, match=r"output is .* cannot be written to"):
            prepare_output(output)
    assert prepare_output(tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 cut off", "is damaged"),
        ([1, 2], "not a checkpoint of this trainer"),
        ({"modules": {}, "optimizer": {}, "average": {}, "step": 1}, "belongs to another training"),
        (
            {"modules": {"line": torch.nn.Linear(3, 1).state_dict()}, "optimizer": {}, "average": {}, "step": 1},
            "another training",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_kept(tmp_path, content, says):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says) as found:
        load_checkpoint(path, {"line": torch.nn.Linear(2, 1)})
    assert "weights_only" not in str(found.value) and "Rename or delete it" in str(found.value) and path.read_bytes() == before


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"older")

    def full(state, target):
        target.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"x.ckpt cannot be written .*MiB are free there.*The checkpoint before it is kept"):
        save_checkpoint(path, {})
    assert path.read_bytes() == b"older" and not list(tmp_path.glob("*.part"))
