"""Images from code, as KSampler and VAEDecode make them in a workflow: for trainers and measurements."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from einops import rearrange
from torch import Tensor

from .images import save_image


def encode_prompt(clip: Any, text: str) -> list:
    """A CONDITIONING of a prompt, as CLIPTextEncode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample_image(
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
    """One square image [1, 3, side, side] in 0..1."""
    latent = torch.zeros([1, 4, side // 8, side // 8])
    noise = comfy.sample.prepare_noise(latent, seed)
    out = comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=1.0, seed=seed, disable_pbar=True
    )
    return rearrange(vae.decode(out), "b h w c -> b c h w").clamp(0, 1)


@torch.no_grad()
def write_samples(
    file: Path, step: int, drawn: Iterable[tuple[Any, list]], clip: Any, vae: Any, *, steps: int, cfg: float, side: int
) -> None:
    """Write an image of each (MODEL, positive CONDITIONING) as <stem>_<step>_<number>.png beside `file`."""
    for number, (model, positive) in enumerate(drawn, start=1):
        image = sample_image(model, vae, positive, encode_prompt(clip, ""), seed=number, steps=steps, cfg=cfg, side=side)
        save_image(image[0], file.with_name(f"{file.stem}_{step:07d}_{number}.png"))
