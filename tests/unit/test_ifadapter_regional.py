"""The weight-free layout's mathematics against a plain second writing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pack.py.ifadapter.instances import Instance
from pack.py.ifadapter.regional import (
    Settings,
    attend_by_owner,
    find_box_cells,
    fusion_weights,
    instance_mask,
    owners,
    plan_groups,
    regional_change,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def attend(q, k, v, heads=2, bias=None):
    split = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*split, attn_mask=bias).transpose(1, 2).flatten(2)


LAYOUT = (
    Instance((0.0, 0.0, 0.6, 0.6), "a"),
    Instance((0.4, 0.4, 1.0, 1.0), "b", strength=0.5),
    Instance((0.45, 0.1, 0.55, 0.9), "c"),
    Instance((0.9, 0.05, 0.95, 0.1), "d", strength=1.5),
)


@pytest.mark.parametrize(
    "box, h, w, cells",
    [
        ((0.0, 0.0, 1.0, 1.0), 5, 7, (0, 5, 0, 7)),
        ((0.25, 0.5, 0.75, 1.0), 4, 8, (2, 4, 2, 6)),
        ((0.26, 0.51, 0.74, 0.99), 4, 8, (2, 4, 2, 6)),
        ((0.1, 0.1, 0.3, 0.3), 10, 10, (1, 3, 1, 3)),
        ((0.999, 0.999, 1.0, 1.0), 3, 3, (2, 3, 2, 3)),
        ((0.5, 0.5, 0.5 + 1e-9, 0.5 + 1e-9), 4, 4, (2, 3, 2, 3)),
    ],
)
def test_a_box_takes_every_cell_it_touches_and_at_least_one(box, h, w, cells):
    assert find_box_cells(box, h, w) == cells


def plain_weights(instances, h, w, power):
    """Cell by cell, instance by instance, in Python floats."""
    out = torch.zeros(len(instances), h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            m, a = [], []
            for i in instances:
                top, bottom, left, right = find_box_cells(i.box, h, w)
                m.append(i.strength if top <= y < bottom and left <= x < right else 0.0)
                a.append(m[-1] / ((i.box[2] - i.box[0]) * (i.box[3] - i.box[1])) ** power)
            for n in range(len(m)):
                out[n, y, x] = a[n] / sum(a) * max(m) if sum(a) else 0.0
    return out


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_fusion_weights_match_the_formula_cell_by_cell(power):
    found = fusion_weights(LAYOUT, 9, 13, background=False, settings=Settings(small_wins=power, partial=0.0))
    torch.testing.assert_close(found[0].double(), plain_weights(LAYOUT, 9, 13, power), rtol=1e-5, atol=1e-6)


def test_a_background_takes_exactly_what_no_box_covers():
    found = fusion_weights(LAYOUT, 9, 13, background=True, settings=Settings(partial=0.0))[0]
    covered = (found[:-1] > 0).any(dim=0)
    assert torch.equal(found[-1], (~covered).float())


def test_a_cell_counts_by_the_share_that_the_box_covers():
    one = [Instance((0.25, 0.0, 0.625, 1.0), "a ball")]
    assert fusion_weights(one, 1, 4, background=0.0)[0, 0, 0].tolist() == pytest.approx([0.0, 1.0, 0.5, 0.0])
    narrow = [Instance((0.3, 0.0, 0.4, 1.0), "a ball")]  # less than a cell: it still has one
    assert fusion_weights(narrow, 1, 4, background=0.0)[0, 0, 0].tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_the_smaller_of_two_boxes_wins_on_their_overlap():
    pair = (Instance((0, 0, 1, 1), "a"), Instance((0.25, 0.25, 0.75, 0.75), "b"))
    centre = fusion_weights(pair, 8, 8, background=False)[0, :, 4, 4]
    torch.testing.assert_close(centre, torch.tensor([1 / 17, 16 / 17]))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("b, frames", [(1, 1), (3, 1), (3, 3)])
def test_the_gathered_form_equals_full_attention_weighted_per_instance(background, b, frames):
    h, w, c = 7, 10, 8
    layout = list(LAYOUT)
    if frames > 1:
        layout.append(Instance((0, 0, 1, 1), "e", torch.rand(frames, 14, 20, generator=rng())))
    weights = fusion_weights(layout, h, w, background=background)
    lengths = [5, 5, 9, 5, 5, 9][: weights.shape[1]]
    q, text = torch.randn(2, b, h * w, c, generator=rng(1))
    texts = [torch.randn(2, 1, m, c, generator=rng(m + i)) for i, m in enumerate(lengths)]
    groups = plan_groups(weights, lengths)
    assert sorted(i for g in groups for i in g.members.tolist()) == list(range(len(lengths)))
    keys = [torch.cat([texts[i][0] for i in g.members.tolist()]) for g in groups]
    values = [torch.cat([texts[i][1] for i in g.members.tolist()]) for g in groups]
    found = regional_change(q, text, groups, keys, values, list(range(b)), attend)
    expected = torch.zeros_like(q)
    for i, (k, v) in enumerate(texts):
        s = attend(q, k.expand(b, -1, -1), v.expand(b, -1, -1))
        expected += weights[:, i].flatten(1)[..., None] * (s - text)
    # Summed in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_groups_waste_less_than_half_of_their_queries():
    many = [Instance((0, 0, (n + 1) / 40, (n + 1) / 40), str(n)) for n in range(40)]
    for group in plan_groups(fusion_weights(many, 32, 32, background=False), [5] * 40):
        sizes = [len(set(cells.tolist())) for cells in group.cells]
        assert 2 * min(sizes) >= max(sizes) - 1


def test_a_mask_is_averaged_over_the_cells_of_the_grid():
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :4] = 1.0
    found = instance_mask(Instance((0, 0, 1, 1), "a", mask), 2, 2, (0, 0, 1, 1), Settings())
    assert torch.equal(found, torch.tensor([[[0.5, 0.0], [0.0, 0.0]]]))


def test_a_mask_smaller_than_the_grid_is_repeated():
    mask = torch.tensor([[[1.0, 0.0]]])
    found = instance_mask(Instance((0, 0, 1, 1), "a", mask), 2, 4, (0, 0, 1, 1), Settings())
    assert torch.equal(found, torch.tensor([[[1.0, 1, 0, 0], [1, 1, 0, 0]]]))


def test_a_view_shows_its_part_of_the_layout():
    whole = fusion_weights(LAYOUT, 8, 8, background=True)
    part = fusion_weights(LAYOUT, 4, 4, background=True, view=(0.5, 0.5, 1.0, 1.0))
    torch.testing.assert_close(part, whole[..., 4:, 4:])


def test_soft_edges_fade_from_the_border():
    found = fusion_weights((Instance((0, 0, 1, 1), "a"),), 1, 8, background=False, settings=Settings(edge_cells=2))
    expected = torch.tensor([0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25]) * 0.25  # the single row is half a cell from its border
    torch.testing.assert_close(found[0, 0, 0], expected)


def test_partly_covered_cells_count_their_share():
    settings = Settings(partial=1.0)
    found = fusion_weights((Instance((0.125, 0.0, 0.5, 1.0), "a"),), 2, 4, background=0.5, settings=settings)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([[0.5, 1, 0, 0], [0.25, 0, 0.5, 0.5]]))


def test_a_box_inside_one_cell_keeps_that_cell():
    found = instance_mask(Instance((0.3, 0.3, 0.35, 0.31), "a"), 2, 2, (0, 0, 1, 1), Settings(partial=1.0))
    assert torch.equal(found, torch.tensor([[[1.0, 0], [0, 0]]]))


def test_no_instances_weigh_nothing():
    assert fusion_weights((), 3, 4, background=False).shape == (1, 0, 3, 4)
    assert plan_groups(fusion_weights((), 3, 4, background=False), []) == []
    assert torch.equal(fusion_weights((), 3, 4, background=True), torch.ones(1, 1, 3, 4))


@pytest.mark.parametrize("heads, d", [(2, 8), (1, 5)])
def test_separation_equals_a_bias_matrix(heads, d):
    h, w, b = 6, 5, 2
    settings = Settings(separate=1.5, separate_outside=0.5)
    owner = owners(fusion_weights(LAYOUT, h, w, background=True), len(LAYOUT)).expand(b, -1)
    q, k, v = torch.randn(3, b, h * w, heads * d, generator=rng())
    bias = torch.zeros(h * w, h * w)
    for y, a in enumerate(owner[0].tolist()):
        for x, o in enumerate(owner[0].tolist()):
            bias[y, x] = 0.0 if a == o else -settings.separate_outside if -1 in (a, o) else -settings.separate
    found = attend_by_owner(q, k, v, heads, owner, settings, lambda *qkv: attend(*qkv, heads=heads))
    torch.testing.assert_close(found, attend(q, k, v, heads, bias), rtol=1e-4, atol=1e-5)


def test_each_cell_has_the_owner_that_weighs_most():
    owner = owners(fusion_weights(LAYOUT, 9, 13, background=True, settings=Settings(partial=0.0)), len(LAYOUT))
    expected = plain_weights(LAYOUT, 9, 13, 2.0)
    most = torch.where(expected.amax(dim=0) > 0, expected.argmax(dim=0), -1).flatten()
    assert torch.equal(owner[0], most)


def test_half_precision_keeps_its_type():
    weights = fusion_weights(LAYOUT, 4, 4, background=False)
    groups = [g.to(torch.device("cpu"), torch.bfloat16) for g in plan_groups(weights, [3] * 4)]
    q = torch.randn(1, 16, 8, generator=rng()).bfloat16()
    k = [torch.randn(len(g.members), 3, 8, generator=rng()).bfloat16() for g in groups]
    assert regional_change(q, q, groups, k, k, [0], attend).dtype == torch.bfloat16
