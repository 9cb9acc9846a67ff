"""Noise fusion against the published steps in float64, and the properties that hold whatever the models predict."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pack.py.snf.fusion import (
    MaskSettings,
    compute_shares,
    fuse,
    guidance_response,
    log_saliency,
    mask_to_latent,
    saliency_shares,
)

SIZES = [(64, 64), (24, 16), (17, 33)]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def published_saliency(r):
    """The authors' steps one by one, in float64: pool, resize, mean, softmax over space."""
    b, _, h, w = r.shape
    r = F.avg_pool2d(r.double().abs(), 4, stride=1, padding=1)
    r = F.interpolate(r, size=(h, w), mode="bilinear").mean(dim=1)
    return r.reshape(b, h * w).softmax(dim=-1).reshape(b, 1, h, w)


def published_mask(response_t, response_s):
    return torch.stack([published_saliency(response_t), published_saliency(response_s)]).argmax(dim=0)


class Model(NamedTuple):
    """The two predictions of one model, and its guidance scale."""

    base: torch.Tensor
    full: torch.Tensor
    guidance: float

    @property
    def guided(self):
        return self.base + (self.full - self.base) * self.guidance

    def response(self, unit=1.0, scale=None):
        return guidance_response(self.full, self.base, self.guidance if scale is None else scale, unit)


class Blended(NamedTuple):
    prediction: torch.Tensor
    shares: torch.Tensor


def blend(models, settings=MaskSettings(), unit=1.0, **masks):  # noqa: B008
    """The fusion stage as the guider computes it."""
    shares = saliency_shares([model.response(unit, settings.saliency_scale) for model in models], settings, **masks)
    return Blended(fuse([model.guided for model in models], shares), shares)


def saliency_mask(response_t, response_s, settings=MaskSettings()):  # noqa: B008
    return saliency_shares([response_t, response_s], settings)[1]


def two_models(b=2, h=16, w=24, guidance=5.0, dtype=torch.float64):
    scene_null, scene_text, subject_text, subject_aug = random(4, b, 4, h, w, dtype=dtype)
    return Model(scene_null, scene_text, guidance), Model(subject_text, subject_aug, guidance)


def maps(m=3, b=2, k=1, h=6, w=7):
    return log_saliency(random(m * b, k, h, w), MaskSettings(smoothing="none", per_channel=True)).reshape(m, b, k, h, w)


# The mask.


