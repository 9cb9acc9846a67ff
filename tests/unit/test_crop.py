"""Holes, windows and paste-back: what is outside never changes, what is inside lands to the pixel."""

from __future__ import annotations

import pytest
import torch
from pack.py.imaging import crop, masks
from pack.py.imaging.crop import CropRecord
from pack.py.paint_by_example import shapes
from torch.testing import assert_close


def picture(h=90, w=120, seed=0, channels=3):
    return torch.rand(1, h, w, channels, generator=torch.Generator().manual_seed(seed))


def hole_of(h, w, y0, y1, x0, x1):
    mask = torch.zeros(1, h, w)
    mask[:, y0:y1, x0:x1] = 1
    return mask


def cut_of(source, hole, size=(64, 64), context=0.5, feather=8):
    picture_size = (source.shape[2], source.shape[1])
    boxes = tuple(crop.fit_window(masks.mask_bounds(one), picture_size, size, context) for one in hole)
    return CropRecord(source, hole, masks.feather_mask(hole, feather), boxes, size)


@pytest.mark.parametrize("feather", [0, 1, 2, 3, 8, 21])
def test_the_weight_is_one_in_the_hole_and_nothing_beyond_the_feather(feather):
    hole = hole_of(60, 80, 0, 20, 30, 50)
    weight = masks.feather_mask(hole, feather)
    assert (weight[hole > 0] == 1).all()
    assert (weight[masks.grow_mask(hole, feather) == 0] == 0).all()
    assert weight.min() >= 0 and weight.max() <= 1
    if feather > 1:
        assert (weight[0, 20 : 20 + feather, 40].diff() <= 0).all(), "it falls outwards"


@pytest.mark.parametrize(
    "hole, picture_size, size",
    [
        ((10, 10, 30, 40), (120, 90), (64, 64)),
        ((0, 0, 5, 5), (120, 90), (64, 64)),  # in a corner
        ((119, 89, 120, 90), (120, 90), (512, 512)),  # one pixel
        ((0, 0, 120, 90), (120, 90), (64, 64)),  # everything
        ((0, 10, 1600, 90), (1600, 100), (64, 64)),  # 16:1
        ((5, 5, 50, 20), (120, 90), (96, 32)),
    ],
)
@pytest.mark.parametrize("context", [0.0, 0.5, 3.0])
def test_a_window_holds_the_hole_and_has_the_right_shape(hole, picture_size, size, context):
    x0, y0, x1, y1 = crop.fit_window(hole, picture_size, size, context)
    assert x0 <= hole[0] and y0 <= hole[1] and x1 >= hole[2] and y1 >= hole[3]
    ratio = size[0] / size[1]
    assert abs((x1 - x0) - (y1 - y0) * ratio) <= max(1, ratio)  # whole pixels
    if max(hole[2] - hole[0], (hole[3] - hole[1]) * ratio) <= min(picture_size[0], picture_size[1] * ratio):
        assert x0 >= 0 and y0 >= 0 and x1 <= picture_size[0] and y1 <= picture_size[1]
    assert size[0] / (x1 - x0) <= crop.LARGEST_ZOOM


@pytest.mark.parametrize("feather", [0, 8])
def test_outside_of_the_area_the_source_comes_back_bit_for_bit(feather):
    source, hole = picture(), hole_of(90, 120, 20, 50, 40, 90)
    cut = cut_of(source, hole, feather=feather)
    out = crop.paste_back(torch.zeros(1, 64, 64, 3), cut, colour_match=0.0)
    outside = masks.grow_mask(hole, feather) == 0
    assert torch.equal(out[outside], source[outside])
    assert (out[hole > 0] == 0).all(), "black was painted"
    matched = crop.paste_back(torch.zeros(1, 64, 64, 3), cut, colour_match=1.0)
    assert torch.equal(matched[outside], source[outside])


def test_at_the_windows_own_size_every_pixel_lands_where_it_belongs():
    source, hole = picture(), hole_of(90, 120, 30, 40, 50, 60)
    cut = CropRecord(source, hole, masks.feather_mask(hole, 0), ((28, 13, 92, 77),), (64, 64))
    assert torch.equal(cut.windows()[0].movedim(0, -1), source[0, 13:77, 28:92])
    result = picture(64, 64, seed=1)
    out = crop.paste_back(result, cut, 0.0)
    assert torch.equal(out[0, 30:40, 50:60], result[0, 17:27, 22:32])


def test_a_window_beyond_the_picture_goes_on_with_its_edge_and_comes_back_whole():
    source, hole = picture(20, 160), hole_of(20, 160, 5, 15, 10, 150)
    cut = cut_of(source, hole)
    assert cut.boxes[0][1] < 0
    assert torch.equal(cut.holes()[0, 0, 0], torch.zeros(64)), "nothing is painted beyond the picture"
    again = crop.paste_back(cut.windows().movedim(1, -1), cut, 0.0)
    assert torch.equal(again[masks.grow_mask(hole, 8) == 0], source[masks.grow_mask(hole, 8) == 0])


def test_smooth_pictures_survive_the_way_there_and_back():
    y, x = torch.linspace(0, 1, 90)[:, None], torch.linspace(0, 1, 120)[None]
    source = torch.stack([x.expand(90, 120), y.expand(90, 120), (x + y) / 2], dim=-1)[None]
    cut = cut_of(source, hole_of(90, 120, 20, 50, 40, 90), size=(128, 128))
    out = crop.paste_back(cut.windows().movedim(1, -1), cut, 0.0)
    assert_close(out, source, rtol=0, atol=0.01)  # the error of enlarging and reducing with a cubic


