"""Trains ControlNeXt (stage 1) and the matcher (stage 2) inside the host's own UNet, on the loop that all trainers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..am_adapter.model import ControlNeXt, Matcher, inject
from ..am_adapter.training import trained_layer
from ..semantic.palettes import VOID
from . import hooks
from .am_adapter import PARTS
from .am_adapter_controlnext import PATCH, first_halving
from .am_adapter_exemplar import Recorder

#: (noisy latents [b, c, h, w], timesteps [b], context [b, m, c], maps' colours [b, 3, h, w]) -> the predicted noise.
Controlled = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def controlled(unet: nn.Module, control: ControlNeXt) -> Controlled:
    """The UNet with the control in it, differentiable in both."""
    block = _place(unet)

    def predict(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        return unet(x, t, context=context, transformer_options=_control_options(control, block, hint, t))

    return predict


def _place(unet: nn.Module) -> int:
    found = first_halving(unet)
    if found is None:
        raise ValueError(
            "This network has no block that halves the size, so it is no UNet. Load a Stable Diffusion 1.5 checkpoint."
        )
    return found[0]


def _control_options(control: ControlNeXt, block: int, hint: Tensor, t: Tensor) -> dict[str, Any]:
    def patch(h: Tensor, options: dict) -> Tensor:
        return inject(h, control(hint, t), 1.0) if tuple(options["block"][:2]) == ("input", block) else h

    return {"patches": {PATCH: [patch]}}


class MatchedUNet:
    """The frozen UNet whose layers read exemplars through a matcher."""

    def __init__(self, unet: nn.Module, control: ControlNeXt, matcher: Matcher) -> None:
        self.unet, self.control, self.matcher = unet, control, matcher
        self.block = _place(unet)
        self.keys = list(hooks.attention_blocks(unet))

    def __call__(
        self, x: Tensor, t: Tensor, context: Tensor, labels: Tensor, hint: Tensor, exemplar: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The predicted noise, with gradients to the matcher.

        Args:
            x, t, context, hint: as for `Controlled`. labels: [b, h, w].
            exemplar: one a row: noisy latents of the same timesteps, labels and colours of their map.
        """
        noisy, exemplar_labels, exemplar_hint = exemplar
        recorder = Recorder({})
        options = _control_options(self.control, self.block, exemplar_hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, recorder)}}
        with torch.no_grad():
            self.unet(noisy, t, context=context, transformer_options=options)

        def read(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            keys, values, grid = recorder.layers[hooks.layer_key(options)]
            encoder = self.matcher.encoder(PARTS[options["block"][0]], part_encoder=True)
            grids = (tuple(options["activations_shape"][-2:]), grid)
            return trained_layer(
                encoder, q, k, v, options["n_heads"], (keys, values), (labels, exemplar_labels), grids, void=VOID
            )

        options = _control_options(self.control, self.block, hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, read)}}
        return self.unet(x, t, context=context, transformer_options=options)
