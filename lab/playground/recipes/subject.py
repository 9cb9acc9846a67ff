"""The subject model: the base UNet's transformers, the image encoder's last layers and the network that fuses persons into prompts.

Trained as Face-diffuser's subject model (`py/snf`), on drawn persons: mostly on plain backdrops. Where they are in places the loss counts
inside of the persons only, so that the model becomes an expert for persons and learns nothing about places: those are the scene model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....py.playground import world
from ....py.playground.vocabulary import encode_padded
from ....py.snf.model import Postfuse
from ....py.snf.training import Drops, Predict, fuse_batch, loss_region, subject_loss
from ...training.loop import Schedule, fit
from ..dataset import in_chunks, in_parallel
from ..persons import PersonExample, draw_example
from .base import alphas_cumprod, diffusion_loss
from .image_encoder import normalise

EXAMPLES = 3000
FIRST = 0
CHUNK = 1000
BATCH = 32
MOST = 2  # persons in one image
DROPS = Drops()
HAIR = 4.0  # how much more an error counts where the hair is: it covers few cells, and a person is known by it
SCHEDULE = Schedule(
    steps=4700, learning_rate=5e-4, warmup=150, final_rate=0.03, weight_decay=0.01, ema=0.998, checkpoint_every=200, seed=15
)


@dataclass(frozen=True)
class Networks:
    """What is trained and the ways to run it; the host room builds it.

    encode: images [n, 3, side, side] in 0..1 -> unit latents [n, 4, h, w].
    text: tokens [b, 77] -> [b, 77, c], frozen.
    begin: normalised pixels [n, 3, side, side] -> hidden states [n, l, c] before the trained layers of `tower`. end: those -> [n, c].
    """

    unet: nn.Module
    tower: nn.Module
    postfuse: Postfuse
    encode: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    begin: Callable[[Tensor], Tensor]
    end: Callable[[Tensor], Tensor]
    predict: Predict


def _prepared(examples: list[PersonExample], nets: Networks) -> dict[str, Tensor]:
    """Everything of some examples that no training step changes."""
    images = torch.stack([torch.from_numpy(e.scene.image) for e in examples]).permute(0, 3, 1, 2)
    pictures = torch.stack([torch.from_numpy(r) for e in examples for r in e.references]).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = torch.cat([nets.encode(batch.float().div(255)).half() for batch in images.split(32)])
        states = torch.cat([nets.begin(normalise(batch.float().div(255))).half() for batch in pictures.split(32)])
    side = latents.shape[-1]
    masks, positions, references = torch.zeros(len(examples), MOST, side, side), [], []
    hair = torch.stack([torch.from_numpy(e.scene.labels == world.LABEL["hair"]) for e in examples])[:, None].float()
    used = 0
    for row, example in enumerate(examples):
        count = len(example.people)
        numbers = torch.arange(1, count + 1).view(-1, 1, 1)
        persons = (torch.from_numpy(example.scene.instance_map)[None] == numbers).float()
        masks[row, :count] = F.interpolate(persons[None], size=(side, side), mode="area")[0]
        positions.append([*example.positions, *[0] * (MOST - count)])
        references.append([*range(used, used + count), *[-1] * (MOST - count)])
        used += count
    return {
        "latents": latents,
        "states": states,
        "masks": masks.half(),
        "hair": F.interpolate(hair, size=(side, side), mode="area").half(),
        "tokens": torch.tensor(encode_padded(e.text for e in examples), dtype=torch.int16),
        "positions": torch.tensor(positions),
        "references": torch.tensor(references),
        "plain": torch.tensor([e.plain for e in examples]),
    }


def _data(nets: Networks, folder: Path, count: int) -> dict[str, Tensor]:
    """The training set, computed once and kept in chunks beside the checkpoints."""

    def prepared(first: int, number: int) -> dict[str, Tensor]:
        return _prepared(in_parallel(draw_example, range(first, first + number)), nets)

    chunks = in_chunks(folder, "subjects", FIRST, count, CHUNK, prepared)
    joined = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0] if key != "references"}
    joined["references"] = torch.cat(list(_counted_on(chunks)))
    return joined


def _counted_on(chunks: list[dict[str, Tensor]]) -> Iterable[Tensor]:
    first = 0
    for chunk in chunks:
        yield torch.where(chunk["references"] >= 0, chunk["references"] + first, -1)
        first += len(chunk["states"])


def train(nets: Networks, folder: Path, schedule: Schedule = SCHEDULE, examples: int = EXAMPLES) -> None:
    """Train the three networks in place, from a UNet and an image encoder that have their base weights."""
    data = _data(nets, folder, examples)
    empty = torch.tensor(encode_padded([""]), dtype=torch.int16)
    alphas = alphas_cumprod()

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (BATCH,), generator=rng)
        references, positions, masks = data["references"][rows], data["positions"][rows], data["masks"][rows].float()
        no_caption, used, masked = DROPS.draw(references >= 0, rng)
        tokens = torch.where(no_caption[:, None], empty, data["tokens"][rows]).long()
        with torch.no_grad():
            text = nets.text(tokens).float()
        embeds = nets.end(data["states"][references.clamp(min=0)].flatten(0, 1).float()).float()
        context = fuse_batch(nets.postfuse, text, embeds.unflatten(0, references.shape), positions, used)
        # The loss squares the region, so the hair's weight goes in by its root.
        region = loss_region(masks, masked | ~data["plain"][rows]) * (1 + (HAIR - 1) * data["hair"][rows].float()).sqrt()

        def denoising(predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return diffusion_loss(predict, data["latents"][rows].float(), rng, alphas, region)

        return subject_loss(nets.predict, denoising, context, positions, masks, used)

    modules = {"unet": nets.unet, "tower": nets.tower, "postfuse": nets.postfuse}
    fit("subject", modules, loss, schedule, folder)
