"""One training loop: warm-up, cosine decay, gradient clipping, EMA, checkpoints that resume.

A trainer brings its modules and a function from the step number to a loss; the loop owns everything else. The batch of a step is a
function of (seed, step), so that a resumed run sees the batches that an uninterrupted one would have seen.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger("exemplary")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Learning rate: linear warm-up, then a cosine down to `final_rate` of the peak."""

    steps: int
    learning_rate: float
    warmup: int = 200
    final_rate: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 250
    mixed_precision: str = "bf16"
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.99)

    def rate(self, step: int) -> float:
        """The factor of the peak learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def generator_for(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _trainable(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{prefix}.{name}", parameter


@torch.no_grad()
def _follow(average: dict[str, Tensor], modules: dict[str, nn.Module], decay: float) -> None:
    names, parameters = zip(*_trainable(modules))
    torch._foreach_lerp_([average[name] for name in names], [p.detach() for p in parameters], 1 - decay)


@torch.no_grad()
def load_average(modules: dict[str, nn.Module], average: dict[str, Tensor]) -> None:
    """Put the averaged parameters into the modules."""
    for name, parameter in _trainable(modules):
        parameter.copy_(average[name])


def fit(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    folder: Path,
    every: dict[int, Callable[[int], None]] | None = None,
    rates: dict[str, float] | None = None,
) -> None:
    """Train `modules` in place until `schedule.steps`, and leave the averaged (EMA) parameters in them.

    Args:
        name: names the checkpoint, `<folder>/<name>.ckpt`. A checkpoint that is there is resumed.
        modules: what is trained; parameters with `requires_grad=False` stay as they are.
        loss: (step, generator) -> scalar. Called under autocast if `schedule.mixed_precision` says so.
        every: period -> function of the step, e.g. to write sample pictures.
        rates: module -> factor of the learning rate, for adversaries of two speeds in one loss; 1 for the others.
    """
    from accelerate import Accelerator  # a training dependency: the nodes never need it

    accelerator = Accelerator(mixed_precision=schedule.mixed_precision, cpu=not torch.cuda.is_available())
    prepared = {key: accelerator.prepare_model(module.to(accelerator.device)) for key, module in modules.items()}
    parameters = [p for _, p in _trainable(modules)]
    groups = [{"params": parameters, "rate": 1.0}]
    if rates:
        groups = [
            {"params": [p for _, p in _trainable({key: module})], "rate": rates.get(key, 1.0)} for key, module in modules.items()
        ]
    optimizer = accelerator.prepare_optimizer(
        torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True)
    )
    average = {key: p.detach().clone() for key, p in _trainable(modules)}
    path, first = folder / f"{name}.ckpt", 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        average, first = state["average"], state["step"]
        if first < schedule.steps:
            optimizer.load_state_dict(state["optimizer"])
        log.info("%s: resumed at step %d of %d", name, first, schedule.steps)

    def save(step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a run that is cut off here keeps the older checkpoint whole

    for module in prepared.values():
        module.train()
    running, since = 0.0, time.monotonic()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step) * group.get("rate", 1.0)
        with accelerator.autocast():
            value = loss(step, generator_for(schedule.seed, step))
        accelerator.backward(value)
        accelerator.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # A young average follows faster: it must not remember the initialisation.
        _follow(average, modules, min(schedule.ema, (1 + step) / (10 + step)))
        running += float(value.detach())
        done = step + 1
        if done % 50 == 0:
            log.info(
                "%s %d/%d loss %.5f, %.2f s a step", name, done, schedule.steps, running / 50, (time.monotonic() - since) / 50
            )
            running, since = 0.0, time.monotonic()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            save(done)
        for period, call in (every or {}).items():
            if done % period == 0:
                call(done)
    load_average(modules, average)
    for module in modules.values():
        module.eval()
