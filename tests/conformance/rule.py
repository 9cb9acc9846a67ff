"""The rule that makes a recorded case's weights and inputs from names alone (vectors/README.md, A 2, B 2 and B 3)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ZERO_CENTRED = ("q_norm.weight", "k_norm.weight")  # the module itself adds 1


def generator(key: str, seed: int) -> torch.Generator:
    """The CPU generator that belongs to one name."""
    return torch.Generator().manual_seed((zlib.crc32(key.encode()) ^ seed) & 0x7FFFFFFF)


def weight(key: str, shape: Sequence[int], seed: int, gain: float) -> Tensor:
    """One weight. Drawn at its exact shape: torch fills fewer than 16 elements by another path than more."""
    r = torch.randn(tuple(shape), generator=generator(key, seed), dtype=torch.float32)
    if r.ndim >= 2:
        return r * gain / math.sqrt(math.prod(shape[1:]))
    if r.ndim == 0:
        return 0.5 + 0.1 * r
    if key.endswith(".weight") and not key.endswith(ZERO_CENTRED):
        return 1 + 0.1 * r
    return 0.1 * r


def weights(shapes: Mapping[str, Sequence[int]], seed: int, gain: float) -> dict[str, Tensor]:
    """A whole state dict."""
    return {key: weight(key, shape, seed, gain) for key, shape in shapes.items()}


def rule_input(key: str, shape: Sequence[int], kind: str, seed: int) -> Tensor:
    """An input that is not stored; `key` is `<case>/in.<name>`."""
    draw = {"randn": torch.randn, "randn_half": torch.randn, "rand": torch.rand}
    if kind not in draw:
        raise ValueError(f"{key} asks for inputs of kind {kind!r}; known are {', '.join(draw)}.")
    value = draw[kind](tuple(shape), generator=generator(key, seed), dtype=torch.float32)
    return value.half().float() if kind == "randn_half" else value


def weight_summary(value: Tensor) -> dict[str, float]:
    """What part A stores of a weight under `weight_check`."""
    flat = value.double().flatten()
    return {"first": float(flat[0]), "last": float(flat[-1]), "sum": float(flat.sum()), "abs_sum": float(flat.abs().sum())}


def check_weights(made: Mapping[str, Tensor], recorded: Mapping[str, Mapping | float]) -> list[str]:
    """Compare with part A's `weight_check`; one sentence a key that differs. `__all__` needs the complete state dict."""
    wrong = []
    for key, expected in recorded.items():
        if key == "__all__":
            total = expected["abs_sum"] if isinstance(expected, Mapping) else expected
            found = sum(weight_summary(value)["abs_sum"] for value in made.values())
            if not math.isclose(found, total, rel_tol=1e-6):
                wrong.append(f"all {len(made)} weights have an absolute sum of {found:.6g}, recorded is {total:.6g}")
        elif key not in made:
            wrong.append(f"{key} is missing")
        elif isinstance(expected, Mapping):
            summary, shape = weight_summary(made[key]), list(made[key].shape)
            room = 1e-6 * max(1.0, expected["abs_sum"])  # a large draw's last bits differ between kinds of CPU
            far = [name for name, value in summary.items() if abs(value - expected[name]) > (room if "sum" in name else 1e-5)]
            if shape != list(expected["shape"]) or far:
                wrong.append(f"{key} {shape} differs in {', '.join(far) or 'shape'} from the recorded {expected}")
    return wrong


def check_table(made: Mapping[str, Tensor], recorded: Tensor) -> list[str]:
    """Compare with part B's `chk.weights`: first, last and mean of every key, keys sorted."""
    wrong = []
    for key, row in zip(sorted(made), recorded.double(), strict=True):
        flat = made[key].double().flatten()
        found = torch.stack([flat[0], flat[-1], flat.mean()])
        if not torch.allclose(found, row, rtol=1e-5, atol=1e-6):
            wrong.append(f"{key} has first, last and mean {found.tolist()}, recorded are {row.tolist()}")
    return wrong


def check_input(made: Tensor, recorded: Tensor) -> bool:
    """Compare with part B's `chk.in.<name>`: first, last, mean and root mean square."""
    flat = made.double().flatten()
    found = torch.stack([flat[0], flat[-1], flat.mean(), flat.square().mean().sqrt()])
    return torch.allclose(found, recorded.double(), rtol=1e-5, atol=1e-6)
