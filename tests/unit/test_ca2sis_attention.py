"""Class-adaptive attention inside a diffusion model, on plain tensors: what each place reads, by the definitions."""

from __future__ import annotations

import pytest
import torch
from pack.py.ca2sis import regional
from pack.py.ca2sis.regional import VARIANTS, adaptive_attention, class_weights, early_gain, isolated_attention, soft_masks

HEADS, WIDTH, GRID = 2, 16, (3, 5)
CELLS = GRID[0] * GRID[1]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def attend(q, k, v, mask):
    """In float64, step by step, with infinities allowed."""
    heads = [t.double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    logits = heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5
    logits = logits if mask is None else logits + mask[:, None].double()
    return (logits.softmax(dim=-1) @ heads[2]).transpose(1, 2).flatten(2).to(q.dtype)


def texts(*lengths, seed=1):
    return [torch.randn(2, n, WIDTH, generator=rng(seed + i)) for i, n in enumerate(lengths)]


def queries(seed=9):
    return torch.randn(2, CELLS, WIDTH, generator=rng(seed))


def weights(masks, leak=0.05, base=0.2, own=()):
    return class_weights(masks, leak, base, own).flatten(2)


def blocks(*shares):
    """A mask a group, constant over the grid."""
    return torch.tensor(shares).view(1, -1, 1, 1).expand(-1, -1, *GRID)


def read(masks, variant=VARIANTS[0], lengths=(4, 6, 5), **more):
    keys, values = texts(*lengths), texts(*lengths, seed=20)
    return adaptive_attention(queries(), keys, values, weights(masks, **more), variant, attend)


def test_a_leak_of_one_and_a_full_base_are_the_joined_prompt():
    keys, values = texts(4, 6, 5), texts(4, 6, 5, seed=20)
    joined = attend(queries(), torch.cat(keys, 1), torch.cat(values, 1), None)
    torch.testing.assert_close(read(blocks(1.0, 0.0), leak=1.0, base=1.0), joined, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_class_everywhere_without_base_is_its_text_alone(variant):
    keys, values = texts(4, 6, 5), texts(4, 6, 5, seed=20)
    alone = attend(queries(), keys[1], values[1], None)
    torch.testing.assert_close(read(blocks(1.0, 0.0), variant, leak=0.0, base=0.0), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_class_without_places_has_no_effect_without_leak(variant):
    keys, values = texts(4, 6), texts(4, 6, seed=20)
    two = adaptive_attention(queries(), keys, values, weights(blocks(0.6), leak=0.0), variant, attend)
    torch.testing.assert_close(read(blocks(0.6, 0.0), variant, leak=0.0), two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_the_classes_does_not_matter(variant):
    keys, values = texts(4, 6, 5), texts(4, 6, 5, seed=20)
    turned = [0, 2, 1]
    found = adaptive_attention(
        queries(), [keys[i] for i in turned], [values[i] for i in turned], weights(blocks(0.3, 0.5)), variant, attend
    )
    torch.testing.assert_close(found, adaptive_attention(queries(), keys, values, weights(blocks(0.5, 0.3)), variant, attend))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_place_without_a_class_reads_the_base_alone(variant):
    keys, values = texts(4, 6, 5), texts(4, 6, 5, seed=20)
    base = attend(queries(), keys[0], values[0], None)
    torch.testing.assert_close(read(blocks(0.0, 0.0), variant, leak=0.0, base=0.0), base, rtol=1e-5, atol=1e-5)


def test_the_couple_is_the_mean_by_weights():
    keys, values = texts(4, 6, 5), texts(4, 6, 5, seed=20)
    each = [attend(queries(), k, v, None) for k, v in zip(keys, values)]
    w = weights(blocks(0.75, 0.25), leak=0.1, base=0.5)[0, :, 0]
    torch.testing.assert_close(
        read(blocks(0.75, 0.25), "couple", leak=0.1, base=0.5), sum(a * b for a, b in zip(w, each)) / w.sum()
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("leak, base", [(0.0, 0.0), (0.05, 0.2), (1.0, 1.0)])
def test_what_a_place_reads_sums_to_one_and_is_what_its_values_say(variant, leak, base):
    masks = torch.rand(2, 2, *GRID, generator=rng(3)) * 0.5
    keys, w = texts(4, 6, 5), weights(masks, leak, base)
    shares = regional.attention_shares(queries(), keys, w, HEADS, variant)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, CELLS))
    # A text whose values are all one contributes exactly the share of it that is read.
    ones = [torch.ones_like(k) if i == 1 else torch.zeros_like(k) for i, k in enumerate(keys)]
    found = adaptive_attention(queries(), keys, ones, w, variant, attend)
    torch.testing.assert_close(shares[:, 1], found.mean(dim=-1), rtol=1e-4, atol=1e-5)


def test_soft_masks_are_shares_of_cells():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 3, 1, 255]]], dtype=torch.uint8)
    found = soft_masks(labels, [(0,), (1, 3)], (1, 2))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([[0.75, 0.0], [0.25, 0.75]]))
    assert soft_masks(labels, [(0,)], (5, 7)).shape == (1, 1, 5, 7)
    assert torch.equal(soft_masks(labels, [(7,)], (2, 4)), torch.zeros(1, 1, 2, 4))


def test_a_class_has_a_cell_of_its_own_where_it_is_most_of_one():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, 2:4, 2:4], labels[:, 5:8, 5:8] = 1, 2
    groups = [(0,), (1,), (2,), (7,)]
    found = [regional.classes_with_own_cell(soft_masks(labels, groups, (n, n)))[0].tolist() for n in (8, 4, 2)]
    assert found == [[True, True, True, False], [True, True, True, False], [True, False, False, False]]


def test_the_early_gain_falls_with_the_noise_to_one():
    gains = [early_gain(sigma, 4.0) for sigma in (1e6, 1e3, 14.6, 1.0, 0.03, 0.0)]
    assert gains == sorted(gains, reverse=True) and gains[0] == pytest.approx(4.0)
    assert gains[3] == 2.5 and gains[-1] == 1.0
    assert all(early_gain(sigma, 1.0) == 1.0 for sigma in (0.0, 1.0, 1e30))


@pytest.mark.parametrize("cells", [4, 1024])
def test_isolated_cells_see_their_class_only(monkeypatch, cells):
    monkeypatch.setattr(regional, "QUERY_SLICE", cells)
    q, k, v = (torch.randn(2, CELLS, WIDTH, generator=rng(s)) for s in range(3))
    owner = torch.arange(CELLS) % 3  # the third is no group's
    masks = torch.stack([owner == 0, owner == 1]).float()[None]
    found = isolated_attention(q, k, v, masks, 1.0, attend)
    same = owner[:, None] == owner[None]
    expected = attend(q, k, v, torch.zeros(2, CELLS, CELLS).masked_fill(~same, -torch.inf))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(isolated_attention(q, k, v, masks, 0.0, attend), attend(q, k, v, None))
