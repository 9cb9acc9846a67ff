"""Styles and shapes edited class by class: only the classes named, only where both sides have them."""

from __future__ import annotations

import pytest
import torch
from pack.py.ca2sis import codes
from pack.py.ca2sis.codes import Shape, Style

NAMES = codes.class_names(4)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def style(b=2, seed=0, present=(True, True, True, False)):
    return Style(torch.randn(b, 4, 6, generator=rng(seed)), torch.tensor([list(present)] * b), NAMES)


def shape(b=2, seed=0, rows=3):
    return Shape(torch.randn(b, rows, 9, generator=rng(seed)), torch.ones(b, 4, dtype=torch.bool), NAMES)


def masks(seed=0, b=2, size=6):
    return codes.one_hot(torch.randint(0, 4, (b, size, size), generator=rng(seed)), 4)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_mixing_touches_the_rows_named_and_no_other():
    base, donor = style(seed=0), style(seed=1)
    mixed = codes.mix_styles(base, donor, [1])
    equal(mixed.codes[:, 1], donor.codes[:, 1])
    equal(mixed.codes[:, [0, 2, 3]], base.codes[:, [0, 2, 3]])


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_goes_from_the_base_to_the_donor_and_is_exact_at_both_ends(strength):
    base, donor = style(seed=0), style(seed=1)
    mixed = codes.mix_styles(base, donor, [0, 2], strength)
    expected = base.codes + strength * (donor.codes - base.codes)
    torch.testing.assert_close(mixed.codes[:, [0, 2]], expected[:, [0, 2]], rtol=0, atol=1e-6)  # rounding of another order
    if strength in (0.0, 1.0):
        equal(mixed.codes[:, [0, 2]], (base, donor)[int(strength)].codes[:, [0, 2]])


def test_a_donor_without_the_class_leaves_the_base_unless_asked():
    base, donor = style(present=(True,) * 4), style(seed=1)
    kept, used = (codes.mix_styles(base, donor, [2, 3], if_absent=how) for how in ("keep", "use"))
    equal(kept.codes[:, 3], base.codes[:, 3])
    equal(kept.codes[:, 2], donor.codes[:, 2])
    equal(used.codes[:, 3], donor.codes[:, 3])
    assert kept.present[:, 3].all() and not used.present[:, 3].any()


def test_absence_is_judged_picture_by_picture():
    base, donor = style(present=(True,) * 4), style(seed=1, present=(True,) * 4)
    donor = Style(donor.codes, torch.tensor([[True, True, True, True], [True, False, True, True]]), NAMES)
    mixed = codes.mix_styles(base, donor, [1])
    equal(mixed.codes[0, 1], donor.codes[0, 1])
    equal(mixed.codes[1, 1], base.codes[1, 1])


def test_one_donor_serves_a_batch_and_one_base_takes_many():
    base, donor = style(3, seed=0), style(1, seed=1)
    equal(codes.mix_styles(base, donor, [0]).codes[:, 0], donor.codes[:, 0].expand(3, -1))
    assert len(codes.mix_styles(donor, base, [0])) == 3
    assert len(codes.mix_styles(donor, base, [0], strength=0.0).present) == 3


def test_nothing_is_written_in_place():
    base, donor, mask = style(), style(seed=1), masks()
    before = base.codes.clone(), mask.clone()
    codes.mix_styles(base, donor, [0])
    codes.edit_shape(mask, masks(1), [1], "remove")
    equal(base.codes, before[0])
    equal(mask, before[1])


@pytest.mark.parametrize("rows", [3, 4])
def test_a_class_finds_its_own_shape_row_with_and_without_background(rows):
    base, donor = shape(rows=rows), shape(seed=1, rows=rows)
    row = 2 - (4 - rows)
    mixed = codes.mix_shapes(base, donor, [2])
    equal(mixed.codes[:, row], donor.codes[:, row])
    others = [i for i in range(rows) if i != row]
    equal(mixed.codes[:, others], base.codes[:, others])


def test_whole_shapes_interpolate():
    base, donor = shape(), shape(seed=1)
    half = codes.mix_shapes(base, donor, strength=0.5)
    torch.testing.assert_close(half.codes, (base.codes + donor.codes) / 2, rtol=0, atol=1e-6)
    equal(codes.mix_shapes(base, donor).codes, donor.codes)
    equal(codes.mix_shapes(base, donor, strength=0.0).codes, base.codes)


