"""CA2-SIS's trainer for pictures and label maps of one's own: `dev.py train ca2sis --config FILE`, JSON with the fields of `Recipe`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...py.ca2sis import checkpoint, codes, training
from ...py.ca2sis.model import Config, Generator
from ..training import map_data
from ..training.loop import Schedule, fit, generator_for
from ..training.recipe import FromFile, command

log = logging.getLogger("exemplary")

NODE = "CA2-SIS training"


@dataclass(frozen=True)
class Recipe(FromFile):
    """What a user writes into the configuration file.

    Args:
        output: the folder for checkpoints, sample pictures and the weights, <name>.safetensors. A run that is there is resumed.
        classes: the names of the classes in label order; the first is what the others leave.
        images, maps: folders (training.map_data); or shards: .tar files, `*` allowed.
        config: fields of `ca2sis.model.Config` that shall differ from the published ones, such as "grid": [8, 8] for 128 pixels.
        backbone: a file of torchvision's vgg19 weights for the perceptual loss; without it there is none.
        weights: fields of `ca2sis.training.Weights`.
        noise_steps: of the noise network afterwards; 0 leaves it away, and styles cannot be sampled.
    """

    output: str
    classes: list
    images: str | None = None
    maps: str | None = None
    shards: Any = None
    name: str = "ca2sis"
    config: dict = field(default_factory=dict)
    backbone: str | None = None
    weights: dict = field(default_factory=dict)
    batch: int = 2
    steps: int = 100_000
    noise_steps: int = 0
    learning_rate: float = 1e-4
    warmup: int = 100
    final_rate: float = 0.02
    ema: float = 0.9999
    clip: float = 1000.0
    mixed_precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 1000

    def pairs(self) -> list[map_data.Pair]:
        """Raises ValueError if there is nothing to train on."""
        if self.shards:
            return map_data.pairs_of_shards(self.shards)
        if not (self.images and self.maps):
            raise ValueError(f"{NODE}: give images and maps (folders), or shards.")
        return map_data.pairs_of_folders(Path(self.images), Path(self.maps))

    def architecture(self) -> Config:
        """Raises ValueError for fields that are none."""
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in self.config.items()}
        count = len(self.classes)
        noise: dict[str, Any] = {} if self.noise_steps else {"noise_dim": 0}
        try:
            return Config(**{"classes": count, "mask_channels": count - 1, **noise, **given})
        except TypeError as error:
            raise ValueError(f"{NODE}: config: {error}.") from None

    @property
    def schedule(self) -> Schedule:
        return replace(super().schedule, weight_decay=0.0, betas=(0.0, 0.9))


def train(recipe: Recipe) -> Generator:
    """Train by a recipe; the averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    data, config, folder = recipe.pairs(), recipe.architecture(), Path(recipe.output)
    if config.image_size[0] != config.image_size[1]:
        raise ValueError(f"{NODE}: the grid {list(config.grid)} is not square; the trainer cuts squares.")
    weights = training.Weights(**recipe.weights)
    torch.manual_seed(recipe.seed)
    generator, discriminator = training.begin_(Generator(config)), training.Discriminator(config.classes)
    backbone = None if recipe.backbone is None else training.Vgg19(checkpoint.read(Path(recipe.backbone))[0])
    log.info("%d pictures, %d weights to train", len(data), sum(p.numel() for p in generator.parameters()))
    if generator.noise_encoder is not None:
        generator.noise_encoder.requires_grad_(False)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        image, mask = batch_of(data, recipe, config, rng, generator)
        if backbone is not None:
            backbone.to(image.device)
        return training.training_loss(generator, discriminator, image, mask, weights, backbone)

    parts = {"generator": generator, "discriminator": discriminator}
    rates = {"discriminator": training.DISCRIMINATOR_RATE}
    every = {recipe.sample_every: _sampler(recipe, config, generator, data)}
    fit(recipe.name, parts, loss, recipe.schedule, folder, every, rates)
    if generator.noise_encoder is not None:
        _train_noise(recipe, config, generator, data)
    _save(recipe, config, generator)
    return generator


def batch_of(
    data: Sequence[map_data.Pair], recipe: Recipe, config: Config, rng: torch.Generator, generator: Generator
) -> tuple[Tensor, Tensor]:
    """x [b, 3, h, w] in [-1, 1] and M [b, k, h, w] where the generator is. Raises ValueError for labels without a class."""
    chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
    images, labels = zip(*(map_data.example(data[place], config.image_size[0], rng) for place in chosen))
    try:
        mask = codes.one_hot(torch.stack(labels), config.classes)
    except ValueError as error:
        names = ", ".join(data[place].name for place in chosen)
        raise ValueError(f"{error} The classes are those of the recipe; the pictures: {names}.") from None
    device = generator.out_conv.weight.device
    return torch.stack(images).to(device), mask.to(device)


def _train_noise(recipe: Recipe, config: Config, generator: Generator, data: Sequence[map_data.Pair]) -> None:
    mapping: Any = generator.noise_encoder
    mapping.requires_grad_(True)

    def loss(_: int, rng: torch.Generator) -> Tensor:
        image, mask = batch_of(data, recipe, config, rng, generator)
        with torch.no_grad():
            wanted = generator.encode_style(image, mask).float()
        noise = torch.randn((64, config.noise_dim), generator=rng).to(image)
        return training.noise_loss(mapping(noise).float(), wanted, codes.present_classes(mask))

    schedule = Schedule(
        steps=recipe.noise_steps,
        learning_rate=1e-3,
        weight_decay=0.0,
        ema=0.99,
        mixed_precision=recipe.mixed_precision,
        seed=recipe.seed + 1,
    )
    fit(f"{recipe.name}_noise", {"noise": mapping}, loss, schedule, Path(recipe.output))


def _sampler(recipe: Recipe, config: Config, generator: Generator, data: Sequence[map_data.Pair]) -> Callable[[int], None]:
    """Writes the weights as they are now, and some pictures above what is drawn of them."""

    def write(step: int) -> None:
        _save(recipe, config, generator)
        image, mask = batch_of(data, recipe, config, generator_for(recipe.seed, 0), generator)
        with torch.no_grad():
            drawn = generator(image, mask)
        sheet = torch.cat([torch.cat(list(rows), dim=2) for rows in (image, drawn)], dim=1)
        pixels = sheet.float().add(1).mul(127.5).clamp(0, 255).round().byte().movedim(0, -1).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(Path(recipe.output) / f"{recipe.name}_{step:07d}.png")

    return write


def _save(recipe: Recipe, config: Config, generator: Generator) -> None:
    Path(recipe.output).mkdir(parents=True, exist_ok=True)
    checkpoint.save(Path(recipe.output) / f"{recipe.name}.safetensors", generator.state_dict(), config, recipe.classes)


def main(arguments: list[str]) -> int:
    """`dev.py train ca2sis --config FILE`. Returns the exit code."""
    return command("ca2sis", Recipe, train, arguments)
