"""Every node whose name ends in Preview shows its image on itself and can be the only output of a workflow."""

from __future__ import annotations

import pytest
import torch
from comfy_api.latest import ui
from pack.nodes import ca2sis_attention, node_classes, snf
from pack.nodes.ifadapter import ExemplaryInstanceMapPreview
from pack.py.ifadapter.instances import Instances

PREVIEWS = {s.node_id: s for s in (node.define_schema() for node in node_classes()) if s.display_name.endswith("Preview")}


def test_the_previews_are_known():
    assert {
        "ExemplaryAMMatchPreview",
        "ExemplaryCA2SISAttentionPreview",
        "ExemplaryInstanceMapPreview",
        "ExemplarySaliencyPreview",
        "ExemplarySemanticMapPreview",
    } <= set(PREVIEWS)


@pytest.mark.parametrize("node_id", sorted(PREVIEWS))
def test_a_preview_runs_without_a_node_behind_it(node_id):
    assert PREVIEWS[node_id].is_output_node


def test_boxes_are_shown():
    output = ExemplaryInstanceMapPreview.execute(Instances(), 32, 16)
    assert isinstance(output.ui, ui.PreviewImage) and len(output.ui.values) == 1


def test_the_masks_of_fused_steps_are_shown(monkeypatch):
    masks, grid, plot = (torch.rand(1, 8, size, 3) for size in (8, 16, 24))
    monkeypatch.setattr(snf, "draw_record", lambda *_: (masks, grid, plot))
    output = snf.ExemplarySaliencyPreview.execute(object(), {"samples": torch.zeros(1, 4, 8, 8)}, 1)
    assert output.args == (masks, grid, plot)
    assert isinstance(output.ui, ui.PreviewImage) and len(output.ui.values) == 1


def test_the_attention_of_classes_is_shown(monkeypatch):
    image, shares = torch.rand(1, 8, 8, 3), torch.rand(2, 8, 8, 3)
    monkeypatch.setattr(ca2sis_attention.preview_host, "preview", lambda *_: (image, shares, "report"))
    output = ca2sis_attention.ExemplaryCA2SISAttentionPreview.execute(0.3, 0)
    assert output.args == (image, shares, "report")
    assert isinstance(output.ui, ui.PreviewImage) and len(output.ui.values) == 1
