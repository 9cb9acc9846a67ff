"""Noise fusion on transformer bases of rectified flow: units, latents with an axis of one frame, mixed families, edit models."""

from __future__ import annotations

import comfy.samplers
import pytest
import tiny_dit
import torch
from pack.py.host.snf.guider import FusionGuider
from pack.py.host.snf.models import x0_per_epsilon
from pack.py.host.snf.run import Subject
from pack.py.snf.fusion import guidance_response, saliency_shares
from pack.py.snf.schedule import Stages

ALWAYS = Stages(0.0, 1.0)
NAMES = [name for name in ("flux", "chroma", "z_image", "lumina2", "sd3", "qwen", "anima", "wan") if name in tiny_dit.AVAILABLE]
#: Families with Flux.1's VAE and rectified flow.
SHARED = [name for name in ("flux", "chroma", "z_image") if name in tiny_dit.AVAILABLE]


@pytest.fixture(scope="module")
def model():
    made = {}

    def get(name, seed=0):
        if (name, seed) not in made:
            made[name, seed] = tiny_dit.tiny_dit(name, seed)
        return made[name, seed]

    return get


def prompts(name):
    return tiny_dit.conditioning(name, 1), tiny_dit.conditioning(name, 2)


def subject(model, name, **more):
    person, text = tiny_dit.conditioning(name, 3), tiny_dit.conditioning(name, 4)
    return Subject(model, more.pop("positive", person), more.pop("text", text), **{"stages": ALWAYS, **more})


def run(guider, name, steps=3, batch=1, **more):
    latent = torch.zeros(tiny_dit.latent_shape(name, batch=batch))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    plan = comfy.samplers.KSampler(guider.model_patcher, steps, torch.device("cpu"), "euler", "simple")
    with torch.inference_mode():
        return guider.sample(
            noise, latent, comfy.samplers.sampler_object("euler"), plan.sigmas, disable_pbar=True, seed=1, **more
        )


def plain(model, name, positive, negative, cfg=4.0, **more):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return run(guider, name, **more)


@pytest.mark.parametrize("name", NAMES)
def test_equal_sides_are_the_plain_run(model, name):
    positive, negative = prompts(name)
    both = FusionGuider(model(name), positive, negative, 4.0, [Subject(model(name), positive, negative, 4.0, ALWAYS)])
    found, expected = run(both, name, batch=2), plain(model(name), name, positive, negative, batch=2)
    assert found.shape == expected.shape == tiny_dit.latent_shape(name, batch=2) and torch.equal(found, expected)
    assert both.record.shape == (2, 16, 16) and len(both.record.evaluations) == 3


@pytest.mark.parametrize("name", [name for name in ("flux", "qwen") if name in NAMES])
def test_forced_and_forbidden_areas(model, name):
    """Left half forced, right half forbidden: the subject model's own first prediction there, the scene model's here."""
    left, right = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    left[..., :8], right[..., 8:] = 1, 1
    firsts = {}

    def first(kind):
        return lambda step, x0, x, total: firsts.setdefault(kind, x0)

    scene, other = model(name), model(name, 1)
    for kind, stages in (("both", ALWAYS), ("scene", Stages(1.0, 1.0)), ("subject", Stages(0.0, 0.0))):
        masks = {"force": left, "forbid": right} if kind == "both" else {}
        run(FusionGuider(scene, *prompts(name), 4.0, [subject(other, name, stages=stages, **masks)]), name, callback=first(kind))
    assert torch.equal(firsts["both"][..., :8], firsts["subject"][..., :8])
    assert torch.equal(firsts["both"][..., 8:], firsts["scene"][..., 8:])


@pytest.mark.parametrize("name", [name for name in ("flux", "qwen") if name in NAMES])
def test_the_mask_of_an_evaluation_compares_responses_in_epsilon_units(model, name):
    """Against the branches of each model on its own: R = s (1 - sigma) / sigma (x0 - x0), which is s times the difference of epsilon."""
    scene, other = model(name), model(name, 1)
    one = subject(other, name, cfg=3.0)
    guider = FusionGuider(scene, *prompts(name), 4.0, [one])
    seen = []
    run(guider, name, steps=4, callback=lambda step, x0, x, total: seen.append(x.clone()))
    x, sigma = seen[1], guider.record.evaluations[1].sigma

    def x0(patcher, condition):
        found = comfy.samplers.CFGGuider(patcher)
        found.set_conds(condition, condition)
        found.set_cfg(1.0)
        result = []
        shape = tiny_dit.latent_shape(name)
        with torch.inference_mode():
            # noise_scaling of the flow is sigma * noise + (1 - sigma) * latent; with latent 0 it begins at x.
            found.sample(
                x / sigma, torch.zeros(shape), comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]),
                callback=lambda step, denoised, x, total: result.append((x, denoised)), disable_pbar=True,
            )  # fmt: skip
        torch.testing.assert_close(result[0][0], x)
        return result[0][1]

    predictions = [
        [x0(patcher, c) for c in pair] for patcher, pair in ((scene, prompts(name)), (other, (one.positive, one.text)))
    ]
    epsilon = [[(x - (1 - sigma) * p) / sigma for p in pair] for pair in predictions]
    flat = [[e.reshape(1, 16, 16, 16) for e in pair] for pair in epsilon]
    shares = saliency_shares([guidance_response(*flat[0], 4.0), guidance_response(*flat[1], 3.0)])
    assert 0 < shares[1].mean() < 1
    # A pixel may differ only where the two maps are equal to rounding.
    assert (guider.record.shares(1) != shares[:, :, 0]).float().mean() < 0.02


