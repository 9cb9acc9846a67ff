"""Keys and values of another image, layer by layer: one more call of the model, without anything that is meant for the target."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..run import RUN
from .attention import OVERRIDE, JointAttention
from .call import IS_ACTING, ModelCall
from .plan import filled_text, prepare

Layers = dict[Hashable, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Recording:
    """What a model computes of images at one noise level.

    Args:
        layers: by the name of the attention call, keys and values [n, heads, cells, d] of the image cells.
        denoised: [n, c, ...], the model's prediction of the images.
    """

    layers: Layers
    denoised: Tensor


def conditions_of(call: ModelCall, row: int, prompt: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """Text [1, t, c] and further conditions to run the model with: those of a row of the call, or of a CONDITIONING.

    Reference images, masks and channels beside the latent belong to the target and are left out.
    """
    if prompt is None:
        text, found = call.prompt[row : row + 1], dict(call.conditions)
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        found |= {name: value[row : row + 1] for name, value in tensors.items() if value.shape[0] == call.rows}
    else:
        conditions = comfy.sampler_helpers.convert_cond(prompt[:1])
        conditions[0].setdefault("pooled_output", None)
        noise = torch.zeros((1, *call.latent.shape[1:]), device=call.latent.device)
        encoded = comfy.samplers.encode_model_conds(call.model.extra_conds, conditions, noise, noise.device, "positive")
        found = {
            name: value.process_cond(batch_size=1, device=noise.device, area=None).cond
            for name, value in encoded[0]["model_conds"].items()
        }
        text = found.pop("c_crossattn").to(call.prompt)
    unused = ("ref_latents", "ref_latents_method", "ref_contexts", "siglip_feats", "c_concat", "crossattn_controlnet")
    return text, {name: value for name, value in found.items() if name not in unused}


def record(call: ModelCall, noisy: Tensor, sigma: float, text: Tensor, conditions: dict[str, Any]) -> Recording:
    """Run the model on latents [n, c, ...] of this noise level and keep the keys and values of all layers.

    It runs without the target's patches, areas and ControlNets, but with an attention override that was set on the MODEL.
    """
    count = noisy.shape[0]
    sigmas = torch.full((count,), sigma, device=noisy.device, dtype=torch.float32)
    options = {"sigmas": sigmas[:1], "cond_or_uncond": [0], RUN: call.run, IS_ACTING: True}
    conditions = {name: _expanded(value, count) for name, value in conditions.items()}
    arguments = {"x": noisy, "t": sigmas, "c_crossattn": text.expand(count, -1, -1), "transformer_options": options}
    own = ModelCall(call.run, call.model, call.family, arguments, conditions)
    prepared = prepare(own, (), is_recording=True)
    if prepared is None:
        raise RuntimeError("a recording has always a plan")
    layers: Layers = {}
    options[OVERRIDE] = JointAttention(prepared.plan, call.options.get(OVERRIDE), layers)
    with filled_text(own, prepared):
        denoised = call.model.apply_model(
            noisy, sigmas, c_crossattn=prepared.prompt, transformer_options=options, **{**conditions, **prepared.conditions}
        )
    return Recording(layers, denoised)


def _expanded(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1 else value
