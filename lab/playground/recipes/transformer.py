"""The transformer base: rectified flow on scenes of objects, with and without reference images.

    x_s = (1 - s) x + s e,  the network predicts e - x            s = 2 u / (1 + u),  u logit-normal, a tenth of them uniform

Three in five batches are captions of objects; in the others some objects are described by a reference image only. Half of those rows see
every reference from everywhere, as edit models are trained; in the other half a reference is seen only inside the box of its object, as
Regional References applies it. A tenth of the captions and of the references is left out.

Until the learning rate falls, half of the image tokens skip all layers but the first and the last (`transformer_network`).

The shipped weights saw all kinds of scenes, portraits and streets too, in their first 1,600 steps, and only objects from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....py.playground.vocabulary import END, encode_padded
from ...training.loop import Schedule, fit
from ...training.muon import MuonWithAdamW
from . import transformer_network
from .transformer_data import REFERENCE_SIDE, REFERENCES, load_examples

EXAMPLES = 20_000
BATCH, REFERENCE_BATCH = 20, 14
ROUND, WITH_REFERENCES = 20, 8  # of a round of batches, how many have references
DROP = 0.1
TEXT = 32  # tokens: the multiple to which the network fills up a text
SIDE = 16  # latent cells
CELLS = SIDE * SIDE
ROWS = REFERENCE_SIDE // 8  # of cells below the image, for two references side by side
MARGIN = 0.5  # cells around a box in which its reference is seen
NEVER = -1e4
SCHEDULE = Schedule(
    steps=3550, learning_rate=2e-3, warmup=100, final_rate=0.02, ema=0.998, checkpoint_every=200, seed=12, cooldown=650
)

Predict = Callable[..., Tensor]


def train(
    network: nn.Module,
    text_features: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    schedule: Schedule = SCHEDULE,
    examples: int = EXAMPLES,
    compiled: bool = True,
) -> None:
    """Train a `NextDiT` in place.

    Args:
        text_features: tokens [b, 77] -> context [b, 77, c]. encode: images -> unit latents.
        compiled: run the network through torch.compile, which takes minutes once and then halves the time of a step.
    """
    data = load_examples(encode, folder, examples)
    lengths, prompt_lengths = ((data[name] == END).int().argmax(dim=1) + 1 for name in ("tokens", "prompt_tokens"))
    rows = {
        False: (data["is_objects"] & (lengths <= TEXT)).nonzero()[:, 0],
        True: (data["is_objects"] & (data["counts"] > 0) & (prompt_lengths <= TEXT)).nonzero()[:, 0],
    }
    predict: Predict = torch.compile(transformer_network.predict, dynamic=False) if compiled else transformer_network.predict
    rotary = {
        with_references: transformer_network.rotary_table(network, TEXT, SIDE + ROWS * with_references, SIDE)
        for with_references in (False, True)
    }

    def loss(number: int, rng: torch.Generator) -> Tensor:
        with_references = number % ROUND >= ROUND - WITH_REFERENCES
        count = REFERENCE_BATCH if with_references else BATCH
        chosen = rows[with_references][torch.randint(len(rows[with_references]), (count,), generator=rng)]
        batch = {name: values[chosen] for name, values in data.items()}
        tokens = batch["prompt_tokens" if with_references else "tokens"].long()
        dropped = torch.rand(count, 1, generator=rng) < DROP
        tokens = torch.where(dropped, torch.tensor(encode_padded([""])), tokens)
        is_text = torch.arange(TEXT)[None] <= (tokens == END).int().argmax(dim=1)[:, None]
        with torch.no_grad():
            text = text_features(tokens)[:, :TEXT]
        sigma = draw_sigmas(count, rng)
        clean = batch["latents"].float()
        noise = torch.randn(clean.shape, generator=rng)
        s = sigma.view(-1, 1, 1, 1)
        x, bias = (1 - s) * clean + s * noise, None
        if with_references:
            x, bias = add_references(x, batch, rng)
        is_routed = schedule.rate(number) == 1.0
        found = predict(network, x, sigma, text, is_text, rotary[with_references], bias, _kept(x, rng) if is_routed else None)
        return (found[:, :, :SIDE] - (noise - clean)).square().mean()

    fit("transformer", {"network": network}, loss, schedule, folder, optimizer_of=_optimizer)


def draw_sigmas(count: int, rng: torch.Generator) -> Tensor:
    """Noise levels [count] in 0..1, more of them high, where the layout is decided."""
    u = torch.sigmoid(torch.randn(count, generator=rng))
    u = torch.where(torch.rand(count, generator=rng) < 0.1, torch.rand(count, generator=rng), u)
    return 2 * u / (1 + u)


def add_references(x: Tensor, batch: dict[str, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy latents [b, 4, 16, 16] with their references below, and the bias [b, 1, l, l] of who attends to them."""
    left_out = torch.rand(len(x), generator=rng) < DROP
    references = torch.where(left_out.view(-1, 1, 1, 1, 1), 0.0, batch["references"].float())
    x = torch.cat([x, torch.cat(list(references.unbind(dim=1)), dim=-1)], dim=2)
    is_regional = torch.rand(len(x), generator=rng) < 0.5
    return x, regional_bias(batch["boxes"], batch["counts"], is_regional)


