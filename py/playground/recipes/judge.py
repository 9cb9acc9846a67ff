"""The judge: segmentation of drawn scenes, with the blur, noise and tint that a generated picture may have."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...training.loop import Schedule, fit
from ..dataset import draw_many, pictures, training_keys
from ..judge import IGNORE, Judge, truth

SCENES = 4000
FIRST = 500_000  # scenes that the base model was not trained on
BATCH = 16
SCHEDULE = Schedule(
    steps=2600, learning_rate=2e-3, warmup=50, final_rate=0.02, weight_decay=0.01, ema=0.99, checkpoint_every=200, seed=13
)


def _worn(images: Tensor, rng: torch.Generator) -> Tensor:
    """Pictures as a generator might give them back: softer, noisier, tinted."""
    soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand((len(images), 1, 1, 1), generator=rng)
    tint = 1 + 0.08 * torch.randn((len(images), 3, 1, 1), generator=rng)
    noise = 0.05 * torch.rand((len(images), 1, 1, 1), generator=rng) * torch.randn(images.shape, generator=rng)
    return (((1 - share) * images + share * soft) * tint + noise).clamp(0, 1)


def train(judge: Judge, folder: Path, schedule: Schedule = SCHEDULE) -> None:
    """Train the judge in place."""
    scenes = draw_many(training_keys(SCENES, FIRST))
    images = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
    truths = [truth(scene) for scene in scenes]
    # The heads answer at half the size of the picture.
    targets = {name: torch.stack([torch.from_numpy(t[name][::2, ::2].copy()) for t in truths]) for name in truths[0]}

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (BATCH,), generator=rng)
        logits = judge(_worn(images[rows].float().div(255), rng).contiguous(memory_format=torch.channels_last))
        return sum(F.cross_entropy(logits[k].float(), targets[k][rows].long(), ignore_index=IGNORE) for k in logits)  # type: ignore[return-value]

    judge.to(memory_format=torch.channels_last)
    fit("judge", {"judge": judge}, loss, schedule, folder)
