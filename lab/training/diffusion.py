"""The denoising loss that all trainers of diffusion models share, and the noise schedule behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: How timesteps are drawn: each equally often, or by one of the densities of arXiv 2403.03206.
TIMESTEP_DENSITIES = ("uniform", "logit_normal", "mode")


@dataclass(frozen=True)
class NoiseSchedule:
    """The base model's noise levels, how often each is drawn and how much its error counts.

    Args:
        alphas_cumprod: cumulative products of 1 - beta, [steps].
        density: one of `TIMESTEP_DENSITIES`.
        snr_gamma: Min-SNR weighting (arXiv 2303.09556): an error of epsilon counts min(SNR, gamma) / SNR; 0 counts all alike.
    """

    alphas_cumprod: Tensor
    density: str = "uniform"
    snr_gamma: float = 0.0

    def draw_timesteps(self, count: int, rng: torch.Generator) -> Tensor:
        """[count] int64, drawn on the CPU: the same numbers on every device."""
        steps = len(self.alphas_cumprod)
        if self.density == "uniform":
            return torch.randint(steps, (count,), generator=rng)
        from diffusers.training_utils import compute_density_for_timestep_sampling

        drawn = compute_density_for_timestep_sampling(
            self.density, count, logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=rng
        )
        return (drawn * steps).long().clamp(0, steps - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps for latents [b, c, h, w] and timesteps [b]."""
        a = self.alphas_cumprod.to(latents)[t].view(-1, 1, 1, 1)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def weights(self, t: Tensor) -> Tensor | float:
        """What the squared errors of timesteps [b] are multiplied by, [b, 1, 1, 1]."""
        if not self.snr_gamma:
            return 1.0
        from diffusers.training_utils import compute_snr

        snr = compute_snr(self, t)  # it reads nothing but `alphas_cumprod`
        return (snr.clamp(max=self.snr_gamma) / snr).view(-1, 1, 1, 1)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    schedule: NoiseSchedule | Tensor,
    rng: torch.Generator,
    region: Tensor | float = 1.0,
) -> Tensor:
    """L = mean( w_t ((eps_theta(x_t, t) - eps) region)^2 ) of one batch.

    Args:
        predict: (noisy latents, timesteps [b]) -> predicted noise.
        latents: [b, c, h, w] in the base's own scale.
        schedule: or its `alphas_cumprod` only, for uniform timesteps of equal weight.
        region: [b, 1, h, w], 0..1, where an error counts; the mean is over all latent cells, counted or not.
    """
    schedule = NoiseSchedule(schedule) if isinstance(schedule, Tensor) else schedule
    t = schedule.draw_timesteps(len(latents), rng).to(latents.device)
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    error = (predict(schedule.add_noise(latents, noise, t), t).float() - noise) * region
    weights = schedule.weights(t)
    return error.square().mean() if isinstance(weights, float) else (weights * error.square()).mean()
