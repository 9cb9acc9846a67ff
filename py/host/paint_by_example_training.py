"""Training Paint by Example: the host's UNet with nine channels and its vision tower as the recipe wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..paint_by_example import checkpoint
from ..paint_by_example.model import Config, ExemplarMapper
from ..playground.recipes import image_encoder
from ..playground.recipes import paint_by_example as recipe
from . import playground

BLOCKS = 2
FILE = playground.ASSETS / "paint_by_example" / "playground_paint_by_example.safetensors"


def widened(weight: Tensor, channels: int) -> Tensor:
    """The first convolution's weight for more channels; the new ones are zero, so nothing changes before the first step."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])], dim=1)


def playground_networks(encode: Callable[[Tensor], Tensor]) -> recipe.Networks:
    """The playground's models ready to become a Paint by Example; `encode` is its VAE."""
    unet = playground.new_unet(checkpoint.CHANNELS)
    state = {name: weight.float() for name, weight in playground.read_weights("unet").items()}
    first = "input_blocks.0.0.weight"
    unet.load_state_dict(state | {first: widened(state[first], checkpoint.CHANNELS)})
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(recipe.trained(name))
    tower = playground.new_image_encoder(image_encoder.CONFIG)
    tower.load_state_dict({name: weight.float() for name, weight in playground.read_weights("image_encoder").items()})
    mapper = ExemplarMapper(Config(image_encoder.CONFIG["hidden_size"], playground.CONTEXT_DIM, BLOCKS))
    return recipe.Networks(unet, mapper, encode, pooled_with(tower.eval().requires_grad_(False)))


def pooled_with(tower: nn.Module) -> Callable[[Tensor], Tensor]:
    """Normalised pixels -> class tokens after the last norm, by the host's own forward pass."""

    def pooled(pixels: Tensor) -> Tensor:
        return tower.vision_model(pixels)[2]

    return pooled


def ship(nets: recipe.Networks, path: Path = FILE) -> Path:
    """Write what was trained, in float16, as the loader reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unet = {name: weight.half() for name, weight in nets.unet.state_dict().items() if recipe.trained(name)}
    mapper = {name: weight.half() for name, weight in nets.mapper.state_dict().items()}
    checkpoint.save(path, mapper, unet, base="playground", steps=recipe.SCHEDULE.steps)
    path.chmod(0o644)  # the library writes for the owner alone; these files ship
    return path
