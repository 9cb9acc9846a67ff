"""The joint attention of transformer bases, without a host: layout of the sequence, bias, rotation."""

from __future__ import annotations

import math

import pytest
import torch
from pack.py.joint.bias import NEVER, Bias, ExtraKeys, Separation, sequence_bias, stack
from pack.py.joint.layout import Call, Layout, Span
from pack.py.joint.rotation import Rotary, Rotation


def test_spans_follow_one_another():
    layout = Layout((3, 2), (2, 4), (5, 1), padding=3)
    assert layout.text_spans() == [Span(0, 3), Span(3, 5)]
    assert layout.cells == Span(5, 13)
    assert layout.reference_tokens() == [slice(13, 18), slice(18, 19)]
    assert layout.padding_span == Span(19, 22) and layout.total == 22


def test_references_side_by_side_are_found_by_their_owners():
    layout = Layout((3,), (1, 2), (4, 2, 2), reference_owners=(0, 0, 1, 2, 0, 0, 1, 2))
    assert layout.reference_tokens() == [[5, 6, 9, 10], [7, 11], [8, 12]]


def test_calls_are_found_by_their_number_of_tokens():
    layout = Layout((3, 2), (2, 4), padding=1)
    whole, text, image = Span(0, 14), Span(0, 5), Span(5, 14)
    assert layout.find_call(14, 14) == Call(whole, whole)
    assert layout.find_call(5, 5) == Call(text, text)
    assert layout.find_call(9, 9) == Call(image, image)
    assert layout.find_call(9, 5) == Call(image, text)
    assert layout.find_call(9, 257) is None and layout.find_call(13, 13) is None
    assert Layout((9,), (3, 3)).is_ambiguous and not layout.is_ambiguous


def attention(q, k, v, bias):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, dim=-1) @ v


def test_the_table_says_who_attends_to_whom():
    layout = Layout((2, 3), (1, 2), padding=1)
    weights = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
    table = sequence_bias(layout, weights).table(torch.float32)[0, 0]
    base, region, cells, padding = slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 8)
    assert (table[base, region] == NEVER).all() and (table[region, base] == NEVER).all()
    assert not table[base, base].any() and not table[cells, cells].any()
    torch.testing.assert_close(table[cells, base], torch.tensor([[0.0, 0.0], [math.log(0.25)] * 2]))
    torch.testing.assert_close(table[cells, region], torch.tensor([[NEVER] * 3, [math.log(0.5)] * 3]))
    torch.testing.assert_close(table[region, cells], table[cells, region].T)
    # Padding counts as the mean cell.
    torch.testing.assert_close(table[padding, base], torch.full((1, 2), math.log(0.625)))


def test_one_text_without_weights_needs_no_bias():
    assert stack([sequence_bias(Layout((4,), (2, 2)), torch.ones(1, 4))]).queries.shape[-1] == 0


def test_references_of_regions_attend_to_themselves_only():
    layout = Layout((2,), (1, 2), (1, 2, 2))
    weights = {1: torch.tensor([1.0, 0.0]), 2: torch.tensor([0.0, 0.5])}
    table = sequence_bias(layout, torch.ones(1, 2), references=weights).table(torch.float32)[0, 0]
    text, cells, free, one, two = slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 7), slice(7, 9)
    for asking in (text, free, two):
        assert (table[asking, one] == NEVER).all()
    for asked in (text, cells, free, two):
        assert (table[one, asked] == NEVER).all()
    assert not table[one, one].any() and not table[cells, free].any() and not table[free, cells].any()
    torch.testing.assert_close(table[cells, one], torch.tensor([[0.0] * 2, [NEVER] * 2]))
    torch.testing.assert_close(table[cells, two], torch.tensor([[NEVER] * 2, [math.log(0.5)] * 2]))


def test_separated_cells_and_padding_of_the_largest_region():
    layout = Layout((1,), (1, 3), padding=1)
    separation = Separation(torch.tensor([0, 1, 1]), torch.tensor([[0.0, -2.0], [-2.0, 0.0]]))
    table = sequence_bias(layout, torch.ones(1, 3), separations=[separation]).table(torch.float32)[0, 0, 1:, 1:]
    owner = torch.tensor([0, 1, 1, 1])
    torch.testing.assert_close(table, torch.where(owner[:, None] == owner, 0.0, -2.0))


def test_an_exemplar_that_is_the_image_changes_nothing():
    layout = Layout((2,), (2, 2), padding=1)
    share = torch.tensor([0.3, 0.5, 0.9, 0.0])
    extra = ExtraKeys(4, share.log().clamp_min(NEVER), torch.zeros(4, 0), torch.zeros(4, 0))
    bias = sequence_bias(layout, torch.ones(1, 4), own=torch.log1p(-share), extras=[extra])
    q, k, v = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0)).unbind()
    cells = slice(2, 6)
    both = attention(q, torch.cat([k, k[cells]]), torch.cat([v, v[cells]]), bias.table(torch.float32)[0, 0])
    torch.testing.assert_close(both, attention(q, k, v, 0.0))


