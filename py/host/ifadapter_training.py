"""IFAdapter's trainer in the host's terms: the host's frozen UNet with an adapter in training inside its text attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ifadapter.model import Config, Layer
from ..ifadapter.training import Prepared
from . import grids, hooks, slots


def layers_of(unet: Any, places: Sequence[hooks.LayerKey]) -> tuple[Layer, ...]:
    """The description of these text attentions of a UNet, as `Config` takes it."""
    blocks = hooks.attention_blocks(unet)
    found = []
    for place in places:
        attention = blocks[place].attn2
        found.append(Layer("_".join(map(str, place)), place, attention.heads * attention.dim_head, attention.heads))
    return tuple(found)


def predicted(unet: Any, config: Config, x: Tensor, t: Tensor, context: Tensor, prepared: Prepared, **more: Any) -> Tensor:
    """The frozen UNet's prediction with what the adapter adds, with gradients for the adapter."""

    def hook_of(key: str):
        def hook(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            h, w = grids.layer_grid(options, q.shape[1]) or (1, q.shape[1])
            base = slots.plain_attention(q, k, v, options)
            return base + prepared.change(key, q, h, w).to(base)

        return hook

    table = {layer.place: hook_of(layer.key) for layer in config.layers}
    return unet(x, t, context=context, transformer_options={"patches_replace": {"attn2": table}}, **more)
