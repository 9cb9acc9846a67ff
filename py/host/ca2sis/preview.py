"""Preview of the class that each pixel attends to: in a patched Stable Diffusion model during one call, and in the generator of CA2-SIS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...ca2sis.codes import Style
from .. import slots
from ..grids import Grid
from ..inputs import check_integer
from ..preview import distinct_colour, enlarge, run_observed_step
from . import codes as ca2sis
from .attention import NODE, OBSERVER, Application, ClassText
from .codes import EncodedShape, LoadedCA2SIS

PREVIEW = "Class Attention Preview"
BASE = (70, 70, 76)  # the colour of the base text


@dataclass
class Observer:
    """Collects the attention of the first latent of the first positive condition, by the grid of the layers."""

    application: Application
    seen: dict[Grid, list[Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Observer:
        return self

    def saw(self, application: Application, grid: Grid, shares: Tensor) -> None:
        """Called by the hook: shares [b, 1 + r, l] of each token's attention in this layer."""
        if application is self.application:
            self.seen.setdefault(grid, []).append(shares[0].unflatten(-1, grid).cpu())


def preview(
    model: Any, positive: Any, latent: dict | None, percent: float, seed: int, loaded: Any, shape: Any, style: Any
) -> tuple[Tensor, Tensor, str]:
    """The preview of the connected model: Stable Diffusion or CA2-SIS.

    Raises:
        ValueError: neither has all its inputs, or the seed is not a whole number of 64 bits.
    """
    seed = check_integer(seed, PREVIEW, "seed", 0, 2**64 - 1)
    if model is not None and positive is not None and latent is not None:
        return of_model(model, positive, latent, percent, seed)
    if loaded is not None and shape is not None and style is not None:
        return of_generator(loaded, shape, style)
    raise ValueError(f"{PREVIEW}: connect model, positive and latent (Stable Diffusion), or ca2sis, shape and style (CA2-SIS).")


def of_model(model: Any, positive: Any, latent: dict, percent: float, seed: int) -> tuple[Tensor, Tensor, str]:
    """The classes that each latent cell attends to at one step of sampling; see `draw`.

    Args:
        model: from the attention node; of several in a chain the last one is shown.
        latent: LATENT to look at, such as the result; noise of that step is added to its first image.
        percent: the step, 0 the first and 1 the last.

    Raises:
        ValueError: the model has no class-adaptive attention, or none at this step.
    """
    options = model.model_options["transformer_options"]
    found = [t for t in slots.techniques(options) if isinstance(t, ClassText)]
    if not found:
        raise ValueError(f"{PREVIEW}: this MODEL has no class-adaptive attention. Connect the MODEL that comes out of {NODE}.")
    observer = Observer(found[-1].application)
    run_observed_step(PREVIEW, model, positive, latent, percent, seed, OBSERVER, observer)
    if not observer.seen:
        raise ValueError(f"{PREVIEW}: no layer acts at this step. Choose a percent inside the range of {NODE}.")
    application = observer.application
    names = ["base", *(prompt.classes for prompt in application.prompts)]
    finest = max(observer.seen, key=lambda grid: grid[0] * grid[1])
    return draw(torch.stack(observer.seen[finest]).mean(dim=0), names, [BASE, *_colours(len(names) - 1)])


def of_generator(loaded: LoadedCA2SIS, shape: EncodedShape, style: Style) -> tuple[Tensor, Tensor, str]:
    """The class whose style each pixel of the first image attends to, mean over heads and levels; see `draw`."""
    shares = ca2sis.attention_shares(loaded, shape, style)
    return draw(shares, list(loaded.labels), [BASE, *_colours(len(loaded.labels) - 1)])


def draw(shares: Tensor, names: list[str], colours: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, str]:
    """Images of shares [k, h, w] that sum to 1 over k.

    Returns:
        Each cell in the colours of the classes it attends to, mixed by their shares [1, H, W, 3]; one image of each share, black 0 and white 1
        [k, H, W, 3]; a line of text per name: its share of the attention, the area where it is largest, and its colour.
    """
    shares = shares.float()
    winner = shares.argmax(dim=0)
    table = torch.tensor(colours, dtype=torch.float32) / 255
    coloured = torch.einsum("k h w, k c -> h w c", shares, table)
    lines = []
    for number, (name, colour) in enumerate(zip(names, colours)):
        most = float((winner == number).float().mean())
        lines.append(
            f"{name} #{bytes(colour).hex()}: {100 * float(shares[number].mean()):.1f} % of what is read, most in {100 * most:.1f} %"
        )
    return enlarge(coloured[None]).clamp(0, 1), enlarge(shares[..., None].expand(-1, -1, -1, 3)).clamp(0, 1), "\n".join(lines)


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [distinct_colour(number) for number in range(count)]