def test_channels_give_the_same_attention_as_the_table():
    generator = torch.Generator().manual_seed(0)
    layout = Layout((3, 2, 4), (3, 4), (2, 2), padding=2)
    weights = torch.rand(3, 12, generator=generator)
    weights[1, :6], weights[2, 6:] = 0.0, 0.0
    references = {1: (torch.arange(12) < 6).float()}
    separation = Separation((torch.arange(12) >= 6).long(), torch.tensor([[0.0, NEVER], [NEVER, 0.0]]))
    bias = stack([sequence_bias(layout, weights, references=references, separations=[separation])])
    q, k, v = torch.randn(3, 1, 2, layout.total, 16, generator=generator).unbind()
    table = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.table(torch.float32))
    channels = torch.nn.functional.scaled_dot_product_attention(*bias.widen(q, k, v))[..., :16]
    torch.testing.assert_close(channels, table, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_channels_in_half_precision_exclude_what_never_is_attended_to(dtype):
    layout = Layout((2, 2), (2, 2))
    weights = torch.tensor([[1.0] * 4, [0.0] * 4])
    bias = sequence_bias(layout, weights)
    q, k, v = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(3))
    wide = bias.widen(q, k, v)
    assert all(x.isfinite().all() for x in wide)
    changed = v.clone()
    changed[:, :, 2:4] += 100
    one, two = (torch.nn.functional.scaled_dot_product_attention(wide[0], wide[1], bias.widen(q, k, x)[2]) for x in (v, changed))
    assert torch.equal(one[:, :, 4:], two[:, :, 4:]) and torch.equal(one[:, :, :2], two[:, :, :2])


def test_rows_are_cut_and_chosen():
    bias = Bias(torch.randn(3, 5, 2), torch.randn(3, 7, 2), 5)
    assert bias.extra == 2
    table = bias.table(torch.float32)
    part = bias.cut(Span(1, 3), Span(2, 5), with_extra=True)
    torch.testing.assert_close(part.table(torch.float32)[:, 0], table[:, 0, 1:3, 2:])
    assert torch.equal(bias.rows(torch.tensor([2])).queries, bias.queries[2:])
    assert bias.without_extra().keys.shape[1] == 5


def encode(x, positions, rotary):
    return Rotation.from_angles(Span(0, x.shape[2]), rotary.angles(positions)[None], x.device)(x, Span(0, x.shape[2]))


@pytest.mark.parametrize("is_right_aligned", (False, True))
def test_texts_get_the_positions_that_they_have_as_the_only_text(is_right_aligned):
    rotary = Rotary((4, 6, 6), 100.0, (0,), is_right_aligned)
    layout = Layout((3, 2), (1, 2), padding=2)
    x = torch.randn(1, 2, layout.total, 16)
    joint = torch.zeros(layout.total, 3)
    joint[:5, 0] = torch.arange(5) + 1
    joint[5:7, 0] = 6 if is_right_aligned else 0
    delta = rotary.text_deltas(layout)
    turned = Rotation.from_angles(layout.text, rotary.angles(delta)[None], x.device)(encode(x, joint, rotary), Span(0, 9))
    wanted = joint.clone()
    # Left: both texts count from 1. Right: both end at the token before the image.
    wanted[:3, 0] = torch.tensor([3.0, 4.0, 5.0]) if is_right_aligned else torch.tensor([1.0, 2.0, 3.0])
    wanted[3:5, 0] = torch.tensor([4.0, 5.0]) if is_right_aligned else torch.tensor([1.0, 2.0])
    torch.testing.assert_close(turned, encode(x, wanted, rotary), rtol=1e-5, atol=1e-5)
    padding = rotary.padding_deltas(layout, 1)
    assert padding is None if not is_right_aligned else (padding[:, 0] == 3).all() and not padding[:, 1:].any()


def test_one_text_or_texts_without_positions_are_not_moved():
    assert Rotary((4,), 100.0, (0,)).text_deltas(Layout((5,), (1, 1))) is None
    assert Rotary((4,), 100.0).text_deltas(Layout((5, 2), (1, 1))) is None


def test_tokens_outside_of_a_call_are_not_rotated():
    rotation = Rotation.from_angles(Span(0, 2), torch.ones(1, 2, 2), torch.device("cpu"))
    x = torch.randn(1, 1, 3, 4)
    assert torch.equal(rotation(x, Span(2, 5)), x)
