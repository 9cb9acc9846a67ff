"""The base model: the UNet and the text encoder trained together, on latents that are computed once.

Epsilon prediction on Stable Diffusion's noise schedule, debiased weighting (arXiv 2310.08442), timesteps drawn towards noise, 10 % of the
captions dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ....py.playground.vocabulary import encode_padded
from ...training.loop import Schedule, fit
from ..dataset import draw_many, in_chunks, pictures, training_keys

SCENES = 16_000
CHUNK = 2_000
BATCH = 32
DROP = 0.1
OBJECTS = 0.7  # of each batch: what is asked for word by word needs the most practice
NOISE_BIAS = 1.6  # above 1, more steps are spent on high noise, where a prompt decides what is drawn
HEAVIEST = 6.0  # a loss's weight at most, where next to nothing but noise is left
SCHEDULE = Schedule(
    steps=9500, learning_rate=6e-4, warmup=200, final_rate=0.03, weight_decay=0.01, ema=0.999, checkpoint_every=250, seed=12
)

Encode = Callable[[Tensor], Tensor]  # images [n, 3, h, w] in 0..1 -> unit latents [n, 4, h/8, w/8]
TextFeatures = Callable[[nn.Module, Tensor], Tensor]


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's schedule: 1,000 steps, betas linear in their square roots from 0.00085 to 0.012."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


def latents_and_tokens(encode: Encode, folder: Path) -> tuple[Tensor, Tensor]:
    """Unit latents [n, 4, 16, 16] float16 and caption tokens [n, 77] of the training scenes, kept in chunks beside the checkpoints."""

    def prepared(first: int, number: int) -> dict[str, Tensor]:
        scenes = draw_many(training_keys(number, first))
        images = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
        with torch.no_grad():
            z = torch.cat([encode(batch.float().div(255)).half() for batch in images.split(32)])
        return {"latents": z, "tokens": torch.tensor(encode_padded(s.caption for s in scenes), dtype=torch.int16)}

    chunks = in_chunks(folder, "latents", 0, SCENES, CHUNK, prepared)
    return torch.cat([chunk["latents"] for chunk in chunks]), torch.cat([chunk["tokens"] for chunk in chunks])


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    rng: torch.Generator,
    alphas: Tensor,
    region: Tensor | float = 1.0,
) -> Tensor:
    """The weighted epsilon loss of one batch of unit latents [b, 4, h, w]; `predict` takes the noisy latents and the timesteps [b].

    The weight is 1 / sqrt(SNR): an error of epsilon at high noise is a large one of the image, and there it is decided which shape an
    object gets. Without it the model learns colours long before shapes. `region` [b, 1, h, w] says where an error counts, 0..1; the mean
    is over all cells all the same.
    """
    u = torch.rand(len(latent), generator=rng)
    t = ((1 - u**NOISE_BIAS) * len(alphas)).long().clamp(max=len(alphas) - 1)
    noise = torch.randn(latent.shape, generator=rng)
    a = alphas[t].view(-1, 1, 1, 1)
    eps = predict(a.sqrt() * latent + (1 - a).sqrt() * noise, t).float()
    weight = ((1 - a) / a).sqrt().clamp(max=HEAVIEST)
    return (weight * ((eps - noise) * region).square()).mean()


def train(
    unet: nn.Module,
    text: nn.Module,
    encode: Encode,
    text_features: TextFeatures,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    every: dict[int, Callable[[int], None]] | None = None,
) -> None:
    """Train the UNet and the text encoder in place."""
    latents, tokens = latents_and_tokens(encode, folder)
    empty = torch.tensor(encode_padded([""]), dtype=torch.int16)
    alphas = alphas_cumprod()
    objects = torch.tensor([kind == "objects" for kind, _ in training_keys(len(latents))])
    weight = torch.where(objects, OBJECTS / objects.sum(), (1 - OBJECTS) / (~objects).sum())

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.multinomial(weight, BATCH, generator=rng)
        dropped = torch.rand((BATCH, 1), generator=rng) < DROP
        context = text_features(text, torch.where(dropped, empty, tokens[rows]).long())
        return diffusion_loss(lambda x, t: unet(x, t, context=context), latents[rows].float(), rng, alphas)

    fit("base", {"unet": unet, "text": text}, loss, schedule, folder, every)
