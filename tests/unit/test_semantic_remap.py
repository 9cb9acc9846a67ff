from __future__ import annotations

import pytest
import torch
from pack.py.semantic.palettes import PALETTE_NAMES, VOID, named_palette
from pack.py.semantic.remap import Rule, match_name, parse_rules, remap
from pack.py.semantic.semantic_map import SemanticMap

CITY = named_palette("Cityscapes / BDD100K")


def one_row(*names, palette=CITY):
    return SemanticMap(torch.tensor([[[palette.find(name) for name in names]]]), palette)


def row_names(semantic_map):
    return [semantic_map.palette.class_name(label) for label in semantic_map.labels.flatten().tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_there_and_back_is_the_same_map(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 20, (2, 9, 11), generator=generator)
    labels[labels == 19] = VOID
    semantic_map = SemanticMap(labels, CITY)
    order = torch.randperm(19, generator=generator).tolist()
    there = "\n".join(f"{CITY.names[a]} -> {CITY.names[b]}" for a, b in enumerate(order))
    back = "\n".join(f"{CITY.names[b]} -> {CITY.names[a]}" for a, b in enumerate(order))
    moved = remap(semantic_map, there).semantic_map
    assert torch.equal(moved.labels, torch.tensor([*order, *[VOID] * 237])[labels].byte())
    assert torch.equal(remap(moved, back).semantic_map.labels, semantic_map.labels)


@pytest.mark.parametrize("name", PALETTE_NAMES)
def test_a_palette_matches_itself(name):
    palette = named_palette(name)
    assert [match_name(word, palette) for word in palette.names] == list(range(len(palette.names)))


def test_no_rules_and_no_palette_change_nothing():
    semantic_map = one_row("road", "void", "car")
    result = remap(semantic_map)
    assert torch.equal(result.semantic_map.labels, semantic_map.labels) and result.report() == "No class changed."


def test_a_swap_is_two_rules():
    assert row_names(remap(one_row("car", "bus", "sky"), "car -> bus\nbus -> car").semantic_map) == ["bus", "car", "sky"]


def test_rules_may_be_json_or_use_another_arrow():
    lines = remap(one_row("car", "truck", "rider"), "car, truck -> bus\nrider \u2192 void").semantic_map
    json = remap(one_row("car", "truck", "rider"), '{"car, truck": "bus", "rider": null}').semantic_map
    assert row_names(lines) == row_names(json) == ["bus", "bus", "void"]


def test_the_star_is_every_class_without_a_rule_of_its_own():
    rules = ["* -> building", "sky -> sky"]
    for text in ("\n".join(rules), "\n".join(reversed(rules))):
        assert row_names(remap(one_row("sky", "car", "void"), text).semantic_map) == ["sky", "building", "void"]


def test_void_can_become_a_class():
    assert row_names(remap(one_row("void", "car"), "void -> sky").semantic_map) == ["sky", "car"]


def test_a_colour_declares_a_new_class():
    result = remap(one_row("car", "bus", "sky"), "car -> vehicle #0000ff\nbus -> vehicle").semantic_map
    assert row_names(result) == ["vehicle", "vehicle", "sky"]
    assert result.palette.colours[-1] == (0, 0, 255) and result.palette.names[:19] == CITY.names


def test_another_palette_takes_names_and_meanings():
    result = remap(one_row("road", "vegetation", "motorcycle", "rider", "void"), palette=named_palette("ADE20K"))
    assert row_names(result.semantic_map) == ["road", "tree", "minibike", "void", "void"]
    assert result.unmatched == ("rider",)
    assert "vegetation -> tree" in result.report() and "now void: rider" in result.report()


def test_a_rule_goes_before_the_name():
    result = remap(one_row("road", "rider", "sky"), "rider -> person\nsky -> sea", named_palette("ADE20K"))
    assert row_names(result.semantic_map) == ["road", "person", "sea"] and result.unmatched == ()


def test_the_map_is_not_touched():
    semantic_map = one_row("car", "bus")
    before = semantic_map.labels.clone()
    remap(semantic_map, "car -> bus")
    assert torch.equal(semantic_map.labels, before) and semantic_map.palette is CITY


@pytest.mark.parametrize(
    "rules, message",
    [
        ("car", "line 1 is 'car'; write one arrow a line"),
        ("car -> bus\ncar -> bus -> van", "line 2"),
        ("car ->", "lacks a side; to erase a class, write: car -> void"),
        ("-> car", "lacks a side"),
        ("unicorn -> car", "rules: 'unicorn' is not a class of the palette 'Cityscapes"),
        ("car -> vehicle", "rules: 'vehicle' is not a class"),
        ("car -> bus\ncar -> truck", "'car' goes both to 'bus' and to 'truck'"),
        ("car -> road #0000ff", "'road' is already a class"),
        ('{"car": ', "not valid JSON .line 1, column"),
        ('["car", "bus"]', "the JSON is a list. Write an object"),
        ('{"car": 3}', "'car' goes to 3, which is not a text"),
    ],
)
def test_bad_rules_are_quoted(rules, message):
    with pytest.raises(ValueError, match=message):
        remap(one_row("car"), rules)


def test_rules_are_read_as_written():
    assert parse_rules("\n a , b->c \n") == [Rule("a , b", "c")]
    assert parse_rules("#804080 -> #ff0000") == [Rule("#804080", "#ff0000")]
    assert parse_rules("a -> b c #ff0000") == [Rule("a", "b c", (255, 0, 0))]
    assert parse_rules("") == []