@pytest.mark.parametrize("channels", [3, 4, 1])
def test_channels_of_the_source_stay(channels):
    source, hole = picture(channels=channels), hole_of(90, 120, 20, 50, 40, 90)
    out = crop.paste_back(torch.ones(1, 64, 64, 3), CropRecord(source, hole, hole, ((30, 0, 120, 90),), (64, 64)), 0.0)
    assert out.shape == source.shape
    if channels == 4:
        assert torch.equal(out[..., 3], source[..., 3])


def test_results_of_a_batch_go_to_their_own_pictures_and_repeat():
    source = torch.cat([picture(seed=1), picture(seed=2)])
    hole = torch.cat([hole_of(90, 120, 0, 30, 0, 30), hole_of(90, 120, 60, 90, 90, 120)])
    cut = cut_of(source, hole, feather=0)
    out = crop.paste_back(torch.stack([torch.full((64, 64, 3), v) for v in (0.0, 0.25, 0.5, 1.0)]), cut, 0.0)
    for number, value in enumerate((0.0, 0.25, 0.5, 1.0)):
        inside = hole[number % 2] > 0
        assert_close(out[number][inside], torch.full_like(out[number][inside], value))
        assert torch.equal(out[number][~inside], source[number % 2][~inside])
    with pytest.raises(ValueError, match="3 results for 2 windows"):
        crop.paste_back(torch.zeros(3, 64, 64, 3), cut, 0.0)


def test_colours_are_matched_on_the_ring():
    source, hole = picture() * 0.5 + 0.25, hole_of(90, 120, 30, 50, 40, 80)[0]
    cast = (source[0] * 0.8 + 0.1).clamp(0, 1)
    assert_close(crop.match_colours(cast, source[0], hole, 1.0), source[0], rtol=0, atol=1e-4)
    assert_close(crop.match_colours(cast, source[0], hole, 0.0), cast)
    everything = torch.ones_like(hole)
    assert torch.equal(crop.match_colours(cast, source[0], everything, 1.0), cast)


@pytest.mark.parametrize("how", masks.MASK_RESIZES)
def test_a_hole_of_one_pixel_is_one_cell_at_least(how):
    holes = torch.zeros(2, 1, 64, 64)
    holes[0, 0, 9, 3] = 1
    holes[1, 0, 16:32, 16:32] = 1
    found = masks.mask_to_latent(holes, (8, 8), how)
    assert found[0].sum() == 1 and found[0, 0, 1, 0] == 1
    expected = torch.zeros(8, 8)
    expected[2:4, 2:4] = 1
    assert torch.equal(found[1, 0], expected)


def test_covering_misses_no_pixel_at_any_size():
    rng = torch.Generator().manual_seed(0)
    for size in ((7, 5), (13, 40), (50, 50)):
        mask = (torch.rand(1, 1, 23, 31, generator=rng) < 0.02).float()
        mask[0, 0, 22, 30] = 1
        found = masks.resize_covering(mask, size)[0, 0]
        for y, x in torch.nonzero(mask[0, 0]).tolist():
            assert found[y * size[1] // 23, x * size[0] // 31] == 1


# Shapes


def test_curves_stay_inside_the_jitter_and_half_of_the_extension():
    box, outer = (40.0, 50.0, 100.0, 120.0), (20.0, 10.0, 150.0, 160.0)
    for seed in range(20):
        corners = shapes.bezier_corners(box, outer, 5, torch.Generator().manual_seed(seed))
        low = torch.tensor([(box[i] + outer[i]) / 2 - 6 for i in (0, 1)])
        high = torch.tensor([(box[i] + outer[i]) / 2 + 6 for i in (2, 3)])
        assert (corners >= low).all() and (corners <= high).all()


def test_a_side_without_extension_gives_one_point():
    box = (10.0, 10.0, 60.0, 50.0)
    assert len(shapes.bezier_corners(box, box, 0, torch.Generator())) == 4


def test_a_polygon_contains_what_a_plain_test_of_each_pixel_says():
    """Pillow also fills the outline, so pixels at an edge may differ."""
    corners = torch.tensor([[2, 2], [20, 5], [12, 12], [18, 22], [3, 18]])
    found = masks.fill_polygon(corners, 25, 25)

    def is_inside(x, y):
        result, last = False, corners[-1].tolist()
        for now in corners.tolist():
            (x1, y1), (x2, y2) = last, now
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                result = not result
            last = now
        return result

    plain = torch.tensor([[float(is_inside(x + 0.5, y + 0.5)) for x in range(25)] for y in range(25)])
    inner = 1 - masks.grow_mask(1 - plain[None], 1)[0]
    assert (found[inner > 0] == 1).all() and (found[masks.grow_mask(plain[None], 2)[0] == 0] == 0).all()
    assert inner.sum() > 50 and found[tuple(corners.T.flip(0))].all()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_a_shape_is_never_empty_and_repeats_by_its_seed(shape):
    boxes = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 64.0, 48.0), (63.0, 47.0, 64.0, 48.0), (10.0, 8.0, 40.0, 30.0)]
    for seed, box in enumerate(boxes * 3):
        one, two = (shapes.draw_mask_shape(box, 64, 48, torch.Generator().manual_seed(seed), shape) for _ in range(2))
        assert one.shape == (48, 64) and one.any() and torch.equal(one, two)
        assert set(one.unique().tolist()) <= {0.0, 1.0}
