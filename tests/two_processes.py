"""Trains a tiny adapter for a few steps and writes the losses: started by `accelerate launch` with two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401  puts the pack on the path
import torch
from pack.lab.training.diffusion import denoising_loss
from pack.lab.training.loop import Schedule, fit
from pack.py.ifadapter.model import Config, IFAdapter, Layer
from pack.py.ifadapter.training import Batch, Prepared, draw_drops

CONFIG = Config(
    layers=(Layer("a", ("middle", 0, 0), 32, 2),),
    encoders=(("l", 24),),
    text_layers=(-1, -2),
    queries=2,
    dim=32,
    depth=1,
    heads=2,
    dim_head=16,
    ff_mult=2,
    position_width=16,
    frequencies=4,
    reduction=4,
)
ALPHAS = torch.linspace(0.99, 0.01, 1000)


def train(folder: Path, accumulation: int) -> tuple[list[float], IFAdapter]:
    """Six steps of the adapter's own loss on random layouts; the losses and the trained adapter."""
    torch.manual_seed(0)
    network = IFAdapter(CONFIG)
    network.adapter_modules["a"].alpha.data.fill_(0.5)

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        corner = torch.rand(2, 3, 2, generator=rng) * 0.6
        words = (torch.randn(2, 3, 2, 5, 24, generator=rng), torch.randn(2, 3, 1, 24, generator=rng), torch.full((2, 3), 4))
        batch = Batch(*words, torch.cat([corner, corner + 0.3], dim=-1), torch.rand(2, 3, generator=rng) < 0.8)
        prepared = Prepared(network, batch.drop_phrases(draw_drops(2, rng)[0]))

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            q = x.flatten(2).transpose(1, 2).repeat(1, 1, 8)
            return x + prepared.change("a", q, 6, 7)[..., :4].transpose(1, 2).unflatten(2, (6, 7))

        return denoising_loss(predict, torch.randn(2, 4, 6, 7, generator=rng), ALPHAS, rng)

    schedule = Schedule(steps=6, learning_rate=1e-2, warmup=1, mixed_precision="no", accumulation=accumulation)
    return fit("tiny", {"adapter": network}, loss, schedule, folder), network


if __name__ == "__main__":
    from accelerate import PartialState

    losses, network = train(Path(sys.argv[1]), accumulation=int(sys.argv[2]))
    state = PartialState()
    if state.is_main_process:
        found = {
            "processes": state.num_processes,
            "losses": losses,
            "sum": float(sum(p.detach().abs().sum() for p in network.parameters())),
        }
        Path(sys.argv[1], "found.json").write_text(json.dumps(found))
