"""How the playground's trainers write the files that ship, and read those that are finished."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...py.host import playground
from ..training.loop import emulates_bf16

log = logging.getLogger("exemplary")

INITIAL_SEED = 1  # of every network's first weights; the batches have the seed of their schedule


def ship(name: str, state: dict[str, Tensor], **facts: object) -> None:
    """Write one file in float16 (what is in 8 bits stays so), with what it is in its metadata.

    `folder/name` lists it in the model folder of that name.
    """
    path = playground.ASSETS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {key: (value if value.dtype.itemsize == 1 else value.half()).detach().contiguous() for key, value in state.items()}
    save_file(written, path, {key: str(value) for key, value in facts.items()})
    path.chmod(0o644)  # the library writes for the owner alone; these files ship
    log.info("%s: %.1f MB", path.name, path.stat().st_size / 1e6)


def encode_with(autoencoder: Any) -> Callable[[Tensor], Tensor]:
    """Images [n, 3, h, w] in 0..1 -> unit latents [n, 4, h/8, w/8] by a TAESD module."""

    def encode(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not emulates_bf16()):
            return autoencoder.taesd_encoder(images.contiguous(memory_format=torch.channels_last)).float()

    return encode


def finished(module: nn.Module, name: str) -> nn.Module:
    """The shipped weights of a file in a frozen float32 module."""
    strict = name not in ("text_encoder", "vae")  # they hold more (a projection) or less (no scale) than the module
    module.load_state_dict({k: v.float() for k, v in playground.read_weights(name).items()}, strict=strict)
    return module.requires_grad_(False).eval()


def finished_encoder() -> Callable[[Tensor], Tensor]:
    """`encode_with` the shipped VAE."""
    return encode_with(finished(playground.new_autoencoder(), "vae"))


def finished_base() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The shipped UNet, and what makes tokens [b, 77] the context [b, 77, c] that it reads."""
    text = finished(playground.new_text_model(), "text_encoder")
    return finished(playground.new_unet(), "unet"), lambda tokens: playground.text_features(text, tokens)
