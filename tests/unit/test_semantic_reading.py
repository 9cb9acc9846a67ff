"""Label images as other tools write them: numbers, offsets, void 255, golden-angle and face parsers' colours, swapped channels."""

from __future__ import annotations

import io as bytes_io

import numpy as np
import pytest
import torch
from pack.py.semantic.label_files import load_label_file, save_label_png
from pack.py.semantic.palettes import AUTOMATIC_NAME, PALETTE_NAMES, VOID, Palette, named_palette
from pack.py.semantic.preview import reading_report
from pack.py.semantic.reading import read_labels
from PIL import Image


def areas(values, side=16):
    """[1, side, n side] uint8: a square of each value."""
    return np.repeat(np.repeat(np.array([values], dtype=np.uint8), side, axis=1), side, axis=0)[None]


def grey_image(values):
    return torch.from_numpy(areas(values).astype(np.float32) / 255)[..., None].expand(-1, -1, -1, 3)


def colour_image(colours):
    row = torch.tensor(colours, dtype=torch.float32)[None] / 255
    return row.repeat_interleave(16, dim=1).repeat_interleave(16, dim=0)[None]


def labels_of(reading):
    return reading.semantic_map.labels[0, 8, 8::16].tolist()


# C01


def test_the_colours_of_the_oneformer_nodes_give_ade20k_names():
    """wall, building, sky, tree, road, person, car; colours by OpenCV's 8-bit HSV to RGB of the published rule."""
    expected = ["wall", "building", "sky", "tree", "road", "person", "car"]
    colours = [(0, 0, 0), (51, 255, 110), (125, 35, 178), (36, 154, 178), (102, 178, 71), (102, 178, 71), (71, 120, 178)]
    palette = named_palette("OneFormer ADE20K")
    found = read_labels(colour_image([palette.colours[i] for i in (0, 1, 2, 4, 6, 12, 20)]), "OneFormer ADE20K")
    assert [found.semantic_map.names[label] for label in labels_of(found)] == expected
    assert palette.colours[0] == colours[0] and palette.colours[4] == colours[3]
    coco = read_labels(colour_image([palette.colours[i] for i in (0, 1, 2, 4, 6, 12, 20)]), "OneFormer COCO panoptic")
    assert [coco.semantic_map.names[label] for label in labels_of(coco)][:2] == ["person", "bicycle"]


def test_a_colour_that_opencv_rounds_otherwise_is_still_its_class():
    palette = named_palette("OneFormer COCO panoptic")
    moved = [tuple(min(255, channel + 1) for channel in colour) for colour in palette.colours]
    assert labels_of(read_labels(colour_image(moved), palette.name)) == list(range(133))


def test_the_advice_names_the_oneformer_nodes():
    image = colour_image([named_palette("OneFormer ADE20K").colours[i] for i in (1, 2, 4, 6, 12, 20)])
    report = reading_report(read_labels(image, "ADE20K", 8.0).semantic_map, image, 8.0)
    assert "'OneFormer ADE20K' or 'OneFormer COCO panoptic'" in report.splitlines()[0]


# C02


def test_grey_values_are_class_numbers_where_they_can_be_nothing_else():
    found = read_labels(grey_image([0, 1, 12, 16, 17]), "CelebAMask-HQ")
    assert labels_of(found) == [0, 1, 12, 16, 17] and "class numbers" in found.notes[0]
    bisenet = read_labels(grey_image([0, 1, 12, 16, 17]), "BiSeNet face parsing").semantic_map
    assert [bisenet.names[label] for label in bisenet.labels[0, 8, 8::16].tolist()] == [
        "background", "skin", "u_lip", "cloth", "hair",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "palette", ["Cityscapes / BDD100K", "ADE20K", "COCO-Stuff", "playground", "COCO panoptic", "COCO-Stuff 171"]
)
def test_train_ids_with_void_255(palette):
    assert labels_of(read_labels(grey_image([0, 5, 18, 255, 10]), palette)) == [0, 5, 18, VOID, 10]


def test_annotations_in_which_0_means_other():
    certain = read_labels(grey_image([0, 1, 150, 13]), "ADE20K")  # 150 exists only if counting begins with 1
    assert labels_of(certain) == [VOID, 0, 149, 12]
    asked = read_labels(grey_image([0, 1, 13]), "ADE20K")
    assert labels_of(asked) == [0, 1, 13] and "set first_class to 1" in asked.notes[0]
    chosen = read_labels(grey_image([0, 1, 13]), "ADE20K", reading="class numbers", first_class=1)
    assert labels_of(chosen) == [VOID, 0, 12] and not chosen.notes


def test_numbers_beyond_the_palette_are_reported():
    found = read_labels(grey_image([0, 3, 40]), "Cityscapes / BDD100K", reading="class numbers")
    assert labels_of(found) == [0, 3, VOID] and "40" in found.notes[0]
    assert "look like class numbers" in read_labels(grey_image([0, 1, 40]), "Cityscapes / BDD100K").notes[0]
    assert "look like class numbers" in read_labels(grey_image([0, 1, 12]), AUTOMATIC_NAME).notes[0]


