"""The playground's networks for training Paint by Example, and the file that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...py.host import playground
from ...py.paint_by_example import checkpoint
from ...py.paint_by_example.model import Config, ExemplarMapper
from ...py.paint_by_example.training import is_trained
from .recipes import image_encoder
from .recipes import paint_by_example as recipe

BLOCKS = 2
FILE = playground.ASSETS / "paint_by_example" / "playground_paint_by_example.safetensors"


def widen(weight: Tensor, channels: int) -> Tensor:
    """The first convolution's weight for more channels; the new ones are zero, so nothing changes before the first step."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])], dim=1)


def playground_networks(encode: Callable[[Tensor], Tensor]) -> recipe.Networks:
    """The playground's models ready to become a Paint by Example; `encode` is its VAE."""
    unet = playground.new_unet(checkpoint.CHANNELS)
    state = {name: weight.float() for name, weight in playground.read_weights("unet").items()}
    first = "input_blocks.0.0.weight"
    unet.load_state_dict(state | {first: widen(state[first], checkpoint.CHANNELS)})
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(is_trained(name))
    tower = playground.new_image_encoder(image_encoder.CONFIG)
    tower.load_state_dict({name: weight.float() for name, weight in playground.read_weights("image_encoder").items()})
    mapper = ExemplarMapper(Config(image_encoder.CONFIG["hidden_size"], playground.CONTEXT_DIM, BLOCKS))
    vision: Any = tower.eval().requires_grad_(False).vision_model
    return recipe.Networks(unet, mapper, encode, lambda pixels: vision(pixels)[2])


def export_weights(nets: recipe.Networks, path: Path = FILE) -> Path:
    """Write what was trained on the playground, in float16, as the loader reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unet = {name: weight for name, weight in nets.unet.state_dict().items() if is_trained(name)}
    facts = {"base": "playground", "steps": str(recipe.SCHEDULE.steps)}
    checkpoint.save(path, checkpoint.Contents(unet=unet, mapper=dict(nets.mapper.state_dict()), metadata=facts))
    path.chmod(0o644)  # the library writes for the owner alone; these files ship
    return path
