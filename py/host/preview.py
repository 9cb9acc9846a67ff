"""What the previews share: one watched Euler step of a patched model, enlarged images, colours that are easy to distinguish."""

from __future__ import annotations

import colorsys
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

#: Pixels of the longer side of a preview image.
SIDE = 512


def run_observed_step(
    node: str, model: Any, positive: Any, latent: dict, percent: float, seed: int, key: str, observer: Any
) -> None:
    """Run one Euler step on the first latent while `observer` is in the model's `transformer_options` under `key`.

    The MODEL is cloned first, so that nothing of the observer stays on it.

    Args:
        node: the display name that errors begin with.
        latent: LATENT; noise of the moment is added to its first sample.
        percent: the moment of sampling, 0 the first step and 1 the last.
        observer: whatever the technique's hook looks for; it needs a `__deepcopy__` that returns itself.

    Raises:
        ValueError: percent outside of 0 to 1, or a latent that the model cannot sample.
    """
    if not 0.0 <= percent <= 1.0:  # also refuses NaN
        raise ValueError(f"{node}: percent is {percent}; it must be a number from 0 to 1.")
    watched = model.clone()
    watched.model_options["transformer_options"][key] = observer
    samples = _first_latent(node, watched, latent["samples"])
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(min(max(percent, 0.001), 0.999)))
    noise = comfy.sample.prepare_noise(samples, seed)
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0])
    comfy.sample.sample_custom(watched, noise, 1.0, euler, sigmas, positive, positive, samples, disable_pbar=True, seed=seed)


def _first_latent(node: str, model: Any, samples: Any) -> Any:
    """The first sample [1, c, ...] in the channels of the model."""
    if getattr(samples, "is_nested", False):
        raise ValueError(f"{node}: latent holds several tensors (video with sound). Connect the latent of an image.")
    if samples.ndim < 4 or samples.numel() == 0:
        raise ValueError(f"{node}: latent has the shape {list(samples.shape)}; it needs at least one image.")
    samples = comfy.sample.fix_empty_latent_channels(model, samples[:1])
    form = model.get_model_object("latent_format")
    if samples.shape[1] != form.latent_channels or samples.ndim != 2 + getattr(form, "latent_dimensions", 2):
        raise ValueError(
            f"{node}: latent has the shape {list(samples.shape)}, but this model samples latents with {form.latent_channels} channels. "
            "Connect a latent of this model, encoded with its own VAE."
        )
    return samples


def enlarge(images: Tensor, side: int = SIDE) -> Tensor:
    """Images [b, h, w, c] enlarged by a whole factor to at most `side`, so that latent cells stay squares."""
    factor = max(1, side // max(images.shape[1:3]))
    return images.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def distinct_colour(number: int, saturation: float = 0.7, value: float = 0.95) -> tuple[int, int, int]:
    """RGB 0..255; numbers that follow each other are far apart on the colour wheel (golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618034) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
