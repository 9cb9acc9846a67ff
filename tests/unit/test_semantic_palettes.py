from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from pack.py.playground import world
from pack.py.semantic.palettes import (
    MAX_CLASSES,
    PALETTE_NAMES,
    VOID,
    Palette,
    bit_colour,
    named_palette,
    own_palette,
    palette_of_colours,
    parse_colour,
    synonyms,
)
from pack.py.semantic.semantic_map import SemanticMap, broadcast_batch


@pytest.mark.parametrize(
    "name, classes, first, last",
    [
        ("Cityscapes / BDD100K", 19, ("road", (128, 64, 128)), ("bicycle", (119, 11, 32))),
        ("ADE20K", 150, ("wall", (120, 120, 120)), ("flag", (92, 0, 255))),
        ("COCO-Stuff", 182, ("person", (128, 0, 0)), ("wood", bit_colour(182))),
        ("CelebAMask-HQ", 19, ("background", (0, 0, 0)), ("cloth", (0, 204, 0))),
        (
            "playground",
            len(world.CLASSES),
            ("backdrop", (128, 128, 128)),
            (list(world.CLASSES)[-1], list(world.CLASSES.values())[-1]),
        ),
    ],
)
def test_named_palettes_have_their_published_classes(name, classes, first, last):
    palette = named_palette(name)
    assert len(palette.names) == classes
    assert (palette.names[0], palette.colours[0]) == first
    assert (palette.names[-1], palette.colours[-1]) == last
    assert palette.void_colour not in palette.colours


def test_some_official_entries_stand_where_their_authors_put_them():
    ade, coco, faces = (named_palette(name) for name in ("ADE20K", "COCO-Stuff", "CelebAMask-HQ"))
    assert [ade.find(name) for name in ("sky", "person", "sofa", "bicycle")] == [2, 12, 23, 127]
    assert [coco.find(name) for name in ("street sign", "toothbrush", "banner", "sky-other", "road")] == [11, 89, 91, 156, 148]
    assert [faces.find(name) for name in ("skin", "hair", "hat", "neck")] == [1, 13, 14, 17]
    assert named_palette("Cityscapes / BDD100K").colours[10] == (70, 130, 180)


def test_few_palettes_draw_two_classes_in_one_colour():
    doubles = {name: len(named_palette(name).colours) - len(set(named_palette(name).colours)) for name in PALETTE_NAMES}
    known = {"ADE20K": 1, "OneFormer ADE20K": 2, "Cityscapes label IDs": 5}
    assert doubles == {name: known.get(name, 0) for name in PALETTE_NAMES}


def test_bit_colours_follow_the_voc_rule():
    assert [bit_colour(index) for index in (0, 1, 2, 4, 8, 15, 64, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (0, 0, 128),
        (64, 0, 0),
        (192, 128, 128),
        (32, 0, 0),
        (224, 224, 192),
    ]
    assert len({bit_colour(index) for index in range(256)}) == 256


def test_names_are_found_whatever_their_case_and_separators():
    palette = named_palette("Cityscapes / BDD100K")
    assert palette.find(" Traffic_Light ") == palette.find("traffic-light") == 6
    assert palette.find("void") == palette.find("Unlabeled") == VOID
    assert palette.find("unicorn") is None
    assert palette.label("13", "rules") == 13


def test_an_unknown_name_says_what_comes_close():
    with pytest.raises(ValueError, match=r"classes: 'vegtation' .*'Cityscapes.*Did you mean 'vegetation'"):
        named_palette("Cityscapes / BDD100K").label("vegtation", "classes")
    with pytest.raises(ValueError, match="Its classes are: road, sidewalk"):
        named_palette("Cityscapes / BDD100K").label("19", "classes")


def test_an_unknown_palette_lists_the_known_ones():
    with pytest.raises(ValueError, match="'VOC' is not known; choose one of: Cityscapes"):
        named_palette("VOC")


def test_a_new_class_gets_a_colour_of_its_own_until_the_labels_run_out():
    palette = own_palette()
    for index in range(MAX_CLASSES):
        palette = palette.with_class(f"class {index}")
    assert len(set(palette.colours)) == MAX_CLASSES and palette.void_colour not in palette.colours
    with pytest.raises(ValueError, match="256 classes; a semantic map holds at most 255"):
        palette.with_class("one too many")


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a, b", "a -> b", "a\nb"])
def test_names_that_lists_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match="class name"):
        own_palette().with_class(name)


def test_a_name_may_hold_any_script():
    palette = own_palette().with_class("\u7a7a").with_class("\U0001f697").with_class("\u05e9\u05de\u05d9\u05dd")
    assert palette.find("\U0001f697") == 1


def test_a_palette_refuses_what_cannot_be_one():
    with pytest.raises(ValueError, match="'sea' occurs twice"):
        Palette("mine", ("Sea", "sea"), ((0, 0, 1), (0, 0, 2)))
    with pytest.raises(ValueError, match="1 names but 2 colours"):
        Palette("mine", ("sea",), ((0, 0, 1), (0, 0, 2)))
    with pytest.raises(ValueError, match=r"outside 0\.\.255"):
        Palette("mine", ("sea",), ((0, 0, 256),))


def test_void_takes_a_colour_that_no_class_has():
    assert palette_of_colours([(0, 0, 0), (255, 255, 255)]).void_colour == (128, 128, 128)
    assert own_palette().with_class("night", (0, 0, 0)).void_colour != (0, 0, 0)


@pytest.mark.parametrize("text", ["", "#12345", "red", "#gggggg", "1,2,3"])
def test_colours_are_six_hexadecimal_digits(text):
    assert parse_colour(" #ff8800") == (255, 136, 0)
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_colour(text)


def test_every_word_for_the_synonyms_belongs_to_a_palette_or_a_group():
    assert synonyms("sofa") == ("couch",) and synonyms("unicorn") == ()


def test_a_map_is_checked_and_cannot_be_changed():
    palette = named_palette("CelebAMask-HQ")
    semantic_map = SemanticMap(torch.tensor([[[0, 18, 255]]]), palette)
    assert semantic_map.labels.dtype == torch.uint8 and semantic_map.size == (1, 3) and len(semantic_map) == 1
    with pytest.raises(FrozenInstanceError):
        semantic_map.palette = own_palette()
    for labels, message in [
        (torch.tensor([[[19]]]), "label 19 is used, but the palette 'CelebAMask-HQ' ends at 18"),
        (torch.tensor([[[-1]]]), "labels from -1"),
        (torch.tensor([[[256]]]), "to 256"),
        (torch.zeros(1, 1, 1), "whole numbers"),
        (torch.zeros(0, 4, 4, dtype=torch.uint8), "at least one pixel"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"shape \(4, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            SemanticMap(labels, palette)


def test_counts_and_shares_are_of_each_map():
    semantic_map = SemanticMap(torch.tensor([[[0, 0, 1, 255]], [[1, 1, 1, 1]]]), named_palette("playground"))
    assert semantic_map.counts()[:, [0, 1, 255]].tolist() == [[2, 1, 1], [0, 4, 0]]
    assert semantic_map.shares().sum(dim=1).tolist() == [1.0, 1.0]


def test_batches_match_or_one_of_them_is_one():
    assert broadcast_batch(1, 3, "a", "b") == broadcast_batch(3, 1, "a", "b") == broadcast_batch(3, 3, "a", "b") == 3
    with pytest.raises(ValueError, match="mask holds 2 images, semantic_map 3"):
        broadcast_batch(2, 3, "mask", "semantic_map")
