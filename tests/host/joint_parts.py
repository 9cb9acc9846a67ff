"""Contributions of the plainest kind, for tests of the mechanism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tiny_dit
import torch
from pack.py.host.joint import apply, recording
from pack.py.host.joint.contribution import Contribution, Exemplar
from pack.py.host.schedule import PercentRange
from pack.py.joint.bias import NEVER


def resized(maps: torch.Tensor, grid) -> torch.Tensor:
    return torch.nn.functional.interpolate(maps, grid, mode="nearest")


@dataclass(frozen=True, eq=False)
class Maps(Contribution):
    """Weights of texts, references and regions as given maps [f, k, h, w] of any size."""

    weights: Any = None
    references: Any = None
    owner: Any = None  # [f, h, w]
    amount: float | None = None

    def region_weights(self, run, part):
        return None if self.weights is None else resized(self.weights, part.grid)

    def reference_weights(self, run, part):
        return None if self.references is None else (0, resized(self.references, part.grid))

    def separation(self, run, part):
        if self.owner is None:
            return None
        owner = resized(self.owner[:, None].float(), part.grid)[:, 0].long()
        count = int(owner.max()) + 1
        return owner, NEVER * (1 - torch.eye(count))

    def gain(self, run, part, sigma):
        return self.amount


def whole(regions: int = 1, chosen: int = 0) -> torch.Tensor:
    """Region `chosen` covers the image, and the prompt counts nowhere."""
    weights = torch.zeros(1, 1 + regions, 1, 1)
    weights[:, 1 + chosen] = 1.0
    return weights


def halves() -> torch.Tensor:
    """Two regions, left and right."""
    weights = torch.zeros(1, 3, 1, 2)
    weights[0, 1, 0, 0] = weights[0, 2, 0, 1] = 1.0
    return weights


def applied(model, texts=(), start: float = 0.0, end: float = 1.0, **maps):
    return apply.install(model, Maps("Test Node", PercentRange(start, end), tuple(texts), **maps))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@dataclass(frozen=True, eq=False)
class SelfExemplar(Contribution):
    """The image itself, at the same noise, as its own exemplar: changes nothing if own and exemplar weights are complementary."""

    share: float = 1.0
    flipped: bool = False  # another image instead

    def exemplars(self, run, part, call):
        latent = call.latent[part.rows]
        text, conditions = recording.conditions_of(call, part.rows.start)
        found = recording.record(call, latent.flip(-1) if self.flipped else latent, call.sigma, text, conditions)
        count = part.grid[0] * part.grid[1]
        return (
            Exemplar(found.layers, count, torch.full((1, count), self.share), torch.zeros(1, count, 0), torch.zeros(count, 0)),
        )


class TinyVAE:
    """A VAE of the family: means of 8x8 pixels (16x16 for Flux.2), repeated to its channels."""

    def __init__(self, name):
        self.name = name

    def encode(self, pixels):
        family = tiny_dit.FAMILIES[self.name]
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16 if family.patch == 1 else 8) * 4 - 2
        latent = means.repeat(1, -(-family.channels // 3), 1, 1)[:, : family.channels]
        return latent[:, :, None] if family.frames else latent
