"""The figures of moved looks: colour space, distance of class colours, and which bounds are held between which ways."""

from __future__ import annotations

import pytest
import torch
from pack.lab.evaluate import transfer
from pack.lab.evaluate.playground import as_images
from pack.py.playground.detector import SceneDetector


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_known_colours(rgb, lab):
    found = transfer.to_lab(torch.tensor(rgb).view(3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(lab), atol=0.02, rtol=0)  # tables give two decimals


def test_a_picture_has_no_distance_to_itself_and_some_to_another():
    exemplars, targets = transfer.pairs(3)
    assert transfer.colour_distance(as_images(exemplars), exemplars, exemplars) == 0
    assert transfer.colour_distance(as_images(targets), exemplars, targets) > 10


def test_bounds_are_between_the_ways_that_are_there():
    exemplar_look = {name: lambda e, t, s: as_images(t) for name in (transfer.ALONE, transfer.CONCAT, transfer.CLASS)}
    found = transfer.transfer_figures(SceneDetector().eval(), exemplar_look, lambda exemplars, targets: targets, 2)
    figures = {f.name.split(": ")[1]: f for f in found}
    assert figures["mIoU lost, class_bias against ControlNeXt alone"].value == 0
    assert figures["colour distance, class_bias against concat_only"].record()["ok"]
    assert not figures["colour distance, class_bias against ControlNeXt alone"].record()["ok"]
    assert figures["colour distance, retrieved exemplar against a random one"].value == 0
    assert not any("matcher" in name for name in figures)
