"""What AM-Adapter attends to: one call of the patched model, observed. Correspondence, attention and class coverage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...am_adapter.agreement import Grid
from ...am_adapter.attention import Attend
from ...semantic.palettes import VOID
from ..preview import enlarge, run_observed_step
from .apply import NODE, OBSERVER, Application, ExemplarAttention, Origin, find_technique

PREVIEW = "AM Match Preview"
MOST_TOKENS = 1024  # of the layers that are observed: enough to see, and a whole attention matrix still fits


@dataclass
class _Layer:
    """Attention of the layers of one size, summed: [target tokens, all exemplar tokens], and how many maps were summed."""

    grid: Grid
    origins: tuple[Origin, ...]
    total: Tensor
    count: int = 0


@dataclass
class Observer:
    """Observes the first latent of the first positive condition."""

    layers: dict[Any, _Layer] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Observer:
        return self

    def watching(self, attend: Attend, grid: Grid, origins: tuple[Origin, ...]) -> Attend:
        """The same attention, whose weights are recorded. `origins` say whose the last keys are, in their order."""
        tokens, exemplar_tokens = grid[0] * grid[1], sum(o.grid[0] * o.grid[1] for o in origins)
        if tokens > MOST_TOKENS or exemplar_tokens > len(origins) * MOST_TOKENS:
            return attend
        layer = self.layers.setdefault((grid, origins), _Layer(grid, origins, torch.zeros(tokens, exemplar_tokens)))
        row = 0

        def watch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            nonlocal row
            logits = (q[0].float() @ k[0].float().transpose(-1, -2)) * q.shape[-1] ** -0.5
            weights = (logits if mask is None else logits + mask[0].float()).softmax(dim=-1)
            rows = slice(row % tokens, row % tokens + q.shape[2])
            layer.total[rows] += weights[..., -exemplar_tokens:].mean(dim=0).cpu()
            layer.count += int(row % tokens == 0)
            row += q.shape[2]
            return attend(q, k, v, mask)

        return watch

    def finest(self) -> _Layer:
        """The layers with most tokens. Raises ValueError if none attended to an exemplar."""
        if not self.layers:
            raise ValueError(
                f"{PREVIEW}: no layer of at most {MOST_TOKENS} tokens attends to an exemplar at this moment. Choose a percent inside the "
                f"range of {NODE}, and a latent of at most 512x512."
            )
        return max(self.layers.values(), key=lambda layer: (len(layer.origins), layer.grid[0] * layer.grid[1]))


def preview(model: Any, positive: Any, latent: dict, percent: float, seed: int) -> tuple[Tensor, Tensor, str]:
    """What each token of a latent attends to, at one moment of sampling.

    Args:
        latent: LATENT to look at, such as the result; noise of the moment is added to its first image.
        percent: the moment, 0 the first step and 1 the last.

    Returns:
        The target composed of the exemplar pieces it attends to most [1, h, w, 3]; the fraction of attention on exemplars, 0 dark and 1
        bright; the coverage table.

    Raises:
        ValueError: the model has no AM-Adapter, or no exemplar acts at this moment.
    """
    technique = find_technique(model)
    if technique is None:
        raise ValueError(f"{PREVIEW}: this MODEL has no exemplar. Connect the MODEL output of {NODE}.")
    observer = Observer()
    run_observed_step(PREVIEW, model, positive, latent, percent, seed, OBSERVER, observer)
    layer = observer.finest()
    weights = layer.total / max(1, layer.count)
    mass = rearrange(weights.sum(dim=1), "(h w) -> h w", h=layer.grid[0])
    attention = enlarge(mass[None, ..., None].expand(-1, -1, -1, 3).clamp(0, 1))
    return _compose(weights, layer), attention, _table(technique, mass)


def _compose(weights: Tensor, layer: _Layer) -> Tensor:
    """Each token as the piece of exemplar that it attends to most."""
    pieces = []
    for origin in layer.origins:
        shown = rearrange(origin.application.images.thumbnails[origin.index], "h w c -> 1 c h w")
        pieces.append(rearrange(F.adaptive_avg_pool2d(shown, origin.grid), "1 c h w -> (h w) c"))
    image = torch.cat(pieces)[weights.argmax(dim=1)]
    return enlarge(rearrange(image, "(h w) c -> 1 h w c", h=layer.grid[0]))


def _table(technique: ExemplarAttention, mass: Tensor) -> str:
    return "\n\n".join(_coverage(number, a, mass) for number, a in enumerate(technique.applications, start=1))


def _coverage(number: int, application: Application, mass: Tensor) -> str:
    """One line per class of the target: its share of target and exemplars, and its attention to exemplars."""
    names, target = application.target.names, application.target.labels[:1]
    small = F.interpolate(target[None].float(), tuple(mass.shape), mode="nearest-exact")[0, 0].long()
    lines = [f"exemplar {number}: class, share of target, share of exemplar, attention to exemplars"]
    missing = []
    for label in target.unique().tolist():
        name = "void" if label == VOID else names[label]
        is_here = small == label
        attention = f"{100 * float(mass[is_here].mean()):.0f} %" if bool(is_here.any()) else "-"
        shares = [float((labels == label).float().mean()) for labels in (target, application.images.labels)]
        lines.append(f"{name}: {100 * shares[0]:.1f} %, {100 * shares[1]:.1f} %, {attention}")
        if shares[1] == 0 and label != VOID:
            missing.append(name)
    if missing:
        lines.insert(0, f"Warning: the exemplar lacks {', '.join(missing)}; these classes keep the model's own look.")
    return "\n".join(lines)
