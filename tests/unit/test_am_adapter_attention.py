"""Augmented self-attention against the dense textbook form, and its identities."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from pack.py.am_adapter.agreement import PAPER_FORMULAS, PUBLISHED_CODE, ClassAgreement, compare_classes
from pack.py.am_adapter.attention import (
    MODES,
    Exemplar,
    Match,
    Settings,
    augmented_attention,
    match_tokens,
    matching_grid,
)
from pack.py.am_adapter.model import Encoder, MatcherLayout
from pack.py.am_adapter.pair_store import PairStore

HEADS, WIDTH = 2, 6
TARGET, OTHER = (4, 6), (3, 5)  # grids of target and exemplar: neither square, nor equal
VOID = 255
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, another order of sums


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(grid, batch=1, seed=0):
    return torch.randn(batch, grid[0] * grid[1], HEADS * WIDTH, generator=rng(seed))


def labels(grid, seed=0, classes=3, batch=1):
    return torch.randint(classes, (batch, *grid), generator=rng(seed))


def phi(heads=HEADS, seed=0):
    encoder = Encoder(MatcherLayout(heads=heads, widths=(4, 6, 4)))
    draw = rng(seed)
    for weight in encoder.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.3 + (0.5 if weight.ndim == 1 else 0.0)
    return encoder.eval().requires_grad_(False)


def split(x):
    return rearrange(x, "b l (n d) -> b n l d", n=HEADS)


def textbook(q, k, v, parts, own=None):
    """softmax([A_self + own ; A_ref + bias ...]) v with every matrix built. `parts` are (keys, values, bias [b, n, l, m])."""
    q, k, v = (split(x.double()) for x in (q, k, v))
    scale = WIDTH**-0.5
    logits = [q @ k.transpose(-1, -2) * scale + (0.0 if own is None else own[:, None, :, None])]
    values = [v]
    for keys, reference, bias in parts:
        logits.append(q @ split(keys.double()).transpose(-1, -2) * scale + bias.double())
        values.append(split(reference.double()).expand(q.shape[0], -1, -1, -1))
    out = torch.cat(logits, dim=-1).softmax(dim=-1) @ torch.cat(values, dim=2)
    return rearrange(out, "b n l d -> b l (n d)").float()


@pytest.fixture
def scene():
    """q, k, v of two targets; keys and values of one exemplar each; C between them."""
    q, k, v = (tokens(TARGET, 2, seed) for seed in range(3))
    keys, values = tokens(OTHER, 2, 3), tokens(OTHER, 2, 4)
    c = compare_classes(labels(TARGET, 5, batch=2), labels(OTHER, 6, classes=2), TARGET, OTHER)
    return (q, k, v), keys, values, c


def bias_of(mode, c, b=Settings.class_strength):
    c = c.block()[:, None]
    if mode == "class_bias":
        return b * (c - 0.25)
    if mode == "concat_only":
        return torch.zeros_like(c)
    return torch.where(c > 0.5, 0.0, -math.inf)


@pytest.mark.parametrize("mode", ["class_bias", "hard_mask", "concat_only", "masactrl"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
def test_every_mode_is_its_formula(scene, mode, strength, chunk):
    qkv, keys, values, c = scene
    own = None
    if mode == "masactrl":
        own = torch.log1p(-strength * c.block().amax(dim=-1).double())
    expected = textbook(*qkv, [(keys, values, bias_of(mode, c) + math.log(strength))], own)
    found = augmented_attention(*qkv, HEADS, [Exemplar(keys, values, c)], Settings(mode, strength, chunk=chunk))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.isfinite().all()


def test_several_exemplars_share_one_softmax_by_their_weights(scene):
    qkv, keys, values, c = scene
    second = tokens((2, 2), 1, 7), tokens((2, 2), 1, 8)
    other = compare_classes(labels(TARGET, 5, batch=2), labels((2, 2), 9), TARGET, (2, 2))
    bias = bias_of("class_bias", c), bias_of("class_bias", other) + math.log(0.3)
    expected = textbook(*qkv, [(keys, values, bias[0]), (*second, bias[1])])
    exemplars = [Exemplar(keys, values, c), Exemplar(*second, other, weight=0.3)]
    torch.testing.assert_close(augmented_attention(*qkv, HEADS, exemplars), expected, **CLOSE)
    without = augmented_attention(*qkv, HEADS, [exemplars[0], dataclasses.replace(exemplars[1], weight=0.0)])
    torch.testing.assert_close(without, augmented_attention(*qkv, HEADS, exemplars[:1]), rtol=0, atol=0)


def test_balance_is_added_to_the_logits(scene):
    qkv, keys, values, c = scene
    bias = bias_of("class_bias", c) + 0.5 * c.size_correction()[:, None, None]
    found = augmented_attention(*qkv, HEADS, [Exemplar(keys, values, c)], Settings(balance=0.5))
    torch.testing.assert_close(found, textbook(*qkv, [(keys, values, bias)]), **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_is_the_model_alone(scene, mode):
    qkv, keys, values, c = scene
    alone = augmented_attention(*qkv, HEADS, [])
    found = augmented_attention(*qkv, HEADS, [Exemplar(keys, values, c)], Settings(mode, 0.0))
    torch.testing.assert_close(found, alone, rtol=0, atol=0)
    expected = rearrange(F.scaled_dot_product_attention(*map(split, qkv)), "b n l d -> b l (n d)")
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["class_bias", "hard_mask", "concat_only", "masactrl"])
def test_the_effect_stays_within_its_mask(scene, mode):
    qkv, keys, values, c = scene
    where = torch.rand(1, TARGET[0] * TARGET[1], generator=rng(9)).round()
    exemplars = [Exemplar(keys, values, c)]
    alone, everywhere = (augmented_attention(*qkv, HEADS, e, Settings(mode)) for e in ([], exemplars))
    found = augmented_attention(*qkv, HEADS, exemplars, Settings(mode), target_mask=where)
    torch.testing.assert_close(found, torch.where(where[..., None] > 0, everywhere, alone), **CLOSE)
    half = augmented_attention(*qkv, HEADS, exemplars, Settings(mode), target_mask=torch.full_like(where, 0.5))
    torch.testing.assert_close(half, augmented_attention(*qkv, HEADS, exemplars, Settings(mode, 0.5)), **CLOSE)


def test_an_exemplar_equal_to_the_target_changes_nothing(scene):
    (q, k, v), *_ = scene
    found = augmented_attention(q, k, v, HEADS, [Exemplar(k, v)], Settings("concat_only"))
    torch.testing.assert_close(found, augmented_attention(q, k, v, HEADS, []), **CLOSE)


@pytest.mark.parametrize("mode", ["hard_mask", "masactrl"])
@pytest.mark.parametrize("target, exemplar", [(VOID, VOID), (VOID, 0), (0, VOID), (0, 1)])
def test_where_no_class_is_shared_tokens_attend_to_their_own_image(scene, mode, target, exemplar):
    qkv, keys, values, _ = scene
    c = compare_classes(torch.full((1, 1, 1), target), torch.full((1, 9, 9), exemplar), TARGET, OTHER, void=VOID)
    found = augmented_attention(*qkv, HEADS, [Exemplar(keys, values, c)], Settings(mode))
    torch.testing.assert_close(found, augmented_attention(*qkv, HEADS, []), **CLOSE)


def test_maps_of_one_class_leave_nothing_to_compare(scene):
    (q, k, v), keys, values, _ = scene
    c = compare_classes(torch.zeros(1, 5, 5, dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long), TARGET, OTHER)
    exemplars = [Exemplar(keys, values, c)]
    concat = augmented_attention(q, k, v, HEADS, exemplars, Settings("concat_only"))
    torch.testing.assert_close(augmented_attention(q, k, v, HEADS, exemplars, Settings("hard_mask")), concat, **CLOSE)
    # masactrl at full strength: the exemplar alone is read.
    replaced = augmented_attention(q, k, v, HEADS, exemplars, Settings("masactrl"))
    expected = rearrange(F.scaled_dot_product_attention(split(q), split(keys), split(values)), "b n l d -> b l (n d)")
    torch.testing.assert_close(replaced, expected, **CLOSE)


def test_half_precision_stays_half_and_finite(scene):
    qkv, keys, values, c = scene
    exemplars = [Exemplar(keys.half(), values.half(), c.to(torch.device("cpu"), torch.float16))]
    for mode in ("class_bias", "hard_mask", "masactrl"):
        found = augmented_attention(*(x.half() for x in qkv), HEADS, exemplars, Settings(mode))
        assert found.dtype == torch.float16 and found.isfinite().all()


# ---- the matcher


def dense_match(encoder, q, keys, c):
    """P = phi(A_ref, C) at the layer's own size, everything at once: [b, n, l, m]."""
    logits = split(q) @ split(keys).transpose(-1, -2) * WIDTH**-0.5
    volume = torch.cat([logits, c.block()[:, None].expand(q.shape[0], -1, -1, -1)], dim=1)
    p = encoder(rearrange(volume, "b c l (h w) -> b l c h w", h=OTHER[0]))
    return rearrange(p, "b l n h w -> b n l (h w)")


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 22])
def test_matching_is_phi_minus_a_quarter_of_its_peak(scene, chunk):
    (q, k, v), keys, values, c = scene
    encoder = phi()
    p = dense_match(encoder, q, keys, c)
    found = match_tokens(encoder, q, keys, HEADS, c, TARGET, OTHER, chunk=chunk)
    expected = p - p.amax(dim=(1, 2, 3), keepdim=True) / 4
    torch.testing.assert_close(found.block(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.block(slice(7, 9)), found.block()[:, :, 7:9], rtol=0, atol=0)
    out = augmented_attention(q, k, v, HEADS, [Exemplar(keys, values, match=found)], Settings("matcher", chunk=chunk))
    torch.testing.assert_close(out, textbook(q, k, v, [(keys, values, expected)]), rtol=1e-4, atol=1e-4)


def test_images_of_a_batch_do_not_see_each_other_but_the_published_code_takes_one_peak(scene):
    (q, *_), keys, _, c = scene
    encoder = phi()
    both = match_tokens(encoder, q, keys, HEADS, c, TARGET, OTHER)
    alone = match_tokens(encoder, q[1:], keys[1:], HEADS, c.select([1]), TARGET, OTHER)
    torch.testing.assert_close(both.select([1]).block(), alone.block(), **CLOSE)
    joint = match_tokens(
        encoder, q, keys, HEADS, c, TARGET, OTHER, behaviour=dataclasses.replace(PAPER_FORMULAS, joint_peak=True)
    )
    assert joint.peak.tolist() == [both.peak.max().item()] * 2


def test_an_encoder_for_one_head_serves_any_number_of_heads(scene):
    (q, *_), keys, _, c = scene
    encoder = phi(heads=1)
    together = match_tokens(encoder, q, keys, HEADS, c, TARGET, OTHER)
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        alone = match_tokens(encoder, q[..., part], keys[..., part], 1, c, TARGET, OTHER)
        torch.testing.assert_close(together.activation()[:, :, head], alone.activation()[:, :, 0], **CLOSE)
    with pytest.raises(ValueError, match="made for layers of 3"):
        match_tokens(phi(heads=3), q, keys, HEADS, c, TARGET, OTHER)


@pytest.mark.parametrize(
    "grid, limit, expected",
    [
        ((64, 64), 1024, (32, 32)),
        ((32, 32), 1024, (32, 32)),
        ((96, 64), 1024, (32, 22)),
        ((5, 7), 12, (3, 4)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_matching_grids_keep_within_their_limit(grid, limit, expected):
    assert matching_grid(grid, limit=limit) == expected


def test_the_published_code_matches_on_its_own_grids_alone():
    assert [matching_grid((s, s), PUBLISHED_CODE) for s in (8, 16, 32, 64)] == [(8, 8), (16, 16), (32, 32), (32, 32)]
    for grid in ((24, 24), (32, 16)):
        with pytest.raises(ValueError, match=f"not {grid[0]}x{grid[1]}"):
            matching_grid(grid, PUBLISHED_CODE)


def test_logits_of_averages_are_averages_of_logits():
    grid, small = (4, 8), (2, 4)
    q, keys = tokens(grid), tokens(grid, seed=1)
    seen = []

    class Spy(Encoder):
        def forward_in_chunks(self, volume, tokens, chunk, exact):
            seen.append(volume(slice(None)))
            return super().forward_in_chunks(volume, tokens, chunk, exact)

    c = compare_classes(labels(small), labels(small, 1), small, small)
    with torch.no_grad():
        match_tokens(Spy(MatcherLayout(HEADS, (4,))), q, keys, HEADS, c, grid, grid, limit=8)
    dense = rearrange(split(q) @ split(keys).transpose(-1, -2) * WIDTH**-0.5, "b n (y x) (h w) -> b n y x h w", y=4, h=4)
    expected = rearrange(dense, "b n (y i) (x j) (h k) (w l) -> b y x n h w i j k l", i=2, j=2, k=2, l=2).mean(
        dim=(-1, -2, -3, -4)
    )
    torch.testing.assert_close(seen[0][:, :, :HEADS], rearrange(expected, "b y x n h w -> b (y x) n h w"), **CLOSE)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_smaller_match_is_enlarged_linearly_on_both_sides(flat, chunk):
    grid, small = (8, 6), (4, 3)
    p = torch.rand(2, 12, HEADS, 12, generator=rng())
    pairs = PairStore.from_tensor(rearrange(p, "b l n (h w) -> b l n h w", h=4))
    found = Match(pairs, p.amax(dim=(1, 2, 3)), grid, grid, small, small, flat=flat)
    if flat:
        large = F.interpolate(rearrange(p, "b l n m -> b n l m"), (48, 48), mode="bilinear")
    else:
        rows = F.interpolate(rearrange(p, "b (y x) n m -> b (n m) y x", y=4), grid, mode="bilinear")
        both = F.interpolate(rearrange(rows, "b (n h w) y x -> b (n y x) h w", n=HEADS, h=4), grid, mode="bilinear")
        large = rearrange(both, "b (n l) h w -> b n l (h w)", n=HEADS)
    expected = large - found.peak[:, None, None, None] / 4
    pieces = [found.block(slice(start, start + chunk)) for start in range(0, 48, chunk)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), expected, **CLOSE)


def test_a_large_layer_is_matched_small_with_target_and_exemplar_of_different_sizes():
    grid, other = (6, 10), (9, 4)
    small, small_other = matching_grid(grid, limit=16), matching_grid(other, limit=16)
    assert small == (3, 5) and small_other == (5, 2)
    q, k, v = (tokens(grid, 1, seed) for seed in range(3))
    keys, values = tokens(other, 1, 3), tokens(other, 1, 4)
    c = compare_classes(labels((20, 20)), labels((30, 7), 1), small, small_other)
    found = match_tokens(phi(), q, keys, HEADS, c, grid, other, limit=16)
    assert found.activation().shape == (1, 15, HEADS, 10)
    whole = augmented_attention(q, k, v, HEADS, [Exemplar(keys, values, match=found)], Settings("matcher"))
    pieces = augmented_attention(q, k, v, HEADS, [Exemplar(keys, values, match=found)], Settings("matcher", chunk=500))
    torch.testing.assert_close(whole, textbook(q, k, v, [(keys, values, found.block())]), **CLOSE)
    torch.testing.assert_close(pieces, whole, **CLOSE)


def test_gradients_reach_the_matcher_through_the_attention_but_not_the_features_through_it(scene):
    (q, k, v), keys, values, c = scene
    encoder = phi().requires_grad_(True)
    q = q.clone().requires_grad_(True)
    found = match_tokens(encoder, q, keys, HEADS, c, TARGET, OTHER)
    found.activation().sum().backward(retain_graph=True)
    assert q.grad is None
    exemplar = Exemplar(keys, values, match=found)
    augmented_attention(q.detach(), k, v, HEADS, [exemplar], Settings("matcher")).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in encoder.parameters())


# ---- refusals


def test_what_is_missing_is_named(scene):
    qkv, keys, values, c = scene
    with pytest.raises(ValueError, match="Load a matcher"):
        augmented_attention(*qkv, HEADS, [Exemplar(keys, values, c)], Settings("matcher"))
    for settings in (Settings("class_bias"), Settings("concat_only", balance=1.0)):
        with pytest.raises(ValueError, match="semantic maps"):
            augmented_attention(*qkv, HEADS, [Exemplar(keys, values)], settings)
    with pytest.raises(ValueError, match="24 target and 15 exemplar tokens, but the layer has 24 and 14"):
        augmented_attention(*qkv, HEADS, [Exemplar(keys[:, :14], values[:, :14], c)])
    with pytest.raises(ValueError, match="matched on 24 and 15"):
        match_tokens(phi(), qkv[0], keys, HEADS, ClassAgreement(c.rows[:, :3], c.keys), TARGET, OTHER)


@pytest.mark.parametrize("wrong", [{"mode": "soft"}, {"strength": -1.0}, {"strength": math.nan}, {"chunk": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="AM-Adapter"):
        Settings(**wrong)


def test_exemplars_of_one_layer_may_have_settings_and_masks_of_their_own(scene):
    """Two exemplars in two modes weigh in one softmax; one that is masked away is as if it were not there."""
    qkv, keys, values, c = scene
    exemplar = Exemplar(keys, values, c)
    nowhere = torch.zeros(1, TARGET[0] * TARGET[1])
    first = dataclasses.replace(exemplar, settings=Settings("hard_mask", strength=0.5))
    second = dataclasses.replace(exemplar, settings=Settings("concat_only"), target_mask=nowhere)
    alone = augmented_attention(*qkv, HEADS, [exemplar], Settings("hard_mask", strength=0.5))
    torch.testing.assert_close(augmented_attention(*qkv, HEADS, [first, second]), alone, **CLOSE)
    both = augmented_attention(*qkv, HEADS, [first, dataclasses.replace(second, target_mask=None)])
    assert not torch.allclose(both, alone)
