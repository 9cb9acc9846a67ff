"""Exemplars limited to regions, and the text layers of Paint by Example's UNet in the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import CrossAttention
from torch import Tensor

from ...paint_by_example.context import regional_exemplars
from .. import grids, hooks
from ..run import SamplingRun, current_run
from .run_check import check_conditions

NODE = "Exemplar Conditioning"
REGIONS = "exemplary_regions"  # in a CONDITIONING: the regional exemplars


@dataclass(frozen=True, eq=False)
class Region:
    """An exemplar for a part of the image: token [1 or b, 1, c], mask [1 or b, h, w] in 0..1."""

    token: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class RegionalExemplars:
    """attn2 patch of every MODEL from the loader. It acts only on conditions that have regional exemplars."""

    def __deepcopy__(self, memo: dict) -> RegionalExemplars:
        return self

    def before_run(self, run: SamplingRun) -> None:
        check_conditions(getattr(run.guider, "conds", None) or {})
        latents = run.latent_shape[0]
        for condition in _conditions(run):
            for region in condition.get(REGIONS, ()):
                # Repeated latents are A, B, A, B, and so are the masks of their regions.
                if latents % region.mask.shape[0]:
                    raise grids.batch_error(NODE, "the mask of a region", region.mask.shape[0], latents)

    def idle(self, run: SamplingRun) -> bool:
        return run.get_or_make((self, "idle"), lambda: not any(REGIONS in c for c in _conditions(run)))

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and not self.idle(run)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # `active` has checked that there is one
        block = hooks.running_block(options)
        change = None
        for part in grids.conditional_rows(run, options, q, NODE, "regions are not applied"):
            frames = list(part.frames)
            regions = grids.condition(run, options, part.chunk).get(REGIONS, ())
            if not regions or block is None:
                continue
            masks = torch.stack([_select(_resize_mask(r.mask, part.grid, part.view), frames) for r in regions])
            # The layer is called and its weights are not read: they may be quantised, offloaded or patched by a LoRA.
            values = [block.attn2.to_v(grids.to_like(_select(r.token, frames), q)) for r in regions]
            change = torch.zeros_like(text) if change is None else change
            change[part.rows] = regional_exemplars(text[part.rows], values, grids.to_like(masks, text))
        return change


class OneTokenForward:
    """Object patch for `attn2.forward`: cross-attention to a single token is that token's value at every position.

    No query, key or softmax is computed. For any other number of tokens the layer's own forward is called.
    """

    def __init__(self, layer: CrossAttention) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, context: Any = None, value: Any = None, mask: Any = None, **options: Any) -> Tensor:
        # The running layer may be a copy of this one, for another device.
        block = hooks.running_block(options.get("transformer_options") or {})
        layer = self.layer if block is None else block.attn2
        if mask is not None or context is None or context.shape[1] != 1 or (value is not None and value.shape[1] != 1):
            return type(layer).forward(layer, x, context=context, value=value, mask=mask, **options)
        token = layer.to_out(layer.to_v(context if value is None else value))
        return token.expand(-1, x.shape[1], -1).contiguous()  # other packs may change it in place


def patch_text_layers(model: Any) -> None:
    """Give the text layers of this MODEL (already a clone) the forward for a single token, while it is loaded for sampling."""
    for name, module in model.get_model_object("diffusion_model").named_modules():
        if name.endswith(".attn2") and type(module) is CrossAttention:
            model.add_object_patch(f"diffusion_model.{name}.forward", OneTokenForward(module))


def _conditions(run: SamplingRun) -> list[dict[str, Any]]:
    return [c for group in (getattr(run.guider, "conds", None) or {}).values() for c in group or ()]


def _select(batch: Tensor, frames: list[int]) -> Tensor:
    """The entries of a batch for these latents; a shorter batch is repeated."""
    return batch if batch.shape[0] == 1 else batch[[frame % batch.shape[0] for frame in frames]]


def _resize_mask(mask: Tensor, grid: grids.Grid, view: grids.View) -> Tensor:
    """A mask [b, h, w] on the grid of a layer that sees the part `view` of it: [b, l]."""
    return F.interpolate(grids.part_of(mask, view)[:, None].float(), size=grid, mode="area")[:, 0].flatten(1)