def test_a_shape_is_swapped_only_where_both_have_the_class():
    a, b = masks(0), masks(1)
    b[1, 2] = 0
    new_a, new_b = codes.edit_shape(a, b, [1, 2], "swap if both"), codes.edit_shape(b, a, [1, 2], "swap if both")
    equal(new_a[0, 1:3], b[0, 1:3])
    equal(new_b[0, 1:3], a[0, 1:3])
    equal(new_a[1, 2], a[1, 2])
    equal(new_b[1, 2], b[1, 2])
    equal(new_a[:, [0, 3]], a[:, [0, 3]])


def test_a_swapped_mask_is_not_repaired():
    counts = codes.edit_shape(masks(0), masks(1), [1, 2]).sum(dim=1)
    assert set(counts.unique().tolist()) >= {0, 1, 2}


def test_replace_add_and_remove():
    a, b = masks(0), masks(1)
    b[:, 3] = 0
    equal(codes.edit_shape(a, b, [3], "replace")[:, 3], torch.zeros_like(a[:, 3]))
    equal(codes.edit_shape(a, b, [3], "swap if both"), a)
    equal(codes.edit_shape(a, b, [1], "add")[:, 1], ((a + b)[:, 1] > 0).float())
    equal(codes.edit_shape(a, None, [1], "remove")[:, 1], torch.zeros_like(a[:, 1]))
    equal(codes.edit_shape(a, None, [1], "remove")[:, [0, 2, 3]], a[:, [0, 2, 3]])


def test_a_void_pixel_is_no_class_or_the_last():
    labels = torch.tensor([[[0, 3], [255, 1]]], dtype=torch.uint8)
    mask = codes.one_hot(labels, 4)
    assert mask.sum(dim=1).tolist() == [[[1, 1], [0, 1]]] and mask[0, 3, 0, 1] == 1
    assert codes.one_hot(labels, 4, dont_care=True)[0, 3].tolist() == [[0, 1], [1, 0]]


def test_class_names_groups_and_numbers():
    names = codes.CELEBAMASK_HQ
    assert len(names) == 19 and codes.class_indices(["hair", "l_lip"], names) == (12, 13)
    assert codes.class_indices(["eyes-brows", "5"], names) == (4, 5, 6, 7)
    assert codes.class_indices(["skin"], names) == (1,)
    assert codes.class_names(3) == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: codes.one_hot(torch.arange(151).view(1, 1, 151), 19), ["labels 19, 20", "0..18", "Remap"]),
        (lambda: codes.one_hot(torch.tensor([[[0, 19]]]), 19), ["labels 19,"]),
        (lambda: codes.one_hot(torch.tensor([[[-1]]]), 19), ["labels -1"]),
        (lambda: codes.one_hot(torch.zeros(1, 4, 4), 19), ["float32"]),
        (lambda: codes.class_indices(["moustache"], codes.CELEBAMASK_HQ), ["'moustache'", "hair", "18"]),
        (lambda: codes.class_indices(["19"], codes.CELEBAMASK_HQ), ["'19'"]),
        (lambda: codes.mix_styles(style(), style(3), [0]), ["2 and 3"]),
        (lambda: codes.mix_styles(style(), style(), [4]), ["no class 4", "0..3"]),
        (lambda: codes.mix_shapes(shape(), shape(), [0]), ["class 0", "background"]),
        (lambda: codes.mix_shapes(shape(), shape(rows=4), [1]), ["3 x 9 and 4 x 9"]),
        (lambda: codes.edit_shape(masks(), masks(), [0]), ["class 0", "background"]),
        (lambda: codes.edit_shape(masks(), masks(size=8), [1]), ["6x6", "8x8"]),
        (lambda: codes.edit_shape(masks(), masks(b=3), [1]), ["2 and 3 maps"]),
        (lambda: codes.edit_shape(masks(), None, [1]), ["connect"]),
        (lambda: codes.edit_shape(masks(), masks(), [1], "swap"), ["'swap'", "swap if both"]),
        (lambda: Style(torch.zeros(1, 4, 6), torch.ones(1, 3), NAMES), ["[1, 4, 6]", "[1, 3]"]),
        (lambda: Shape(torch.zeros(1, 2, 6), torch.ones(1, 4), NAMES), ["[1, 2, 6]"]),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