@pytest.mark.parametrize(
    ("palette", "greys", "labels"),
    [("Cityscapes / BDD100K", [70, 153], [2, 5]), ("ADE20K", [120, 140], [0, 6]), ("CelebAMask-HQ", [0, 255], [0, VOID])],
)
def test_grey_colours_of_a_palette_stay_colours(palette, greys, labels):
    found = read_labels(grey_image(greys), palette)
    assert labels_of(found) == labels and not found.notes


def test_a_grey_photo_is_no_class_numbers():
    noise = torch.rand(1, 64, 64, 1, generator=torch.Generator().manual_seed(0)) * 18 / 255
    assert not read_labels(noise, "CelebAMask-HQ").notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reading": "numbers"}, "reading is 'numbers'; choose one of"),
        ({"reading": "class numbers"}, "the image has colours"),
        ({"first_class": 300}, "first_class is 300"),
    ],
)
def test_wrong_choices_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_labels(colour_image([(255, 0, 0)]), "ADE20K", **arguments)


# C16, channel order


@pytest.mark.parametrize("name", ["face parsing (viridis)", "BiSeNet face parsing", "anime face segmentation", "Pascal VOC"])
def test_what_face_parsers_paint_is_read(name):
    palette = named_palette(name)
    assert labels_of(read_labels(colour_image(palette.colours), name)) == list(range(len(palette.names)))


def test_viridis_is_matplotlibs_at_eighteenths():
    colours = named_palette("face parsing (viridis)").colours
    assert colours[0] == (68, 1, 84) and colours[18] == (253, 231, 36) and colours[9] == (32, 144, 140)


@pytest.mark.parametrize("name", ["Cityscapes / BDD100K", "ADE20K", "COCO panoptic", "BiSeNet face parsing"])
def test_swapped_channels_are_recognised(name):
    palette = named_palette(name)
    found = read_labels(colour_image([colour[::-1] for colour in palette.colours]), name)
    right = labels_of(read_labels(colour_image(palette.colours), name))
    assert labels_of(found) == right and "BGR" in found.notes[0]


# Files


def png(image, **options):
    buffer = bytes_io.BytesIO()
    image.save(buffer, "PNG", **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", PALETTE_NAMES)
def test_a_saved_map_comes_back_with_its_palette(tmp_path, name):
    palette = named_palette(name)
    labels = torch.arange(256, dtype=torch.uint8).clamp(max=len(palette.names) - 1).view(16, 16)
    labels[0, 0] = VOID
    save_label_png(tmp_path / "map.png", labels, palette, {"prompt": "{}"})
    found = load_label_file(tmp_path / "map.png", "playground").semantic_map
    assert torch.equal(found.labels[0], labels) and found.palette == palette
    with Image.open(tmp_path / "map.png") as plain:
        assert plain.mode == "P" and plain.text["prompt"] == "{}"
        drawn = np.array(plain.convert("RGB"))
    assert np.array_equal(drawn, palette.colour_table()[labels.numpy()])
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_palette_of_ones_own_comes_back_open(tmp_path):
    palette = Palette("own classes", ("Katze \u00e4",), ((1, 2, 3),), is_open=True)
    save_label_png(tmp_path / "\u00fcber.png", torch.zeros(3, 5, dtype=torch.uint8), palette)
    assert load_label_file(tmp_path / "\u00fcber.png", "ADE20K").semantic_map.palette == palette


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "PA"])
def test_label_files_of_other_tools(tmp_path, mode):
    values = areas([0, 1, 12, 255])[0]
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values, "L")
        if mode != "L":
            image.putpalette([channel for i in range(256) for channel in ((i * 7) % 256, 3, 200)])
    image.save(tmp_path / "labels.png")
    assert load_label_file(tmp_path / "labels.png", "CelebAMask-HQ").semantic_map.labels[0, 8, 8::16].tolist() == [0, 1, 12, VOID]


def test_a_palette_png_in_the_palettes_colours_is_read_by_colour(tmp_path):
    palette = named_palette("ADE20K")
    image = Image.fromarray(areas([0, 1, 2])[0], "L")
    image.putpalette([channel for label in (12, 2, 4) for channel in palette.colours[label]])  # indices by area, as editors write
    image.save(tmp_path / "map.png")
    assert load_label_file(tmp_path / "map.png", "ADE20K").semantic_map.labels[0, 8, 8::16].tolist() == [12, 2, 4]


def test_a_turned_label_file_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(areas([3, 7])[0], "L").save(tmp_path / "map.png", exif=exif)
    found = load_label_file(tmp_path / "map.png", "CelebAMask-HQ").semantic_map
    assert found.size == (32, 16) and found.labels[0, 8::16, 8].tolist() == [3, 7]


@pytest.mark.parametrize("content", [b"", b"no image", png(Image.new("RGB", (4, 4))).getvalue()[:40]])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png: not a readable image"):
        load_label_file(tmp_path / "bad.png", "ADE20K")
