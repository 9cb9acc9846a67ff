"""The network between the exemplar's CLIP tower and the UNet, reduced to its value path.

Paint by Example runs five transformer blocks over a sequence of one token. The softmax over one key is 1, so queries and keys have no effect
and were never trained; a block here has only the values and gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """`width` of the tower's class token, width `context` of the UNet's text tokens, number of `blocks`."""

    width: int = 1024
    context: int = 768
    blocks: int = 5


class ValueBlock(nn.Module):
    """x + out(value(ln_1(x))), then x + proj(gelu(fc(ln_2(x)))); [..., width] -> [..., width]."""

    def __init__(self, width: int, operations: Any, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.ln_1 = operations.LayerNorm(width, **factory_kwargs)
        self.value = operations.Linear(width, width, **factory_kwargs)
        self.out = operations.Linear(width, width, **factory_kwargs)
        self.ln_2 = operations.LayerNorm(width, **factory_kwargs)
        self.fc = operations.Linear(width, 4 * width, **factory_kwargs)
        self.proj = operations.Linear(4 * width, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.value(self.ln_1(x)))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class ExemplarMapper(nn.Module):
    """Class tokens of exemplars [n, width], after the tower's last norm -> tokens for the UNet [n, 1, context].

    `null` [1, 1, context] is the learned token for "no exemplar", the negative condition.
    """

    def __init__(
        self, config: Config = Config(), *, operations: Any = nn, dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([ValueBlock(config.width, operations, dtype, device) for _ in range(config.blocks)])
        self.final_ln = operations.LayerNorm(config.width, dtype=dtype, device=device)
        self.proj_out = operations.Linear(config.width, config.context, dtype=dtype, device=device)
        self.null = nn.Parameter(torch.zeros(1, 1, config.context, dtype=dtype, device=device))

    def forward(self, pooled: Tensor) -> Tensor:
        x = pooled
        for block in self.blocks:
            x = block(x)
        return self.proj_out(self.final_ln(x))[:, None]


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight."""
    return {name: tuple(weight.shape) for name, weight in ExemplarMapper(config, device="meta").state_dict().items()}
