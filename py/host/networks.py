"""The pack's networks in the host: built with its operations, loaded and offloaded by it, listed among its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch


def host_settings(weight_dtype: torch.dtype) -> dict[str, Any]:
    """`operations`, `dtype` and `device` for the constructor of one of the pack's networks, as the host would choose them.

    Weights keep their number format and are cast to that of the input at each layer's call, so any format of the base and offloading work.
    """
    return {
        "operations": comfy.ops.manual_cast,
        "dtype": weight_dtype,
        "device": comfy.model_management.unet_offload_device(),
    }


def as_patcher(network: torch.nn.Module) -> Any:
    """The network in the host's ModelPatcher, which moves it between devices from then on."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        network.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def load(make: Callable[..., torch.nn.Module], weights: dict[str, torch.Tensor], *arguments: Any, **named: Any) -> Any:
    """Build a network, load its weights (all of them, and no others) and wrap it in the host's ModelPatcher."""
    dtype = next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)
    if dtype.itemsize == 1:
        dtype = torch.float16  # the CPU cannot initialise layers in 8 bits, and float16 represents every float8 number
    network = make(*arguments, **named, **host_settings(dtype))
    network.load_state_dict(weights, strict=True)
    return as_patcher(network)


def serve(model: Any, key: str, networks: list[Any]) -> None:
    """Make the host load these networks whenever this MODEL (already a clone) is sampled, in addition to those of others."""
    present = model.get_additional_models_with_key(key)
    new = [n for n in networks if not any(n.is_clone(p) for p in present)]
    model.set_additional_models(key, [*present, *new])
