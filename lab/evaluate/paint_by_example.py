"""Measures Paint by Example on the playground: drawn objects placed into holes of drawn scenes. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...py.host import folders
from ...py.host.crop import stitch
from ...py.host.paint_by_example import conditioning, loader, prepare
from ...py.imaging.masks import grow_mask
from ..playground.paint_by_example_networks import FILE
from . import placing
from .placing import Placing
from .playground import Figure
from .setup import SAMPLER, SCHEDULER, STEPS, Studio, records

NEEDS = ["paint_by_example/playground_paint_by_example"]
CFG = 4.0
SIDE, GROW, FEATHER = 128, 2, 3


class Placer:
    """The nodes' way: exemplar, window around the hole, sampling, paste-back."""

    def __init__(self) -> None:
        folders.register()
        self.model, self.encoder, self.vae = loader.load(FILE.name)

    def place(self, one: Placing, seed: int) -> tuple[Tensor, Any]:
        """An image [1, h, w, 3] and its cut."""
        exemplar = torch.from_numpy(one.exemplar)[None].float() / 255
        positive, negative = conditioning.make_conditioning(self.encoder, exemplar)
        positive, negative, latent, cut = prepare.prepare(
            positive,
            negative,
            self.vae,
            one.picture[None],
            one.hole[None],
            width=SIDE,
            height=SIDE,
            grow=GROW,
            feather=FEATHER,
        )
        noise = comfy.sample.prepare_noise(latent["samples"], seed)
        out = comfy.sample.sample(
            self.model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent["samples"], seed=seed, disable_pbar=True
        )
        return stitch(self.vae.decode(out), cut), cut


def figures(quick: bool) -> Iterator[dict]:
    """Every figure of Paint by Example. `quick` takes a tenth of the placings, too few for the bounds, which are then left out."""
    placer, detector = Placer(), Studio().detector
    touched: list[float] = []

    def place(placings: Sequence[Placing], seeds: Sequence[int]) -> Tensor:
        pictures = []
        for one, seed in zip(placings, seeds):
            picture, cut = placer.place(one, seed)
            outside = grow_mask(one.hole[None], GROW + FEATHER) == 0
            touched.append(float((picture[outside] != cut.source[outside]).any()))
            pictures.append(picture)
        return torch.cat(pictures).movedim(-1, 1).clamp(0, 1)

    found = placing.placing_figures(detector, place, 10 if quick else 100)
    found.append(
        Figure(
            "Paint by Example: images of which nothing changed outside of the grown hole",
            1 - sum(touched) / len(touched),
            "%",
            1.0,
        )
    )
    yield from records(found, quick)
