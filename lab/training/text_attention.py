"""What a UNet's text attention multiplies, for losses on attention maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ...py.host import hooks
from ...py.snf.training import Attended, Predict


@contextmanager
def record_text_attention(unet: Any) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """Collects, while inside, the queries, keys and number of heads of every text attention that runs, in order."""
    found: list[tuple[Tensor, Tensor, int]] = []
    handles = []
    for block in hooks.attention_blocks(unet).values():
        queries: list[Tensor] = []

        def keep_query(module: Any, inputs: Any, out: Tensor, queries: list = queries) -> None:
            queries.append(out)

        def keep_pair(module: Any, inputs: Any, out: Tensor, queries: list = queries, heads: int = block.attn2.heads) -> None:
            found.append((queries.pop(), out, heads))

        handles += [block.attn2.to_q.register_forward_hook(keep_query), block.attn2.to_k.register_forward_hook(keep_pair)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def predict_and_record(unet: Any) -> Predict:
    """The UNet's prediction with the text attention of each layer below full size; those of full size decide details, not the layout."""

    def predict(x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Attended]:
        with record_text_attention(unet) as pairs:
            eps = unet(x, t, context=context)
        h, w = x.shape[-2:]
        attended = []
        for q, k, heads in pairs:
            level = round((h * w / q.shape[1]) ** 0.5)
            grid = -(-h // level), -(-w // level)
            if level > 1 and grid[0] * grid[1] == q.shape[1]:
                attended.append((q, k, heads, grid))
        return eps, attended

    return predict
