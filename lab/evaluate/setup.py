"""Measures the playground's own models through the host's sampling. For `dev.py playground evaluate`, as are the techniques' modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor

from ...py.host import playground
from ...py.playground.detector import load_detector
from ...py.playground.scene import Scene
from ..training import sampling
from . import playground as measures
from .playground import Figure

STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.5, "dpmpp_2m", "karras"


class Studio:
    """The playground's models, loaded once, and the ways to make an image with them."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = playground.load_model(), playground.load_clip(), playground.load_vae()
        self.detector = load_detector(playground.read_weights("judge"))

    def encode(self, text: str) -> list:
        """A CONDITIONING of a prompt, as CLIPTextEncode makes it."""
        return sampling.encode_prompt(self.clip, text)

    def sample(
        self, model, positive: list, seed: int, steps: int = STEPS, side: int = 128, negative: list | None = None
    ) -> Tensor:
        """One image [1, 3, side, side] in 0..1, as KSampler and VAEDecode make it."""
        negative = negative if negative is not None else self.encode("")
        return sampling.sample_image(
            model, self.vae, positive, negative, seed, steps=steps, cfg=CFG, side=side, sampler=SAMPLER, scheduler=SCHEDULER
        )

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One image a prompt."""
        return torch.cat([self.sample(self.model, self.encode(p), s) for p, s in zip(prompts, seeds)])

    def paint_captions(self, scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        """The captions of layouts, without their boxes."""
        return self.paint([s.caption for s in scenes], seeds)

    def round_trip(self, images: Tensor) -> Tensor:
        """Images through the VAE and back."""
        latent = self.vae.encode(rearrange(images, "b c h w -> b h w c"))
        return rearrange(self.vae.decode(latent), "b h w c -> b c h w")


def records(found: Iterable[Figure], quick: bool) -> Iterator[dict]:
    """What is reported of figures. A quick run looks at too few images to hold a figure to its bound, which is then left out."""
    for figure in found:
        yield {k: v for k, v in figure.record().items() if not quick or k not in ("target", "ok")}


def figures(quick: bool) -> Iterator[dict]:
    """The figures of the VAE, of the detector, and of what the base model makes of prompts. `quick` takes a fifth of the images."""
    studio, share = Studio(), 5 if quick else 1
    yield from records(measures.autoencoder_figures(studio.round_trip, 80 // share), quick)
    yield from records(measures.detector_figures(studio.detector, 100 // share), quick)
    yield from records(measures.text_figures(studio.detector, studio.paint, 200 // share), quick)
