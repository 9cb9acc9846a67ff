"""The layout editor's node without its editor: JSON in, instances, size and masks out."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from pack.nodes.instance_layout import ExemplaryInstanceLayout as Layout
from pack.py.ifadapter.instances import Instance, Instances

TWO = json.dumps([{"box": [0, 0, 0.5, 0.25], "phrase": "a cat"}, {"box": [0.5, 0.5, 1, 1], "phrase": "a dog", "strength": 0.5}])


def test_the_text_becomes_instances_size_and_masks():
    instances, width, height, masks = Layout.execute(64, 32, TWO).args
    assert [(i.phrase, i.box, i.strength) for i in instances] == [
        ("a cat", (0.0, 0.0, 0.5, 0.25), 1.0),
        ("a dog", (0.5, 0.5, 1.0, 1.0), 0.5),
    ]
    expected = torch.zeros(2, 32, 64)
    expected[0, :8, :32] = expected[1, 16:, 32:] = 1
    assert (width, height) == (64, 32) and torch.equal(masks, expected)


def test_instances_of_other_nodes_come_first_with_their_own_masks():
    mask = torch.zeros(2, 16, 16)
    mask[0, 4, 4] = mask[1, 5, 5] = 1
    before = Instances((Instance((0.25, 0.25, 0.375, 0.375), "a bird", mask),))
    instances, _, _, masks = Layout.execute(16, 16, TWO, before).args
    assert [i.phrase for i in instances] == ["a bird", "a cat", "a dog"] and len(before) == 1
    assert torch.equal(masks[0], mask.amax(dim=0))


def test_an_ifadapter_layout_is_measured_in_the_inputs_size():
    text = json.dumps({"caption": "a room", "annotations": [{"box": [16, 8, 32, 16], "caption": "a sofa"}]})
    (only,) = Layout.execute(64, 32, text).args[0]
    assert only.box == (0.25, 0.25, 0.75, 0.75)


@pytest.mark.parametrize("text", ["", "  \n", "[]"])
def test_an_empty_layout_has_one_empty_mask(text):
    instances, _, _, masks = Layout.execute(64, 32, text).args
    assert len(instances) == 0 and masks.shape == (1, 32, 64) and not masks.any()


@pytest.mark.parametrize(
    "text, says",
    [
        ("[{", "not JSON"),
        ('[{"box": [0, 0, 1, 1], "phrase": ""}]', "has no phrase"),
        ('[{"box": [0, 0, 0, 1], "phrase": "a"}]', "has no area"),
        ('{"boxes": 3}', "Invalid box:"),
    ],
)
def test_a_layout_that_makes_no_sense_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        Layout.execute(64, 64, text)


def test_the_connected_picture_is_handed_to_the_editor_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    plain = Layout.execute(64, 32, TWO)
    shown = Layout.execute(64, 32, TWO, image=torch.rand(3, 8, 8, 3))
    (saved,) = shown.ui["exemplary_background"]
    assert saved["type"] == "temp" and Path(tmp_path, saved["subfolder"], saved["filename"]).is_file()
    assert plain.ui is None and torch.equal(plain.args[3], shown.args[3])


def test_without_the_editor_the_input_is_an_ordinary_string():
    kind, options = Layout.INPUT_TYPES()["required"]["layout"]
    assert kind == "STRING" and options["widgetType"] == "EXEMPLARY_LAYOUT" and options["default"] == "[]"
