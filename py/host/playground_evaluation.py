"""Measures the playground through the host's own nodes. `dev.py playground evaluate` runs `main`."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.sample
import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor

from ..playground import evaluation
from ..playground.evaluation import Figure
from . import playground

STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.5, "dpmpp_2m", "karras"
BATCH = 10


class Studio:
    """The playground's models, loaded once, and the ways to make a picture with them."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = playground.load_model(), playground.load_clip(), playground.load_vae()
        self.judge = evaluation.load_judge(playground.read_weights("judge"))

    def encode(self, text: str) -> list:
        """A CONDITIONING of a prompt, as CLIPTextEncode makes it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model, positive: list, seed: int, steps: int = STEPS, side: int = 128, negative: list | None = None) -> Tensor:
        """One picture [1, 3, side, side] in 0..1, as KSampler and VAEDecode make it."""
        latent = torch.zeros([1, 4, side // 8, side // 8])
        noise = comfy.sample.prepare_noise(latent, seed)
        negative = negative if negative is not None else self.encode("")
        out = comfy.sample.sample(
            model, noise, steps, CFG, SAMPLER, SCHEDULER, positive, negative, latent, denoise=1.0, seed=seed, disable_pbar=True
        )
        return rearrange(self.vae.decode(out), "b h w c -> b c h w").clamp(0, 1)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One picture a prompt."""
        return torch.cat([self.sample(self.model, self.encode(p), s) for p, s in zip(prompts, seeds)])

    def paint_captions(self, scenes: Sequence[evaluation.Scene], seeds: Sequence[int]) -> Tensor:
        """The captions of layouts, without their boxes."""
        return self.paint([s.caption for s in scenes], seeds)

    def round_trip(self, images: Tensor) -> Tensor:
        """Pictures through the VAE and back."""
        latent = self.vae.encode(rearrange(images, "b c h w -> b h w c"))
        return rearrange(self.vae.decode(latent), "b h w c -> b c h w")


def figures(studio: Studio, count: int = 200) -> list[Figure]:
    """Every figure of the base models."""
    return [
        *evaluation.autoencoder_figures(studio.round_trip),
        *evaluation.judge_figures(studio.judge),
        *evaluation.text_figures(studio.judge, studio.paint, count),
    ]
