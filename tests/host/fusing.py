"""Guiders of noise fusion on tiny models, and runs of them as the host's sampler makes them."""

from __future__ import annotations

import comfy.samplers
import tiny
import torch
from pack.py.host.snf.guider import FusionGuider
from pack.py.host.snf.run import Subject
from pack.py.snf.schedule import Stages

ALWAYS = Stages(0.0, 1.0)


def subject(model, *, positive=None, text=None, **more):
    positive = positive or tiny.conditioning(model, "a person with a face")
    return Subject(model, positive, text or tiny.conditioning(model, "a person"), **more)


def fused(scene, *subjects, cfg=5.0, **more):
    return FusionGuider(
        scene, tiny.conditioning(scene, "a street"), tiny.conditioning(scene, tiny.NEGATIVE), cfg, subjects, **more
    )


def run(guider, *, steps=5, sampler="euler", scheduler="normal", size=(8, 8), batch=1, seed=0, denoise=1.0, latent=None, **more):
    """SamplerCustomAdvanced's call."""
    plan = comfy.samplers.KSampler(guider.model_patcher, steps, torch.device("cpu"), sampler, scheduler, denoise)
    latent = torch.zeros(batch, 4, *size) if latent is None else latent
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return guider.sample(
            noise, latent, comfy.samplers.sampler_object(sampler), plan.sigmas, disable_pbar=True, seed=seed, **more
        )


def plain(model, positive, negative, cfg=5.0, **more):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return run(guider, **more)


def lora(model, amount):
    """A clone with one changed weight, as a LoRA changes it."""
    clone = model.clone()
    key = "diffusion_model.out.2.weight"
    weight = comfy.model_patcher.comfy.utils.get_attr(model.model, key)
    clone.add_patches({key: ("diff", (torch.full_like(weight, 1.0),))}, amount)
    return clone
