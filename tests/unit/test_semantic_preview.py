from __future__ import annotations

import pytest
import torch
from pack.py.semantic import preview
from pack.py.semantic.masks import paint_mask
from pack.py.semantic.palettes import PALETTE_NAMES, VOID, named_palette
from pack.py.semantic.preview import coverage_text, draw_legend
from pack.py.semantic.semantic_map import SemanticMap
from PIL import ImageFont

CITY = named_palette("Cityscapes / BDD100K")


def halves(h=32, w=32, b=1):
    labels = torch.zeros(b, h, w, dtype=torch.uint8)
    labels[:, : h // 2] = 10
    return SemanticMap(labels, CITY)


def test_the_plain_picture_is_the_palette_pixel_for_pixel():
    labels = torch.tensor([[[0, 10, VOID]]])
    image = SemanticMap(labels, CITY).to_image()
    assert image.dtype == torch.float32
    assert (image * 255).round().int().tolist() == [[[[128, 64, 128], [70, 130, 180], [0, 0, 0]]]]


def test_coverage_lists_the_largest_first_and_void_last():
    labels = torch.tensor([[[0] * 3 + [10] * 5 + [VOID] * 2]])
    assert coverage_text(SemanticMap(labels, CITY)) == "sky: 50.0 %\nroad: 30.0 %\nvoid: 20.0 %"


def test_much_void_is_a_warning():
    labels = torch.tensor([[[0] * 3 + [VOID] * 7]])
    assert coverage_text(SemanticMap(labels, CITY)).startswith("Warning: 70.0 % of the image is void: it belongs to no class")


def test_a_trace_is_not_called_nothing():
    labels = torch.zeros(1, 100, 100, dtype=torch.uint8)
    labels[0, 0, 0] = 1
    assert coverage_text(SemanticMap(labels, CITY)) == "road: 100.0 %\nsidewalk: < 0.1 %"


def test_a_batch_gets_a_block_a_map():
    labels = torch.tensor([[[0]], [[10]]])
    assert coverage_text(SemanticMap(labels, CITY)) == "map 1 of 2\nroad: 100.0 %\n\nmap 2 of 2\nsky: 100.0 %"


@pytest.mark.parametrize("h, w", [(1, 1), (1, 40), (40, 1), (33, 65), (512, 300)])
def test_the_legend_stands_below_the_enlarged_map(h, w):
    semantic_map = halves(h, w)
    picture = draw_legend(semantic_map)
    factor = max(1, -(-384 // max(h, w)))
    assert picture.shape[0] == 1 and picture.shape[1] > h * factor and picture.shape[2] >= max(384, w * factor)
    expected = semantic_map.to_image().repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    torch.testing.assert_close(picture[:, : h * factor, : w * factor], expected)
    assert picture.min() >= 0.0 and picture.max() <= 1.0


def test_the_legend_shows_every_class_of_the_batch_in_its_colour():
    labels = torch.tensor([0, 10, 13]).view(3, 1, 1).expand(3, 64, 64).clone()
    pictures = draw_legend(SemanticMap(labels, CITY))
    below = (pictures[0, 384:] * 255).round().int().reshape(-1, 3)
    for label in (0, 10, 13):
        assert (below == torch.tensor(CITY.colours[label])).all(dim=-1).sum() > 50
    assert not torch.equal(pictures[0, 384:], pictures[1, 384:])  # figures differ


@pytest.mark.parametrize("name", PALETTE_NAMES)
def test_every_class_at_once_fits(name):
    palette = named_palette(name)
    labels = torch.arange(len(palette.names)).repeat_interleave(8).expand(1, 64, -1).clone()
    assert draw_legend(SemanticMap(labels, palette)).shape[1] < 8000


def test_any_name_can_be_drawn(monkeypatch):
    names = ["\u7a7a", "\U0001f697 car", "\u05e9\u05de\u05d9\u05dd", "x" * 80]
    semantic_map = None
    for row, name in enumerate(names):
        mask = torch.zeros(1, 4, 4)
        mask[:, row] = 1
        semantic_map = paint_mask(semantic_map, mask, name)
    assert draw_legend(semantic_map).shape[0] == 1
    # An old Pillow has only a bitmap font that knows Latin letters.
    bitmap = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else ImageFont.load_default()
    monkeypatch.setattr(preview, "_font", lambda size: bitmap)
    assert draw_legend(semantic_map).shape[0] == 1
