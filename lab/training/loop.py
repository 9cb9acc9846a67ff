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

from .checkpoints import load_checkpoint, save_checkpoint

log = logging.getLogger("exemplary")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Learning rate: linear warm-up, then a cosine down to `final_rate` of the peak.

    `cooldown`: above 0, the rate stays at the peak and falls linearly in that many last steps, instead of the cosine.
    """

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
    cooldown: int = 0

    def rate(self, step: int) -> float:
        """The factor of the peak learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.cooldown:
            return max(self.final_rate, min(1.0, (self.steps - step) / self.cooldown))
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


class Average:
    """The exponential moving average of the trainable parameters, by diffusers; with a decay of 0 the parameters themselves.

    Diffusers' average forgets the initialisation at its first step and then follows with min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float, step: int, kept: dict[str, Tensor] | None) -> None:
        from diffusers.training_utils import EMAModel

        named = dict(_trainable(modules))
        self.names, self.parameters = list(named), list(named.values())
        start: Any = [p if kept is None else kept[name].to(p) for name, p in named.items()]
        self.model = EMAModel(start, decay=decay, foreach=True)
        self.model.optimization_step = step

    def update(self) -> None:
        """Follow the parameters by a step."""
        if self.model.decay:
            self.model.step(self.parameters)
        else:
            torch._foreach_copy_(self.model.shadow_params, [p.detach() for p in self.parameters])

    def named(self) -> dict[str, Tensor]:
        """The average by the parameters' names."""
        return dict(zip(self.names, self.model.shadow_params))

    def copy_to_modules(self) -> None:
        """Put the average into the modules."""
        self.model.copy_to(self.parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the modules while inside."""
        self.model.store(self.parameters)
        self.copy_to_modules()
        try:
            yield
        finally:
            self.model.restore(self.parameters)


def emulates_bf16() -> bool:
    """Whether training runs on a CPU that has to emulate bf16, which is 10 to 50 times slower than float32."""
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
    optimizer_of: Callable[[dict[str, nn.Module], float], torch.optim.Optimizer] | None = None,
) -> list[float]:
    """Train `modules` in place until `schedule.steps`, and leave the averaged (EMA) parameters in them.

    Args:
        name: names the checkpoint, `<folder>/<name>.ckpt`. An existing checkpoint is resumed.
        modules: what is trained; parameters with `requires_grad=False` are not changed.
        loss: (number of the batch, generator) -> scalar. Called under autocast if `schedule.mixed_precision` says so.
        every: period -> function of the step, e.g. to write sample images. Called with the averaged parameters in the modules, in the
            main process only.
        rates: module -> factor of the learning rate, for adversaries of two speeds in one loss; 1 for the others.
        optimizer_of: (modules, learning rate) -> an optimizer in place of AdamW.

    Returns:
        The loss of every step of this run, the mean of all its batches.

    Raises:
        ValueError: the checkpoint cannot be read or written, or a loss or a weight is not finite; the last good checkpoint is kept.
    """
    from accelerate import Accelerator  # a training dependency: the nodes never need it

    precision = "no" if schedule.mixed_precision == "bf16" and emulates_bf16() else schedule.mixed_precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    # Evaluation mode: no wrapper that would have to be called in the module's place; gradients are exchanged below.
    for module in modules.values():
        accelerator.prepare_model(module.to(accelerator.device), evaluation_mode=True)
    parameters = [p for _, p in _trainable(modules)]
    groups = [{"params": parameters, "rate": 1.0}]
    if rates:
        groups = [
            {"params": [p for _, p in _trainable({key: module})], "rate": rates.get(key, 1.0)} for key, module in modules.items()
        ]
    chosen = (
        optimizer_of(modules, schedule.learning_rate)
        if optimizer_of
        else torch.optim.AdamW(
            groups, lr=schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
        )
    )
    optimizer = accelerator.prepare_optimizer(chosen)
    path, first, kept = folder / f"{name}.ckpt", 0, None
    if path.exists():
        kept = load_checkpoint(path, modules)
        first = kept["step"]
        if first < schedule.steps:
            try:
                optimizer.load_state_dict(kept["optimizer"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"The checkpoint {path} belongs to another training. Rename or delete it to start again."
                ) from None
        log.info("%s: resumed at step %d of %d", name, first, schedule.steps)
    average = Average(modules, schedule.ema, first, kept["average"] if kept else None)

    def save(step: int) -> None:
        if accelerator.is_main_process:
            states = {key: module.state_dict() for key, module in modules.items()}
            state = {"modules": states, "optimizer": optimizer.state_dict(), "average": average.named(), "step": step}
            save_checkpoint(path, state)

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
        losses.append(float(accelerator.reduce(value, reduction="mean")))
        _share_gradients(accelerator, parameters)
        norm = accelerator.clip_grad_norm_(parameters, schedule.clip)
        # The scaler of float16 skips steps whose gradients overflow and tries again with smaller ones: that is no failure.
        if not math.isfinite(losses[-1]) or (precision != "fp16" and norm is not None and not bool(norm.isfinite())):
            raise ValueError(_not_finite(name, step + 1, losses[-1], path))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        done = step + 1
        if done % 50 == 0 and accelerator.is_main_process:
            recent = losses[-50:]
            seconds = (time.monotonic() - since) / len(recent)
            log.info("%s %d/%d loss %.5f, %.2f s a step", name, done, schedule.steps, sum(recent) / len(recent), seconds)
            since = time.monotonic()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            if not all(bool(p.isfinite().all()) for p in parameters):
                raise ValueError(_not_finite(name, done, losses[-1], path))
            save(done)
        for period, call in (every or {}).items():
            if done % period == 0 and accelerator.is_main_process:
                with average.applied():
                    call(done)
    average.copy_to_modules()
    for module in modules.values():
        module.eval()
    accelerator.wait_for_everyone()
    return losses


def _not_finite(name: str, step: int, loss: float, path: Path) -> str:
    kept = f"The checkpoint {path.name} of an earlier step is kept" if path.exists() else "No checkpoint was written"
    return (
        f"{name}: training stopped at step {step}, where the loss is {loss} and a gradient or a weight is NaN or infinite. {kept}. "
        "Lower learning_rate, raise warmup, or set mixed_precision to 'no', and start again."
    )
