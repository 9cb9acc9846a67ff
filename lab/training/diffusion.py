"""The denoising loss that trainers of diffusion models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    alphas: Tensor,
    rng: torch.Generator,
    region: Tensor | float = 1.0,
) -> Tensor:
    """L of one batch: uniform timesteps, all of them of equal weight.

        L = mean( ((eps_theta(x_t, t) - eps) region)^2 )          x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps

    Args:
        predict: (noisy latents, timesteps [b]) -> predicted noise.
        latent: [b, c, h, w] in the base's own scale.
        alphas: cumulative products of 1 - beta, [steps].
        region: [b, 1, h, w], 0..1, where an error counts; the mean is over all cells all the same.
    """
    # Drawn on the CPU: the same numbers on every device.
    t = torch.randint(len(alphas), (len(latent),), generator=rng).to(latent.device)
    noise = torch.randn(latent.shape, generator=rng).to(latent)
    a = alphas.to(latent)[t].view(-1, 1, 1, 1)
    return ((predict(a.sqrt() * latent + (1 - a).sqrt() * noise, t).float() - noise) * region).square().mean()
