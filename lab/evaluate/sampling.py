"""Pictures from code, as KSampler and VAEDecode make them in a graph: for trainers and measurements."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from einops import rearrange
from torch import Tensor


def prompt(clip: Any, text: str) -> list:
    """A CONDITIONING of a prompt, as CLIPTextEncode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def picture(
    model: Any,
    vae: Any,
    positive: list,
    negative: list,
    seed: int,
    *,
    steps: int,
    cfg: float,
    side: int,
    sampler: str = "dpmpp_2m",
    scheduler: str = "karras",
) -> Tensor:
    """One square picture [1, 3, side, side] in 0..1."""
    latent = torch.zeros([1, 4, side // 8, side // 8])
    noise = comfy.sample.prepare_noise(latent, seed)
    out = comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=1.0, seed=seed, disable_pbar=True
    )
    return rearrange(vae.decode(out), "b h w c -> b c h w").clamp(0, 1)
