"""The all-in-one node of noise fusion: what KSampler does, with a FusionGuider."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from .. import inputs

NODE = "Subject Fusion Sampler (SNF)"
SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def sample(guider: Any, latent: dict, seed: int, steps: int, sampler: str, scheduler: str, denoise: float) -> dict:
    """The LATENT that KSampler would return if it used this guider; noise masks and previews included."""
    import latent_preview

    seed = inputs.check_integer(seed, NODE, "seed", 0, 2**64 - 1)
    steps = inputs.check_integer(steps, NODE, "steps", 1, 10000)
    denoise = inputs.check_number(denoise, NODE, "denoise", 0.0, 1.0)
    inputs.check_choice(sampler, NODE, "sampler_name", SAMPLERS)
    inputs.check_choice(scheduler, NODE, "scheduler", SCHEDULERS)
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    device = guider.model_patcher.load_device
    plan = comfy.samplers.KSampler(guider.model_patcher, steps, device, sampler, scheduler, denoise)
    callback = latent_preview.prepare_callback(guider.model_patcher, max(1, len(plan.sigmas) - 1))
    with torch.inference_mode():
        out = guider.sample(
            noise,
            samples,
            comfy.samplers.sampler_object(sampler),
            plan.sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}