@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("b", [1, 3])
def test_matches_the_published_steps(b, h, w):
    response_t, response_s = 5 * random(2, b, 4, h, w, dtype=torch.float64)
    mask = saliency_mask(response_t, response_s)
    assert mask.shape == (b, 1, h, w) and 0.1 < mask.mean() < 0.9
    assert torch.equal(mask, published_mask(response_t, response_s).double())
    torch.testing.assert_close(log_saliency(response_s).exp(), published_saliency(response_s), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(dtype):
    response_t, response_s = 5 * random(2, 2, 4, 64, 64, dtype=dtype)
    mask = saliency_mask(response_t, response_s)
    assert mask.dtype == torch.float32
    # A cell may flip only where the two maps are equal to float32 rounding.
    assert (mask != published_mask(response_t, response_s)).float().mean() < 1e-3


@pytest.mark.parametrize("softness, expected", [(0.0, 0.0), (0.3, 0.5)])
def test_equal_opposite_and_absent_responses_are_ties(softness, expected):
    r = random(1, 4, 17, 33)
    zero = torch.zeros_like(r)
    mask = saliency_mask(torch.cat([r, r, zero]), torch.cat([r, -r, zero]), MaskSettings(softness=softness))
    assert torch.equal(mask, torch.full_like(mask, expected))


def test_a_model_without_a_response_takes_what_is_below_the_others_mean():
    r = 5 * random(1, 4, 32, 32, dtype=torch.float64)
    mask = saliency_mask(r, torch.zeros_like(r), MaskSettings(smoothing="none"))
    assert torch.equal(mask == 1, log_saliency(r, MaskSettings(smoothing="none")) < -math.log(32 * 32))


def test_pictures_of_a_batch_do_not_see_each_other():
    response_t, response_s = 5 * random(2, 3, 4, 16, 24)
    response_s[1] *= 7
    alone = [saliency_mask(response_t[i : i + 1], response_s[i : i + 1]) for i in range(3)]
    assert torch.equal(saliency_mask(response_t, response_s), torch.cat(alone))


def test_the_channels_share_a_mask_unless_asked_otherwise():
    response_t, response_s = 5 * random(2, 2, 4, 16, 24, dtype=torch.float64)
    each = saliency_mask(response_t, response_s, MaskSettings(per_channel=True))
    assert each.shape == (2, 4, 16, 24)
    for channel in range(4):
        one = slice(channel, channel + 1)
        assert torch.equal(each[:, one], published_mask(response_t[:, one], response_s[:, one]).double())


def test_a_soft_mask_is_a_sigmoid_of_the_difference_of_the_log_maps():
    response_t, response_s = 5 * random(2, 2, 4, 16, 24, dtype=torch.float64)
    difference = published_saliency(response_s).log() - published_saliency(response_t).log()
    soft = saliency_mask(response_t, response_s, MaskSettings(softness=0.7))
    torch.testing.assert_close(soft, torch.sigmoid(difference / 0.7))
    nearly = saliency_mask(response_t, response_s, MaskSettings(softness=1e-9))
    torch.testing.assert_close(nearly, saliency_mask(response_t, response_s))


# Smoothing.


def test_gaussian_smoothing_matches_its_weights():
    sigma, h, w = 0.8, 9, 8
    r = random(1, 1, h, w, dtype=torch.float64)
    g = [math.exp(-0.5 * (n / sigma) ** 2) for n in range(-3, 4)]
    omega = torch.zeros(h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            for dy in range(-3, 4):
                for dx in range(-3, 4):
                    value = r[0, 0, min(max(y + dy, 0), h - 1), min(max(x + dx, 0), w - 1)].abs()
                    omega[y, x] += g[dy + 3] * g[dx + 3] / sum(g) ** 2 * value
    found = log_saliency(r, MaskSettings(smoothing="gaussian", gaussian_sigma=sigma))[0, 0]
    torch.testing.assert_close(found, omega.flatten().log_softmax(0).reshape(h, w))


def test_gaussian_smoothing_works_on_a_latent_smaller_than_its_reach():
    even = log_saliency(torch.ones(1, 4, 1, 2), MaskSettings(smoothing="gaussian", gaussian_sigma=3.0))
    torch.testing.assert_close(even, torch.full_like(even, -math.log(2)))


def test_the_published_smoothing_darkens_the_border_and_the_gaussian_does_not():
    flat = torch.ones(1, 4, 12, 12)
    average, gaussian = log_saliency(flat)[0, 0], log_saliency(flat, MaskSettings(smoothing="gaussian"))[0, 0]
    assert average[0, 0] < average[6, 6] and float(gaussian.max() - gaussian.min()) < 1e-6


# Responses and units.


def test_the_guidance_scale_is_a_temperature_of_the_mask():
    hot, cold = (blend(two_models(h=64, w=64, guidance=s)).shares[1] for s in (1.0, 5.0))
    assert (hot != cold).any()
    fixed = [blend(two_models(guidance=s), MaskSettings(saliency_scale=1.0)).shares for s in (1.0, 5.0)]
    assert torch.equal(*fixed)
    assert torch.equal(fixed[0], blend(two_models(guidance=1.0)).shares)


def test_each_model_counts_with_its_own_guidance_scale():
    scene, subject = two_models()
    subject = Model(subject.base, subject.full, 2.0)
    expected = published_mask(5 * (scene.full - scene.base), 2 * (subject.full - subject.base))
    assert torch.equal(blend([scene, subject]).shares[1], expected.double())


@pytest.mark.parametrize("sigma", [0.5, 3.3, 14.0, torch.tensor(1.1, dtype=torch.float64), torch.tensor([14.0, 0.5])])
def test_denoised_pictures_give_the_same_mask_and_the_same_fusion(sigma):
    eps = two_models()
    x = random(2, 4, 16, 24, seed=9, dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1).double() if isinstance(sigma, torch.Tensor) else sigma
    x0 = [Model(x - s * p.base, x - s * p.full, p.guidance) for p in eps]
    expected, found = blend(eps), blend(x0, unit=sigma)
    assert torch.equal(found.shares, expected.shares)
    for mine, theirs in zip(x0, eps, strict=True):  # up to the sign; sigma may be float32
        torch.testing.assert_close(-mine.response(sigma), theirs.response(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.prediction, x - s * expected.prediction)
    assert not torch.equal(blend(x0).shares, expected.shares), "without the division by sigma the mask differs"


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9, torch.tensor([0.3, 0.7])])
def test_rectified_flow_gives_the_same_mask_as_its_epsilon(sigma):
    """x = (1 - sigma) x0 + sigma eps: a difference of x0 is sigma / (1 - sigma) times that of epsilon."""
    eps = two_models()
    x = random(2, 4, 16, 24, seed=9, dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1).double() if isinstance(sigma, torch.Tensor) else sigma
    x0 = [Model((x - s * p.base) / (1 - s), (x - s * p.full) / (1 - s), p.guidance) for p in eps]
    expected = blend(eps).shares
    assert torch.equal(blend(x0, unit=sigma / (1 - sigma)).shares, expected)
    assert not torch.equal(blend(x0, unit=sigma).shares, expected), "divided by sigma only, the maps are sharper"


def test_at_the_first_step_of_a_flow_the_response_is_zero_and_the_map_flat():
    scene, _ = two_models(dtype=torch.float32)
    response = scene.response(torch.tensor([math.inf, 1.0]))
    assert torch.equal(response[0], torch.zeros(4, 16, 24)) and response[1].abs().min() > 0
    flat = log_saliency(response, MaskSettings(smoothing="none"))[0]
    torch.testing.assert_close(flat, torch.full_like(flat, -math.log(16 * 24)))


def test_the_guidance_scale_multiplies_the_difference():
    base, full = random(2, 1, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(guidance_response(full, base, 5.0), 5 * (full - base))


# Which model is used where.


def test_the_largest_of_three_maps_takes_the_cell():
    log_maps = maps()
    shares = compute_shares(log_maps)
    assert torch.equal(shares.argmax(dim=0), log_maps.argmax(dim=0))
    assert torch.equal(shares.sum(dim=0), torch.ones(2, 1, 6, 7)) and set(shares.unique().tolist()) == {0.0, 1.0}


def test_at_a_tie_of_subjects_the_earlier_one_takes_the_cell():
    log_maps = maps()
    log_maps[2] = log_maps[1]
    assert compute_shares(log_maps)[2].sum() == 0


def test_three_models_together():
    predictions = [*two_models(), Model(*random(2, 2, 4, 16, 24, seed=5, dtype=torch.float64), 3.0)]
    found = blend(predictions)
    owner = torch.stack([published_saliency(p.guidance * (p.full - p.base)) for p in predictions]).argmax(dim=0)
    for number, prediction in enumerate(predictions):
        mine = (owner == number).expand(-1, 4, -1, -1)
        assert mine.any() and torch.equal(found.prediction[mine], prediction.guided[mine])


@pytest.mark.parametrize("settings", [MaskSettings(), MaskSettings(softness=0.5)])
def test_a_forbidden_model_gives_nothing_and_the_best_of_the_others_takes_its_place(settings):
    log_maps = maps()
    place = torch.zeros(1, 6, 7)
    place[:, 2:5] = 1
    shares, free = compute_shares(log_maps, settings, forbid={2: place}), compute_shares(log_maps, settings)
    assert torch.equal(shares[..., :2, :], free[..., :2, :]) and torch.equal(shares[..., 5:, :], free[..., 5:, :])
    without = compute_shares(log_maps[:2], settings)
    torch.testing.assert_close(shares[:2, ..., 2:5, :], without[..., 2:5, :])
    assert shares[2, ..., 2:5, :].sum() == 0


@pytest.mark.parametrize("settings", [MaskSettings(), MaskSettings(softness=0.5)])
def test_where_all_subjects_are_forbidden_the_scene_remains(settings):
    everywhere = torch.ones(6, 7)
    shares = compute_shares(
        maps() - torch.tensor([50.0, 0, 0]).reshape(3, 1, 1, 1, 1), settings, forbid={1: everywhere, 2: everywhere}
    )
    assert torch.equal(shares[0], torch.ones(2, 1, 6, 7)) and shares[1:].sum() == 0


def test_a_half_forbidden_hard_cell_passes_on_half():
    log_maps = torch.tensor([-3.0, -1.0, -2.0]).reshape(3, 1, 1, 1, 1).expand(3, 1, 1, 2, 2)
    shares = compute_shares(log_maps, forbid={1: torch.full((2, 2), 0.25), 2: torch.full((2, 2), 0.5)})
    assert shares[:, 0, 0, 0, 0].tolist() == [0.125, 0.75, 0.125]


def test_a_half_forbidden_soft_cell_counts_half_its_map():
    log_maps = maps(m=2)
    shares = compute_shares(log_maps, MaskSettings(softness=1.0), forbid={1: torch.full((6, 7), 0.5)})
    p = log_maps.exp() * torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1, 1)
    torch.testing.assert_close(shares, p / p.sum(dim=0))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_forced_model_takes_its_place_even_where_it_is_forbidden(number):
    log_maps = maps()
    place = torch.zeros(6, 7)
    place[:, 3:] = 1
    shares = compute_shares(log_maps, force={number: place}, forbid={max(number, 1): place})
    assert torch.equal(shares[..., :3], compute_shares(log_maps)[..., :3])
    assert (shares[number, ..., 3:] == 1).all() and torch.equal(shares.sum(dim=0), torch.ones(2, 1, 6, 7))


def test_a_model_that_was_not_evaluated_has_no_share():
    one, other = 5 * random(2, 2, 4, 6, 7)
    shares = saliency_shares([one, None, other])
    assert shares.shape[0] == 3 and shares[1].sum() == 0
    assert torch.equal(shares[[0, 2]], saliency_shares([one, other]))


def test_in_the_subject_stage_the_scene_fills_only_what_is_forbidden_to_all():
    one, other = 5 * random(2, 1, 4, 6, 7)
    left, top = torch.zeros(6, 7), torch.zeros(6, 7)
    left[:, :3], top[:2] = 1, 1
    shares = saliency_shares([100 * one, one, other], scene_is_last_resort=True, forbid={1: left, 2: top})
    both = (left * top)[None, None]
    assert torch.equal(shares[0], both)
    assert (shares[1, 0, 0, :, :3] == 0).all() and (shares[2, 0, 0, :2] == 0).all()


def test_models_forced_at_one_place_share_it():
    shares = compute_shares(maps(), force={1: torch.ones(6, 7), 2: torch.full((6, 7), 0.25)})
    assert (shares[0] == 0).all()
    torch.testing.assert_close(shares[1], torch.full((2, 1, 6, 7), 0.8))
    torch.testing.assert_close(shares[2], torch.full((2, 1, 6, 7), 0.2))


def test_a_mask_of_any_size_covers_the_cells_it_covers():
    mask = torch.zeros(2, 48, 56)
    mask[0, :24] = 1
    mask[1, :, :4] = 1
    cells = mask_to_latent(mask, 3, 6, 7)
    assert cells.shape == (3, 1, 6, 7) and torch.equal(cells[2], cells[0])
    assert (cells[0, 0, :3] == 1).all() and (cells[0, 0, 3:] == 0).all()
    assert (cells[1, 0, :, 0] == 0.5).all() and (cells[1, 0, :, 1:] == 0).all()


# The fused prediction.


def test_fusing_is_the_sum_weighted_with_the_shares():
    guided, shares = random(3, 2, 4, 6, 7, dtype=torch.float64), maps().double().softmax(dim=0)
    torch.testing.assert_close(fuse(list(guided), shares), (guided * shares).sum(dim=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cell_of_one_model_is_that_models_prediction_to_the_bit(dtype):
    guided = list((random(3, 2, 4, 6, 7) * 1000).to(dtype))
    shares = compute_shares(maps())
    fused = fuse(guided, shares)
    assert fused.dtype == dtype
    for prediction, share in zip(guided, shares, strict=True):
        mine = (share == 1).expand(-1, 4, -1, -1)
        assert torch.equal(fused[mine], prediction[mine])


def test_models_that_agree_are_reproduced_to_the_bit_whatever_the_shares():
    prediction = random(2, 4, 6, 7) * 1000
    assert torch.equal(fuse([prediction] * 3, maps().softmax(dim=0)), prediction)


def test_identical_models_reproduce_plain_guidance_to_the_bit():
    scene, _ = two_models(dtype=torch.float32)
    plain = scene.base + (scene.full - scene.base) * 5.0
    for settings in (MaskSettings(), MaskSettings(softness=0.5), MaskSettings(per_channel=True)):
        assert torch.equal(blend([scene, scene], settings, unit=3.0).prediction, plain)


def test_nothing_given_is_written_to():
    predictions = two_models()
    kept = [tensor.clone() for p in predictions for tensor in (p.base, p.full)]
    mask = torch.ones(3, 3)
    blend(predictions, MaskSettings(softness=1.0), unit=2.0, force={1: mask}, forbid={1: mask})
    assert all(torch.equal(a, b) for a, b in zip(kept, [t for p in predictions for t in (p.base, p.full)], strict=True))
    assert torch.equal(mask, torch.ones(3, 3))


# What is refused.


@pytest.mark.parametrize(
    "named", [{"smoothing": "box"}, {"gaussian_sigma": 0.0}, {"softness": -1.0}, {"softness": math.nan}, {"saliency_scale": 0.0}]
)
def test_a_setting_without_a_meaning_is_refused(named):
    with pytest.raises(ValueError, match=next(iter(named))):
        MaskSettings(**named)


@pytest.mark.parametrize(
    "run, says",
    [
        (lambda: log_saliency(torch.ones(1, 4, 3, 8, 8)), r"latent is \[1, 4, 3, 8, 8\]"),
        (lambda: log_saliency(torch.ones(1, 4, 1, 8)), "1 x 8 pixels is too small"),
        (
            lambda: fuse([torch.ones(1, 4, 8, 8), torch.ones(1, 16, 8, 8)], torch.ones(2, 1, 1, 8, 8)),
            "models with one latent space",
        ),
        (lambda: compute_shares(maps(), forbid={0: torch.ones(2, 2)}), "forbid names model 0"),
        (lambda: compute_shares(maps(), force={3: torch.ones(2, 2)}), "force names model 3"),
        (lambda: mask_to_latent(torch.ones(1, 1, 2, 2), 1, 2, 2), "mask must be"),
        (lambda: mask_to_latent(torch.ones(0, 2, 2), 1, 2, 2), "mask must be"),
        (lambda: two_models()[0].response(0.0), "x0_per_epsilon is 0.0"),
        (lambda: blend([two_models()[0], two_models(w=16)[1]]), "different shapes"),
    ],
)
def test_what_cannot_be_fused_is_refused(run, says):
    with pytest.raises(ValueError, match=says):
        run()
