"""Muon for the matrices inside transformer blocks, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024; scaled to AdamW's step size as in arXiv 2502.16982) needs about half the steps on small transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step together.

    Args:
        matrices: parameters of two dimensions. others: all other parameters.
        lr: of both.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float) -> None:
        self.parts = [
            torch.optim.Muon(list(matrices), lr=lr, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(list(others), lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        self.param_groups = [
            group for part in self.parts for group in part.param_groups
        ]  # the parts' own: their lr is set through these

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"]):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
