"""AM-Adapter's networks against plain second writings, and their files."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pack.py.am_adapter import pair_store
from pack.py.am_adapter.agreement import PAPER_FORMULAS, PUBLISHED_CODE
from pack.py.am_adapter.checkpoint import (
    controlnext_shapes,
    load_controlnext,
    load_matcher,
    matcher_metadata,
    matcher_shapes,
    parse_controlnext,
    parse_matcher,
)
from pack.py.am_adapter.model import (
    ControlNeXt,
    ControlNeXtLayout,
    Encoder,
    Matcher,
    MatcherLayout,
    PivotConvolution,
    embed_time,
    inject,
)

SMALL = MatcherLayout(heads=2, widths=(4, 6, 4))
SMALL_CONTROL = ControlNeXtLayout(out_channels=6, widths=(4, 8, 16), time_channels=8, time_width=8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scrambled(network, seed=0):
    """Every weight random: norms start as ones and zeros, which would hide errors."""
    draw = rng(seed)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.3 + (0.5 if weight.ndim == 1 else 0.0)
    return network.eval().requires_grad_(False)


def written_out(encoder, volume):
    """phi as the paper's formulas: two convolutions a layer, and a norm over everything of a sample, in float64."""
    x = volume.double()
    for layer in encoder.double().conv4d:
        pivot, norm = layer[0], layer[1]
        flat = rearrange(x, "b l c h w -> (b l) c h w")
        y = F.conv2d(flat, pivot.query_conv.weight, pivot.query_conv.bias)
        y = y + F.conv2d(flat, pivot.supp_conv.weight, pivot.supp_conv.bias, padding=1)
        y = rearrange(y, "(b l) c h w -> b c l h w", b=x.shape[0])
        x = rearrange(F.group_norm(y, 1, norm.weight, norm.bias, norm.eps).relu(), "b c l h w -> b l c h w")
    encoder.float()
    return x.float()


def test_a_folded_convolution_is_the_sum_of_its_two():
    pivot = scrambled(PivotConvolution(3, 5))
    x = torch.randn(2, 3, 4, 6, generator=rng())
    expected = F.conv2d(x, pivot.query_conv.weight, pivot.query_conv.bias) + pivot.supp_conv(x)
    torch.testing.assert_close(F.conv2d(x, *pivot.fold(x), padding=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [SMALL, MatcherLayout(heads=1, widths=(4, 8)), MatcherLayout(heads=6, widths=(3,))])
def test_phi_is_the_formula(layout):
    encoder = scrambled(Encoder(layout))
    volume = torch.randn(2, 12, layout.heads + 1, 3, 5, generator=rng(1))
    expected = written_out(encoder, volume)
    torch.testing.assert_close(encoder(volume), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [SMALL, MatcherLayout(heads=6, widths=(3, 9, 2)), MatcherLayout(heads=1, widths=(2,))])
@pytest.mark.parametrize("chunk", [0, 1, 5, 12, 100])
def test_phi_in_chunks_is_phi(layout, chunk):
    encoder = scrambled(Encoder(layout))
    # The mean is far from 0, where a variance from sums of squares would fail.
    volume = torch.randn(2, 12, layout.heads + 1, 3, 5, generator=rng(1)) + 20.0
    found = encoder.forward_in_chunks(lambda rows: volume[:, rows], 12, chunk)
    torch.testing.assert_close(found.decode(), encoder(volume), rtol=1e-5, atol=2e-5)


def test_large_volumes_are_kept_in_16_bits_and_phi_stays_what_it_is(monkeypatch):
    encoder = scrambled(Encoder(SMALL))
    volume = 3 * torch.randn(2, 12, SMALL.heads + 1, 6, 5, generator=rng(1))
    monkeypatch.setattr(pair_store, "LARGE", 0)
    found = encoder.forward_in_chunks(lambda rows: volume[:, rows], 12, 5)
    assert found.numbers.dtype == torch.int16
    expected = encoder(volume)
    torch.testing.assert_close(found.decode(), expected, rtol=0, atol=5e-5 * float(expected.max()))
    torch.testing.assert_close(found.largest(), expected.amax(dim=(1, 2, 3, 4)), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.select([1]).decode(slice(3, 5)), found.decode()[1:, 3:5], rtol=0, atol=0)


def test_a_store_keeps_every_picture_to_15_bits_of_its_largest_number():
    x = torch.randn(1, 3, 2, 4, 4, generator=rng()) * torch.tensor([1e-20, 1.0, 1e20]).view(1, 3, 1, 1, 1)
    x[0, 1, 1] = 0.0
    store = pair_store.PairStore(x, 3, 2)
    store.numbers, store.scale = x.new_empty(x.shape, dtype=torch.int16), x.new_zeros(1, 3, 2, 1, 1)
    store.encode(slice(0, 3), x)
    error = (store.decode() - x).abs().amax(dim=(3, 4))
    assert (error <= x.abs().amax(dim=(3, 4)) / 65000).all() and not store.decode()[0, 1, 1].any()


def test_gradients_reach_every_weight_of_phi():
    encoder = Encoder(SMALL)
    encoder(torch.randn(1, 4, 3, 3, 3, generator=rng())).sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_parts_have_their_encoders_or_upstream_the_first():
    matcher = Matcher(SMALL)
    assert matcher.encoder("up", True) is matcher.encoders[2]
    assert matcher.encoder("up", False) is matcher.encoders[0]
    with pytest.raises(ValueError, match="down, mid, up"):
        matcher.encoder("top", True)


def test_the_published_layouts_have_the_published_sizes():
    assert len(matcher_shapes()) == 72
    assert sum(torch.Size(shape).numel() for shape in matcher_shapes().values()) == 39_744
    assert len(controlnext_shapes()) == 52
    assert sum(torch.Size(shape).numel() for shape in controlnext_shapes().values()) == 3_526_400


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.matcher.{k}": v for k, v in s.items()}]
)
def test_a_matchers_file_comes_back_as_it_was(wrap):
    saved = scrambled(Matcher(SMALL)).state_dict()
    loaded = load_matcher(wrap(saved))
    assert loaded.layout == SMALL
    assert list(loaded.state_dict()) == list(saved)
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("behaviour", [PUBLISHED_CODE, PAPER_FORMULAS, dataclasses.replace(PAPER_FORMULAS, transposed=True)])
def test_a_matchers_file_says_how_it_was_trained(behaviour):
    state = Matcher(SMALL).state_dict()
    assert parse_matcher(state, matcher_metadata(SMALL, behaviour)).behaviour == behaviour
    assert parse_matcher(state).behaviour == PUBLISHED_CODE
    with pytest.raises(ValueError, match="newer version"):
        parse_matcher(state, {"exemplary.am_adapter": '{"behaviour": "next"}'})


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {}, "no tensors"),
        (lambda s: {"conv_in.weight": torch.zeros(1)}, "conv_in.weight"),
        (lambda s: without(s, "encoders.1.conv4d.0.1.bias"), "lacks encoders.1.conv4d.0.1.bias"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "unexpected are extra"),
        (lambda s: {**s, "encoders.2.conv4d.0.1.bias": torch.zeros(9)}, r"encoders.2.conv4d.0.1.bias \[9\] instead of \[4\]"),
        (lambda s: {**s, "encoders.0.conv4d.3.0.query_conv.weight": torch.zeros(())}, "not an AM-Adapter matcher"),
        (lambda s: {**s, **{f"ema.{k}": v for k, v in s.items()}}, "more than once, under no prefix, ema."),
    ],
)
def test_a_file_that_is_no_matcher_is_named_as_such(change, message):
    with pytest.raises(ValueError, match=message):
        parse_matcher(change(Matcher(SMALL).state_dict()))


