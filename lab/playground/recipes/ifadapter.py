"""The IFAdapter of the playground: trained on the frozen base, on scenes of two to four objects and some streets.

Latents are computed once, phrases encoded once: the drawn world has only some hundred of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....py.ifadapter.model import IFAdapter
from ....py.ifadapter.training import Batch, Prepared, draw_drops
from ....py.playground.scene import Instance, Scene
from ....py.playground.vocabulary import encode_padded
from ...training.loop import Schedule, fit
from ..dataset import draw_many, pictures
from .base import Encode, alphas_cumprod, diffusion_loss

log = logging.getLogger("exemplary")

SCENES = 6_000
CHUNK = 2_000
FIRST = 2_000_000  # other scenes than the base has seen
STREETS = 8  # every eighth scene
MOST = 4  # instances a scene; of a street the largest
BATCH = 32
SCHEDULE = Schedule(
    steps=700, learning_rate=1.5e-3, warmup=60, final_rate=0.03, weight_decay=0.01, ema=0.998, checkpoint_every=100, seed=15
)

#: Phrases -> hidden [p, t, l, c], eot [p, 1, c], counts [p].
PhraseFeatures = Callable[[Sequence[str]], tuple[Tensor, Tensor, Tensor]]
#: Caption tokens [b, 77] -> text features of the base [b, 77, c].
TextFeatures = Callable[[Tensor], Tensor]
#: Noisy latents, timesteps, text features, what the adapter adds -> predicted noise.
Predict = Callable[[Tensor, Tensor, Tensor, Prepared], Tensor]


@dataclass(frozen=True, eq=False)
class Layouts:
    """The training scenes: latents [n, 4, h, w] half, caption tokens [n, 77], boxes [n, 4, 4], which phrase each has [n, 4], -1 for none."""

    latents: Tensor
    captions: Tensor
    boxes: Tensor
    phrases: Tensor
    words: list[str]


def _largest(scene: Scene) -> list[Instance]:
    def area(instance: Instance) -> float:
        x0, y0, x1, y1 = instance.box
        return (x1 - x0) * (y1 - y0)

    return sorted(scene.instances, key=area, reverse=True)[:MOST]


def _chunk(encode: Encode, first: int) -> dict:
    keys = [("street" if n % STREETS == 0 else "objects", FIRST + n) for n in range(first, first + CHUNK)]
    scenes = [scene for scene in draw_many(keys) if len(scene.instances) > 1]
    images = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = torch.cat([encode(batch.float().div(255)).half() for batch in images.split(32)])
    boxes = torch.zeros(len(scenes), MOST, 4)
    phrases: list[list[str]] = []
    for row, scene in enumerate(scenes):
        shown = _largest(scene)
        boxes[row, : len(shown)] = torch.tensor([instance.box for instance in shown])
        phrases.append([instance.phrase for instance in shown])
    captions = torch.tensor(encode_padded(scene.caption for scene in scenes), dtype=torch.int16)
    return {"latents": latents, "captions": captions, "boxes": boxes, "phrases": phrases}


def layouts(encode: Encode, folder: Path) -> Layouts:
    """The training scenes, kept in chunks beside the checkpoints. A new VAE needs new ones: delete the files."""
    chunks = []
    for first in range(0, SCENES, CHUNK):
        path = folder / f"layouts_{first:06d}.pt"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(_chunk(encode, first), path)
            log.info("layouts: %d of %d scenes", first + CHUNK, SCENES)
        chunks.append(torch.load(path, weights_only=True))
    names = [row for chunk in chunks for row in chunk["phrases"]]
    words = sorted({phrase for row in names for phrase in row})
    number = {phrase: place for place, phrase in enumerate(words)}
    phrases = torch.tensor([[number[p] for p in row] + [-1] * (MOST - len(row)) for row in names])
    latents, captions, boxes = (torch.cat([chunk[key] for chunk in chunks]) for key in ("latents", "captions", "boxes"))
    return Layouts(latents, captions, boxes, phrases, words)


def train(
    network: IFAdapter,
    encode: Encode,
    text_features: TextFeatures,
    phrase_features: PhraseFeatures,
    predict: Predict,
    folder: Path,
    schedule: Schedule = SCHEDULE,
) -> None:
    """Train the adapter in place; everything else is frozen."""
    scenes = layouts(encode, folder)
    hidden, eot, counts = phrase_features(scenes.words)
    hidden = hidden[:, :, : int(counts.max())].contiguous()  # the rest is padding, which nothing sees
    empty = torch.tensor(encode_padded([""]), dtype=torch.int16)
    alphas = alphas_cumprod()

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(scenes.latents), (BATCH,), generator=rng)
        which = scenes.phrases[rows]
        which = which[:, : int((which >= 0).sum(dim=1).max())]
        without_phrases, without_caption = draw_drops(BATCH, rng)
        number = which.clamp(min=0)
        boxes = scenes.boxes[rows, : which.shape[1]]
        batch = Batch(hidden[number], eot[number], counts[number], boxes, which >= 0).drop_phrases(without_phrases)
        with torch.no_grad():
            captions = torch.where(without_caption[:, None], empty, scenes.captions[rows])
            context = text_features(captions.long())
        prepared = Prepared(network, batch)
        return diffusion_loss(lambda x, t: predict(x, t, context, prepared), scenes.latents[rows].float(), rng, alphas)

    fit("ifadapter", {"ifadapter": network}, loss, schedule, folder)
