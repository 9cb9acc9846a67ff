"""The detector: segmentation of drawn scenes, with the blur, noise and tint that a generated image may have; then the names of the objects
by the silhouettes that the segmentation gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....py.playground import world
from ....py.playground.detector import IGNORE, SceneDetector, crops, look, silhouettes, truth
from ....py.playground.scene import Scene
from ...training.loop import Schedule, fit, generator_for
from ..dataset import draw_many, pictures, training_keys

SCENES = 4000
FIRST = 500_000  # scenes that the base model was not trained on
BATCH = 16
SCHEDULE = Schedule(
    steps=2600, learning_rate=2e-3, warmup=50, final_rate=0.02, weight_decay=0.01, ema=0.99, checkpoint_every=200, seed=13
)
OUTLINES = Schedule(
    steps=1200, learning_rate=2e-3, warmup=50, final_rate=0.02, weight_decay=0.01, ema=0.99, checkpoint_every=300, seed=16
)
OUTLINES_BATCH = 96


def _worn(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images as a generator might give them back: softer, noisier, tinted."""
    soft = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand((len(images), 1, 1, 1), generator=rng)
    tint = 1 + 0.08 * torch.randn((len(images), 3, 1, 1), generator=rng)
    noise = 0.05 * torch.rand((len(images), 1, 1, 1), generator=rng) * torch.randn(images.shape, generator=rng)
    return (((1 - share) * images + share * soft) * tint + noise).clamp(0, 1)


def _bent(cut: Tensor, rng: torch.Generator) -> Tensor:
    """Crops [n, c, s, s] as a model with an unsteady hand would have drawn them: stretched, sheared, turned, their outlines waved."""
    n, _, side, _ = cut.shape
    turn = torch.eye(2) + 0.18 * torch.randn((n, 2, 2), generator=rng)
    theta = torch.cat([turn, 0.08 * torch.randn((n, 2, 1), generator=rng)], dim=2)
    waves = F.interpolate(0.09 * torch.randn((n, 2, 5, 5), generator=rng), size=(side, side), mode="bicubic")
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False) + waves.permute(0, 2, 3, 1)
    return F.grid_sample(cut, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def _silhouettes(detector: SceneDetector, scenes: Sequence[Scene], images: Tensor) -> tuple[Tensor, Tensor]:
    """What the segmentation makes of the objects in worn images: crops [n, 4, OUTLINE, OUTLINE] and their class numbers [n]."""
    found, names = [], []
    for first in range(0, len(scenes), BATCH):
        batch = _worn(images[first : first + BATCH].float().div(255), generator_for(OUTLINES.seed, first))
        for scene, image, seen in zip(scenes[first:], batch, look(detector, batch)):
            for mask in silhouettes(seen):
                numbers = np.bincount(scene.instance_map[::2, ::2][mask], minlength=1)
                owner = int(numbers.argmax())
                if owner and numbers[owner] > 0.7 * mask.sum():
                    found.append(crops(image, [mask]))
                    names.append(world.OBJECTS.index(scene.instances[owner - 1].name))
    return torch.cat(found), torch.tensor(names)


def train(detector: SceneDetector, folder: Path, schedule: Schedule = SCHEDULE, outlines: Schedule = OUTLINES) -> None:
    """Train the detector in place."""
    scenes = draw_many(training_keys(SCENES, FIRST))
    images = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
    truths = [truth(scene) for scene in scenes]
    # The heads answer at half the size of the image.
    targets = {name: torch.stack([torch.from_numpy(t[name][::2, ::2].copy()) for t in truths]) for name in truths[0]}

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (BATCH,), generator=rng)
        logits = detector(_worn(images[rows].float().div(255), rng).contiguous(memory_format=torch.channels_last))
        return sum(F.cross_entropy(logits[k].float(), targets[k][rows].long(), ignore_index=IGNORE) for k in logits)  # type: ignore[return-value]

    detector.to(memory_format=torch.channels_last)
    detector.outlines.requires_grad_(False)
    fit("judge", {"judge": detector}, loss, schedule, folder)

    detector.requires_grad_(False)
    detector.outlines.requires_grad_(True)
    drawn = [row for row, scene in enumerate(scenes) if scene.kind == "objects"]
    cut, names = _silhouettes(detector, [scenes[row] for row in drawn], images[drawn])

    def loss_of_outlines(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(cut), (OUTLINES_BATCH,), generator=rng)
        with torch.autocast("cpu", enabled=False):
            seen = _bent(cut[rows], rng)
        logits = detector.outlines(seen + 0.05 * torch.randn(seen.shape, generator=rng))
        return F.cross_entropy(logits.float(), names[rows])

    fit("outlines", {"outlines": detector.outlines}, loss_of_outlines, outlines, folder)
