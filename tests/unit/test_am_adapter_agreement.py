"""Which tokens share a class: from label maps of any size, on any pair of grids."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pack.py.am_adapter.agreement import PAPER_FORMULAS, PUBLISHED_CODE, class_shares, compare_classes

VOID = 255
TRANSPOSED = dataclasses.replace(PAPER_FORMULAS, transposed=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(h, w, *, classes=4, seed=0, batch=1):
    return torch.randint(classes, (batch, h, w), generator=rng(seed))


def test_maps_of_the_grids_own_size_agree_where_labels_are_equal():
    target, exemplar = labels(3, 5, seed=1), labels(4, 2, seed=2)
    found = compare_classes(target, exemplar, (3, 5), (4, 2)).block()
    expected = target.flatten(1)[:, :, None] == exemplar.flatten(1)[:, None, :]
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1), (12, 18), (16, 16)])
def test_shares_of_a_cell_are_parts_of_its_pixels(grid):
    target = labels(8, 12)
    shares = class_shares(target, grid, [0, 1, 2, 3])
    assert shares.shape == (1, grid[0] * grid[1], 4)
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, grid[0] * grid[1]))
    if grid == (4, 6):
        torch.testing.assert_close(shares[0, 7, 2], (target[0, 2:4, 2:4] == 2).float().mean())
    if grid == (1, 1):
        torch.testing.assert_close(shares[0, 0, 3], (target == 3).float().mean())


def test_a_border_cell_agrees_by_its_shares():
    target = torch.tensor([[[0, 1], [0, 1]]])
    exemplar = torch.tensor([[[0, 0, 1, 1]]])
    c = compare_classes(target, exemplar, (1, 1), (1, 2)).block()
    torch.testing.assert_close(c, torch.tensor([[[0.5, 0.5]]]))


def test_a_block_is_a_part_of_the_whole():
    pair = compare_classes(labels(6, 6, batch=2), labels(6, 6, seed=1), (4, 3), (2, 5))
    torch.testing.assert_close(pair.block(slice(5, 9)), pair.block()[:, 5:9])


def test_the_published_orientation_is_the_transpose_and_needs_one_size():
    target, exemplar = labels(4, 4, seed=1), labels(4, 4, seed=2)
    right, upstream = (
        compare_classes(target, exemplar, (4, 4), (4, 4), behaviour=b).block() for b in (PAPER_FORMULAS, TRANSPOSED)
    )
    torch.testing.assert_close(upstream, right.transpose(1, 2))
    assert not torch.equal(upstream, right)
    with pytest.raises(ValueError, match="4x4 and 2x4"):
        compare_classes(target, exemplar, (4, 4), (2, 4), behaviour=TRANSPOSED)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_the_published_code_takes_every_so_manyth_cell_of_the_flat_map(side):
    target, exemplar = labels(32, 32, seed=1), labels(32, 32, seed=2)
    step = 1024 // side**2
    rows, columns = exemplar.flatten()[::step], target.flatten()[::step]
    found = compare_classes(target, exemplar, (side, side), (side, side), behaviour=PUBLISHED_CODE).block()[0]
    torch.testing.assert_close(found, (rows[:, None] == columns[None, :]).float(), rtol=0, atol=0)


@pytest.mark.parametrize("grid", [(64, 64), (8, 32), (12, 12)])
def test_the_published_code_refuses_grids_it_does_not_have(grid):
    with pytest.raises(ValueError, match=f"not {grid[0]}x{grid[1]}"):
        compare_classes(labels(32, 32), labels(32, 32), grid, grid, behaviour=PUBLISHED_CODE)


@pytest.mark.parametrize("behaviour", [PAPER_FORMULAS, PUBLISHED_CODE])
def test_void_matches_nothing_not_even_itself(behaviour):
    target = torch.full((1, 32, 32), VOID)
    c = compare_classes(target, target, (8, 8), (8, 8), behaviour=behaviour, void=VOID)
    assert c.block().shape == (1, 64, 64)
    assert not c.block().any() and not c.harden().block().any() and not c.size_correction().any()
    assert compare_classes(target, target, (8, 8), (8, 8), behaviour=behaviour).block().eq(1).all()


def test_hard_agreement_compares_the_largest_class_and_leaves_void_cells_out():
    # Cells: 3/4 road 1/4 sky; 3/4 void 1/4 sky; all sky.
    target = torch.tensor([[[0, 0, VOID, VOID, 1, 1], [0, 1, VOID, 1, 1, 1]]])
    exemplar = torch.tensor([[[0, 1]]])
    hard = compare_classes(target, exemplar, (1, 3), (1, 2), void=VOID).harden()
    assert hard.block().tolist() == [[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]


def test_a_class_of_only_the_exemplar_can_be_a_cells_largest():
    # The exemplar's cell is mostly a tree; that the target has no trees does not make it a road.
    exemplar = torch.tensor([[[7, 7], [7, 0]]])
    assert not compare_classes(torch.zeros(1, 1, 1, dtype=torch.long), exemplar, (1, 1), (1, 1)).harden().block().any()


def test_balance_gives_every_class_the_same_say():
    exemplar = torch.tensor([[[0, 0, 0, 1]]])
    offset = compare_classes(exemplar, exemplar, (1, 4), (1, 4)).size_correction()
    mass = offset.exp()[0]
    torch.testing.assert_close(mass[:3].sum(), mass[3:].sum())
    # One class alone is left as it is.
    alone = torch.zeros(1, 2, 2, dtype=torch.long)
    torch.testing.assert_close(compare_classes(alone, alone, (2, 2), (2, 2)).size_correction(), torch.zeros(1, 4))


def test_an_image_selected_from_a_batch_is_that_image():
    target, exemplar = labels(4, 4, batch=3), labels(4, 4, seed=1)
    chosen = compare_classes(target, exemplar, (4, 4), (4, 4)).select([2])
    torch.testing.assert_close(chosen.block(), compare_classes(target[2:], exemplar, (4, 4), (4, 4)).block())
