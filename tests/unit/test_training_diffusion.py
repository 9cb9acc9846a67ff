"""The denoising loss by its definition: the noised latents, the densities of the timesteps and the weights of their errors."""

from __future__ import annotations

import pytest
import torch
from pack.lab.training.diffusion import NoiseSchedule, denoising_loss

ALPHAS = torch.linspace(0.99, 0.01, 100)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(seed=0, count=3):
    """What the loss draws from its generator, in its order."""
    source = rng(seed)
    return torch.randint(100, (count,), generator=source), torch.randn((count, 4, 4, 4), generator=source)


def test_the_loss_is_that_of_the_noise():
    latents, seen = torch.randn(3, 4, 4, 4, generator=rng(9)), []
    t, noise = drawn()
    assert denoising_loss(lambda x, t: seen.append((x, t)) or noise, latents, ALPHAS, rng()) == 0
    assert torch.equal(seen[0][1], t)
    for row, step in enumerate(t):
        expected = ALPHAS[step].sqrt() * latents[row] + (1 - ALPHAS[step]).sqrt() * noise[row]
        torch.testing.assert_close(seen[0][0][row], expected)
    loss = denoising_loss(lambda x, t: noise + 2, latents, ALPHAS, rng(), region=torch.tensor(0.5))
    torch.testing.assert_close(loss, torch.tensor(1.0))


def test_min_snr_weights_errors_by_their_level():
    latents = torch.zeros(3, 4, 4, 4)
    t, noise = drawn()
    loss = denoising_loss(lambda x, t: noise + 1, latents, NoiseSchedule(ALPHAS, snr_gamma=5.0), rng())
    snr = ALPHAS[t] / (1 - ALPHAS[t])
    torch.testing.assert_close(loss, (snr.clamp(max=5.0) / snr).mean())


@pytest.mark.parametrize("density, middle", [("uniform", 0.5), ("logit_normal", 0.68), ("mode", 0.5)])
def test_each_density_draws_steps_of_the_schedule(density, middle):
    """The share of the steps in the central half of the schedule: logit-normal prefers it."""
    t = NoiseSchedule(ALPHAS, density).draw_timesteps(20_000, rng())
    assert t.min() >= 0 and t.max() < 100 and t.dtype == torch.int64
    share = float(((t >= 25) & (t < 75)).float().mean())
    assert share == pytest.approx(middle, abs=0.08) if density != "mode" else share > 0.5
    assert torch.equal(t, NoiseSchedule(ALPHAS, density).draw_timesteps(20_000, rng())), "the same numbers again"
