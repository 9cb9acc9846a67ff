"""Noise fusion on real tiny models: who is asked when, what is shared and what is not, and every way of running a sampler."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import pytest
import tiny
import torch
from pack.py.host.snf import FusionGuider, Subject


@pytest.fixture(scope="module")
def other():
    """A second checkpoint of the same kind."""
    return tiny.tiny_model(tiny.TinySD15, seed=1)


def person(model, **more):
    return tiny.conditioning(model, "a person with a face", **more)


def text(model, **more):
    return tiny.conditioning(model, "a person", **more)


def subject(model, **more):
    return Subject(model, more.pop("positive", None) or person(model), more.pop("text", None) or text(model), **more)


def fused(scene, *subjects, cfg=5.0, **more):
    return FusionGuider(
        scene, tiny.conditioning(scene, "a street"), tiny.conditioning(scene, tiny.NEGATIVE), cfg, subjects, **more
    )


def run(
    guider, *, steps=10, sampler="euler", scheduler="normal", size=(16, 16), batch=1, seed=0, denoise=1.0, latent=None, **more
):
    """SamplerCustomAdvanced's call."""
    k = comfy.samplers.KSampler(guider.model_patcher, steps, torch.device("cpu"), sampler, scheduler, denoise)
    latent = torch.zeros(batch, 4, *size) if latent is None else latent
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    with torch.inference_mode():
        return guider.sample(noise, latent, sampler, k.sigmas, disable_pbar=True, seed=seed, **more)


def plain(model, positive, negative, cfg=5.0, **more):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return run(guider, **more)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_cfg_pp", "dpmpp_sde"])
def test_identical_sides_are_the_plain_run(sd15, sampler):
    """To the bit: same model, same conditions, so whatever the mask says both sides give the same."""
    positive, negative = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, tiny.NEGATIVE)
    both = FusionGuider(sd15, positive, negative, 5.0, [Subject(sd15, positive, negative)])
    assert torch.equal(run(both, sampler=sampler), plain(sd15, positive, negative, sampler=sampler))


def test_a_separate_copy_of_the_model_is_the_same_too(sd15):
    positive, negative = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, tiny.NEGATIVE)
    both = FusionGuider(sd15, positive, negative, 5.0, [Subject(tiny.tiny_model(), positive, negative)])
    assert torch.equal(run(both), plain(sd15, positive, negative))