def regional_bias(boxes: Tensor, counts: Tensor, is_regional: Tensor) -> Tensor:
    """[b, 1, l, l], 0 or NEVER: in regional rows a reference is seen by the cells of its box only, and sees only itself.

    Args:
        boxes: [b, 2, 4] in 0..1. counts: [b] references. is_regional: [b].
    """
    below = ROWS * SIDE
    bias = torch.zeros(len(boxes), 1, TEXT + CELLS + below, TEXT + CELLS + below)
    y, x = torch.arange(SIDE).repeat_interleave(SIDE), torch.arange(SIDE).repeat(SIDE)
    owner = torch.arange(SIDE).repeat(ROWS) // (SIDE // REFERENCES)
    cells, references = slice(TEXT, TEXT + CELLS), slice(TEXT + CELLS, None)
    for row in is_regional.nonzero()[:, 0].tolist():
        sees = torch.zeros(CELLS, REFERENCES, dtype=torch.bool)
        for index in range(int(counts[row])):
            x0, y0, x1, y1 = (boxes[row, index] * SIDE).tolist()
            inside_x = (x >= math.floor(x0 - MARGIN)) & (x < math.ceil(x1 + MARGIN))
            sees[:, index] = inside_x & (y >= math.floor(y0 - MARGIN)) & (y < math.ceil(y1 + MARGIN))
        bias[row, 0, cells, references] = torch.where(sees[:, owner], 0.0, NEVER)
        bias[row, 0, :TEXT, references] = NEVER
        bias[row, 0, references] = NEVER
        bias[row, 0, references, references] = torch.where(owner[:, None] == owner[None], 0.0, NEVER)
    return bias.bfloat16()


def _kept(x: Tensor, rng: torch.Generator) -> Tensor:
    """The tokens that pass every layer: all text and references, half of the image."""
    half = torch.randperm(CELLS, generator=rng)[: CELLS // 2].sort().values
    total = TEXT + x.shape[2] * x.shape[3]
    return torch.cat([torch.arange(TEXT), TEXT + half, torch.arange(TEXT + CELLS, total)])


def _optimizer(modules: dict[str, Any], rate: float) -> MuonWithAdamW:
    named = dict(modules["network"].named_parameters())
    inner = {name for name, p in named.items() if p.ndim == 2 and (".attention." in name or ".feed_forward." in name)}
    return MuonWithAdamW([named[name] for name in sorted(inner)], [p for name, p in named.items() if name not in inner], rate)