def test_a_controlnexts_file_comes_back_as_it_was():
    saved = scrambled(ControlNeXt(SMALL_CONTROL)).state_dict()
    loaded = load_controlnext({f"controlnext.{key}": value for key, value in saved.items()})
    assert loaded.layout == SMALL_CONTROL
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "key, message", [("mid_convs.1.weight", "lacks mid_convs.1.weight"), ("down_res.0.norm2.bias", "lacks down_res.0.norm2.bias")]
)
def test_a_file_that_is_no_controlnext_is_named_as_such(key, message):
    with pytest.raises(ValueError, match=message):
        parse_controlnext(without(ControlNeXt(SMALL_CONTROL).state_dict(), key))


def test_controlnext_knows_the_time_and_any_size():
    network = scrambled(ControlNeXt(SMALL_CONTROL))
    picture = torch.rand(2, 3, 40, 24, generator=rng())
    early, late = network(picture, torch.tensor(900)), network(picture, torch.tensor([900, 10]))
    assert early.shape == (2, 6, 5, 3)
    torch.testing.assert_close(late[0], early[0], rtol=0, atol=1e-5)
    assert (late[1] - early[1]).abs().max() > 1e-3


def test_embed_time_are_cosines_first():
    code = embed_time(torch.tensor([0.0, 3.0]), 6)
    torch.testing.assert_close(code[0], torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(code[1, 3], torch.tensor(3.0).sin())
    torch.testing.assert_close(code[1, 1], torch.tensor(3.0 / 10000 ** (1 / 3)).cos())


def test_what_is_injected_has_the_features_mean_and_deviation():
    h = torch.randn(3, 6, 5, 4, generator=rng()) * 3 + 1
    control = torch.randn(1, 6, 9, 7, generator=rng(1))
    added = inject(h, control, 1.0) - h
    for statistic in ("mean", "std"):
        mine, theirs = (getattr(t, statistic)(dim=(1, 2, 3)) for t in (added, h))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inject(h, control, 0.5) - h, added / 2, rtol=0, atol=1e-5)
    assert inject(h, control, 0.0) is h
    # A constant control has no deviation: only the mean is added, nothing is divided by zero.
    even = inject(h, torch.ones(1, 6, 2, 2), 1.0) - h
    torch.testing.assert_close(even, reduce(h, "b c h w -> b 1 1 1", "mean").expand_as(h), rtol=0, atol=1e-4)


def test_half_precision_features_stay_half_and_finite():
    found = inject(torch.full((1, 6, 4, 4), 6e4).half(), torch.randn(1, 6, 4, 4, generator=rng()).half(), 0.01)
    assert found.dtype == torch.float16 and found.isfinite().all()


@pytest.mark.parametrize("prefix", ["module.", "state_dict.module.", "matcher."])
def test_weights_are_found_beside_what_a_training_program_saves(prefix):
    state = Matcher(SMALL).state_dict()
    found = parse_matcher({**{f"{prefix}{key}": value for key, value in state.items()}, "step": torch.zeros(1)})
    assert set(found.weights) == set(state)
