"""The VAE: TAESD's architecture trained from nothing on drawn scenes.

The decoder learns to undo the encoder while the latents are jittered a little: the diffusion model's latents will never be exact. At the
end the encoder rests and the decoder alone is finished, so that latents which are already computed stay valid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...training.loop import Schedule, fit
from ..dataset import draw_many, pictures, training_keys

SCENES = 6000
CROP = 64  # pixels; convolutions only, so that crops train what whole images use
BATCH = 16
JITTER = 0.04  # of a latent's standard deviation, which is held near one
SCHEDULE = Schedule(
    steps=3000, learning_rate=1.2e-3, warmup=100, final_rate=0.02, weight_decay=0.0, ema=0.995, checkpoint_every=200, seed=11
)
FINISH = Schedule(
    steps=1000, learning_rate=6e-4, warmup=50, final_rate=0.02, weight_decay=0.0, ema=0.995, checkpoint_every=200, seed=15
)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Squared error, plus absolute error of the pixel differences: edges are what a drawn world consists of."""
    flat = F.mse_loss(decoded, target)
    return flat + 0.05 * sum(F.l1_loss(a, b) for a, b in zip(_edges(decoded), _edges(target)))


def _crops(scenes: Tensor, rng: torch.Generator) -> Tensor:
    """One batch of crops [BATCH, 3, CROP, CROP] in 0..1, at the same place of each scene."""
    rows = torch.randint(len(scenes), (BATCH,), generator=rng)
    y, x = (int(v) for v in torch.randint(0, scenes.shape[-1] - CROP + 1, (2,), generator=rng))
    return scenes[rows, :, y : y + CROP, x : x + CROP].float().div(255).contiguous(memory_format=torch.channels_last)


def _jittered(latent: Tensor, rng: torch.Generator) -> Tensor:
    return latent + JITTER * torch.randn(latent.shape, generator=rng)


def train(autoencoder: Any, folder: Path, schedule: Schedule = SCHEDULE, finish: Schedule = FINISH) -> None:
    """Train a TAESD module (`taesd_encoder`, `taesd_decoder`) in place; images in 0..1."""
    scenes = torch.from_numpy(pictures(draw_many(training_keys(SCENES)))).permute(0, 3, 1, 2)
    encoder, decoder = autoencoder.taesd_encoder, autoencoder.taesd_decoder
    autoencoder.to(memory_format=torch.channels_last)

    def loss(_: int, rng: torch.Generator) -> Tensor:
        batch = _crops(scenes, rng)
        latent = encoder(batch).float()
        decoded = decoder(_jittered(latent, rng)).float()
        channel = latent.transpose(0, 1).flatten(1)
        # Each latent channel near mean 0 and deviation 1: what the diffusion model's noise schedule expects.
        unit = channel.mean(dim=1).square().mean() + (channel.std(dim=1) - 1).square().mean()
        return reconstruction_loss(decoded, batch) + 0.01 * unit

    def loss_of_decoder(_: int, rng: torch.Generator) -> Tensor:
        batch = _crops(scenes, rng)
        with torch.no_grad():
            latent = encoder(batch).float()
        return reconstruction_loss(decoder(_jittered(latent, rng)).float(), batch)

    fit("autoencoder", {"autoencoder": autoencoder}, loss, schedule, folder)
    fit("decoder", {"decoder": decoder}, loss_of_decoder, finish, folder)