def test_the_first_map_of_a_flow_is_flat_and_the_scene_wins_the_tie(model):
    name = NAMES[0]
    guider = FusionGuider(model(name), *prompts(name), 4.0, [subject(model(name, 1), name)])
    run(guider, name)
    assert guider.record.evaluations[0].sigma == 1.0
    assert guider.record.coverage()[0].tolist() == [1.0, 0.0] and 0 < guider.record.coverage()[1][1] < 1


def test_the_units_of_both_kinds_of_sampling(model):
    import comfy.model_sampling

    sigma = torch.tensor([0.25, 0.5, 1.0])
    flow = model(NAMES[0]).get_model_object("model_sampling")
    assert x0_per_epsilon(flow, sigma).tolist() == [pytest.approx(1 / 3), 1.0, float("inf")]
    assert torch.equal(x0_per_epsilon(comfy.model_sampling.EPS(), sigma), sigma)


@pytest.mark.parametrize("scene", SHARED)
@pytest.mark.parametrize("other", SHARED)
def test_families_with_one_latent_space_share_a_run(model, scene, other):
    """Outside of the mask the scene model's own run; inside of it the subject model's own first prediction, with its own timestep."""
    if scene == other:
        return
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    firsts = []
    guider = FusionGuider(model(scene), *prompts(scene), 4.0, [subject(model(other), other, force=left, forbid=1 - left)])
    found = run(guider, scene, callback=lambda step, x0, x, total: firsts.append(x0))
    assert found.isfinite().all()
    one = subject(model(other), other)
    noise, latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5)), torch.zeros(1, 16, 16, 16)
    sigmas = comfy.samplers.KSampler(guider.model_patcher, 3, torch.device("cpu"), "euler", "simple").sigmas
    for patcher, positive, negative, cfg in ((model(scene), *prompts(scene), 4.0), (model(other), one.positive, one.text, 5.0)):
        alone = comfy.samplers.CFGGuider(patcher)
        alone.set_conds(positive, negative)
        alone.set_cfg(cfg)
        seen = []
        with torch.inference_mode():
            alone.sample(
                noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1,
                callback=lambda step, x0, x, total, seen=seen: seen.append(x0),
            )  # fmt: skip
        firsts.append(seen[0])
    assert torch.equal(firsts[0][..., 8:], firsts[-2][..., 8:]) and torch.equal(firsts[0][..., :8], firsts[-1][..., :8])


@pytest.mark.parametrize("name", [name for name in ("flux", "qwen") if name in NAMES])
def test_an_edit_model_is_the_subject_by_reference_latents_of_its_prompt_only(model, name):
    """The reference acts where the subject model is used, and nowhere else."""
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    text = tiny_dit.conditioning(name, 3)
    firsts = []
    for seed in (7, 8):
        reference = torch.randn(tiny_dit.latent_shape(name), generator=torch.Generator().manual_seed(seed))
        person = tiny_dit.conditioning(name, 3, reference_latents=[reference])
        one = subject(model(name), name, positive=person, text=text, force=left, forbid=1 - left)
        run(
            FusionGuider(model(name), *prompts(name), 4.0, [one]),
            name,
            callback=lambda step, x0, x, total: firsts.append((step, x0)),
        )
    first, second = [x0 for step, x0 in firsts if step == 0]
    assert torch.equal(first[..., 8:], second[..., 8:]) and (first[..., :8] - second[..., :8]).abs().max() > 1e-3


def test_models_that_cannot_share_a_run_are_named(model):
    others = [name for name in ("sd3", "qwen") if name in NAMES]
    for other in others:
        with pytest.raises(ValueError, match="different latent spaces"):
            FusionGuider(model("flux"), *prompts("flux"), 4.0, [subject(model(other), other)])


def test_videos_are_refused(model):
    if "qwen" not in NAMES:
        return
    guider = FusionGuider(model("qwen"), *prompts("qwen"), 4.0, [subject(model("qwen", 1), "qwen")])
    latent = torch.zeros(1, 16, 3, 16, 16)
    with pytest.raises(ValueError, match=r"not of videos.*a length of 1 frame"):
        guider.sample(latent, latent, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))
