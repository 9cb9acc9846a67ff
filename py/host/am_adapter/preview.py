"""What AM-Adapter reads where: one call of the patched model, watched. Correspondence, attention mass and class coverage."""

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
from .. import slots
from ..preview import enlarge, run_observed_step
from .apply import NODE, OBSERVER, Application, Origin, ReadExemplars

PREVIEW = "AM Match Preview"
MOST_PLACES = 1024  # of the layers that are watched: enough to see, and a whole attention matrix still fits


@dataclass
class _Layer:
    """Attention of the layers of one size, summed: [target places, all exemplar places], and how many maps were summed."""

    grid: Grid
    origins: tuple[Origin, ...]
    total: Tensor
    count: int = 0


@dataclass
class Observer:
    """Watches the first latent of the first positive condition."""

    layers: dict[Any, _Layer] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Observer:
        return self

    def watching(self, attend: Attend, grid: Grid, origins: tuple[Origin, ...]) -> Attend:
        """The same attention, with a look at its weights. `origins` say whose the last keys are, in their order."""
        places, read = grid[0] * grid[1], sum(o.grid[0] * o.grid[1] for o in origins)
        if places > MOST_PLACES or read > len(origins) * MOST_PLACES:
            return attend
        layer = self.layers.setdefault((grid, origins), _Layer(grid, origins, torch.zeros(places, read)))
        row = 0

        def watch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            nonlocal row
            logits = (q[0].float() @ k[0].float().transpose(-1, -2)) * q.shape[-1] ** -0.5
            weights = (logits if mask is None else logits + mask[0].float()).softmax(dim=-1)
            rows = slice(row % places, row % places + q.shape[2])
            layer.total[rows] += weights[..., -read:].mean(dim=0).cpu()
            layer.count += int(row % places == 0)
            row += q.shape[2]
            return attend(q, k, v, mask)

        return watch

    def finest(self) -> _Layer:
        """The layers with most places. Raises ValueError if none read an exemplar."""
        if not self.layers:
            raise ValueError(
                f"{PREVIEW}: no layer of at most {MOST_PLACES} places reads an exemplar at this moment. Choose a percent inside the range of "
                f"{NODE}, and a picture of at most 512x512."
            )
        return max(self.layers.values(), key=lambda layer: (len(layer.origins), layer.grid[0] * layer.grid[1]))


def preview(model: Any, positive: Any, latent: dict, percent: float, seed: int) -> tuple[Tensor, Tensor, str]:
    """What each place of a latent reads, at one moment of sampling.

    Args:
        latent: LATENT to look at, such as the result; noise of the moment is added to its first picture.
        percent: the moment, 0 the first step and 1 the last.

    Returns:
        The target put together of what it reads [1, h, w, 3]; the share of attention that goes to exemplars, dark 0 and bright 1; the
        coverage table.

    Raises:
        ValueError: the model has no AM-Adapter, or it reads nothing at this moment.
    """
    options = model.model_options["transformer_options"]
    technique = next((t for t in slots.techniques(options) if isinstance(t, ReadExemplars)), None)
    if technique is None:
        raise ValueError(f"{PREVIEW}: this MODEL has no exemplar. Connect the MODEL that comes out of {NODE}.")
    observer = Observer()
    run_observed_step(PREVIEW, model, positive, latent, percent, seed, OBSERVER, observer)
    layer = observer.finest()
    weights = layer.total / max(1, layer.count)
    read = _put_together(weights, layer)
    mass = rearrange(weights.sum(dim=1), "(h w) -> h w", h=layer.grid[0])
    return read, enlarge(mass[None, ..., None].expand(-1, -1, -1, 3).clamp(0, 1)), _table(technique, mass)


def _put_together(weights: Tensor, layer: _Layer) -> Tensor:
    """Each place as the piece of exemplar that it reads most."""
    pieces = []
    for origin in layer.origins:
        shown = rearrange(origin.application.pictures.thumbnails[origin.place], "h w c -> 1 c h w")
        pieces.append(rearrange(F.adaptive_avg_pool2d(shown, origin.grid), "1 c h w -> (h w) c"))
    picture = torch.cat(pieces)[weights.argmax(dim=1)]
    return enlarge(rearrange(picture, "(h w) c -> 1 h w c", h=layer.grid[0]))


def _table(technique: ReadExemplars, mass: Tensor) -> str:
    return "\n\n".join(_coverage(number, a, mass) for number, a in enumerate(technique.applications, start=1))


def _coverage(number: int, application: Application, mass: Tensor) -> str:
    """One line a class of the target: how much of target and exemplars it covers, and how much attention it gives to exemplars."""
    names, target = application.target.names, application.target.labels[:1]
    small = F.interpolate(target[None].float(), tuple(mass.shape), mode="nearest-exact")[0, 0].long()
    lines = [f"exemplar {number}: class, share of target, share of exemplar, attention to exemplars"]
    warnings = []
    for label in target.unique().tolist():
        name = "void" if label == VOID else names[label]
        here = small == label
        attention = f"{100 * float(mass[here].mean()):.0f} %" if bool(here.any()) else "-"
        shares = [float((labels == label).float().mean()) for labels in (target, application.pictures.labels)]
        lines.append(f"{name}: {100 * shares[0]:.1f} %, {100 * shares[1]:.1f} %, {attention}")
        if shares[1] == 0 and label != VOID:
            warnings.append(name)
    if warnings:
        lines.insert(0, f"Warning: the exemplar lacks {', '.join(warnings)}; these places keep the model's own look.")
    return "\n".join(lines)
