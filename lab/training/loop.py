"""One training loop: warm-up, cosine decay, gradient clipping, accumulation, several processes, EMA, checkpoints that resume.

A trainer brings its modules and a function from a batch's number to a loss; the loop owns everything else. A batch is a function of
(seed, number), so that a resumed run sees the batches that an uninterrupted one would have seen. A step takes `accumulation` batches in
each process, numbered through: two processes that accumulate one batch do what one process does that accumulates two.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.99)

    def rate(self, step: int) -> float:
        """The factor of the peak learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def generator_for(seed: int, number: int) -> torch.Generator:
    """The random numbers of one batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


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


@contextmanager
def _averaged(modules: dict[str, nn.Module], average: dict[str, Tensor]) -> Iterator[None]:
    """The averaged parameters in the modules for a while."""
    own = {name: parameter.detach().clone() for name, parameter in _trainable(modules)}
    load_average(modules, average)
    try:
        yield
    finally:
        load_average(modules, own)


def emulates_bf16() -> bool:
    """Is this a processor, and one that has to emulate bf16? That is 10 to 50 times slower than float32."""
    native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return not torch.cuda.is_available() and not any(getattr(torch.cpu, name, bool)() for name in native)


def _share_gradients(accelerator: Any, parameters: list[nn.Parameter]) -> None:
    """The mean gradient of all processes in each of them."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            # A part that one process has not used is used by another: all must take part in the exchange.
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(grad, reduction="mean")


def fit(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    folder: Path,
    every: dict[int, Callable[[int], None]] | None = None,
    rates: dict[str, float] | None = None,
) -> list[float]:
    """Train `modules` in place until `schedule.steps`, and leave the averaged (EMA) parameters in them.

    Args:
        name: names the checkpoint, `<folder>/<name>.ckpt`. A checkpoint that is there is resumed.
        modules: what is trained; parameters with `requires_grad=False` stay as they are.
        loss: (number of the batch, generator) -> scalar. Called under autocast if `schedule.mixed_precision` says so.
        every: period -> function of the step, e.g. to write sample pictures. Called with the averaged parameters in the modules, in the
            main process only.
        rates: module -> factor of the learning rate, for adversaries of two speeds in one loss; 1 for the others.

    Returns:
        The loss of every step that was made, the mean of all its batches.
    """
    from accelerate import Accelerator  # a training dependency: the nodes never need it

    precision = "no" if schedule.mixed_precision == "bf16" and emulates_bf16() else schedule.mixed_precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    # Evaluation mode: no wrapper that would want to be called in the module's place; gradients are exchanged below.
    for module in modules.values():
        accelerator.prepare_model(module.to(accelerator.device), evaluation_mode=True)
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
        average, first = {key: value.to(accelerator.device) for key, value in state["average"].items()}, state["step"]
        if first < schedule.steps:
            optimizer.load_state_dict(state["optimizer"])
        log.info("%s: resumed at step %d of %d", name, first, schedule.steps)

    def save(step: int) -> None:
        if not accelerator.is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a run that is cut off here keeps the older checkpoint whole

    for module in modules.values():
        module.train()
    losses: list[float] = []
    since = time.monotonic()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step) * group.get("rate", 1.0)
        value = torch.zeros((), device=accelerator.device)
        for turn in range(schedule.accumulation):
            number = (step * schedule.accumulation + turn) * accelerator.num_processes + accelerator.process_index
            with accelerator.autocast():
                part = loss(number, generator_for(schedule.seed, number)) / schedule.accumulation
            accelerator.backward(part)
            value += part.detach()
        _share_gradients(accelerator, parameters)
        accelerator.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # A young average follows faster: it must not remember the initialisation.
        _follow(average, modules, min(schedule.ema, (1 + step) / (10 + step)))
        losses.append(float(accelerator.reduce(value, reduction="mean")))
        done = step + 1
        if done % 50 == 0 and accelerator.is_main_process:
            recent = losses[-50:]
            seconds = (time.monotonic() - since) / len(recent)
            log.info("%s %d/%d loss %.5f, %.2f s a step", name, done, schedule.steps, sum(recent) / len(recent), seconds)
            since = time.monotonic()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            save(done)
        for period, call in (every or {}).items():
            if done % period == 0 and accelerator.is_main_process:
                with _averaged(modules, average):
                    call(done)
    load_average(modules, average)
    for module in modules.values():
        module.eval()
    accelerator.wait_for_everyone()
    return losses
