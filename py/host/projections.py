"""Keys and values of tokens that a technique brings, projected by the host's own layers and kept for one run.

The layers are called and their weights never read: they may be quantised, offloaded or carry a LoRA. LoRA hooks of a CONDITIONING swap
weights between calls of one run, so nothing that was projected while hooks are in use is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from .run import SamplingRun

T = TypeVar("T")


def get_or_project(run: SamplingRun, key: Hashable, block: Any, project: Callable[[], T]) -> T:
    """What `project` returns, computed once per run for this key and this transformer block.

    It is computed again at every call while hooks may change the weights, and where gradients are needed, since each step then needs a
    separate graph.

    Args:
        key: everything that the result depends on besides the block: the technique, which tokens, device and number format.
        block: the transformer block whose layers `project` calls.
        project: calls the block's `to_k` and `to_v`.
    """
    if run.weights_may_change() or torch.is_grad_enabled():
        return project()
    return run.get_or_make((key, block, "projected"), project)


def keys_and_values(
    run: SamplingRun, key: Hashable, block: Any, tokens: Callable[[], list[torch.Tensor]], like: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values [.., m, c] of several token tensors [.., m, width] by the text attention of a block; kept as by `get_or_project`.

    Args:
        tokens: makes the tensors; called only when they are projected.
        like: a tensor of the layer; its device and number format are used and belong to the key.
    """

    def project() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        moved = [t.to(device=like.device, dtype=like.dtype) for t in tokens()]
        return [block.attn2.to_k(t) for t in moved], [block.attn2.to_v(t) for t in moved]

    return get_or_project(run, (key, like.device, like.dtype), block, project)
