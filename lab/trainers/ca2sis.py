"""Trains CA2-SIS's generator on a user's images and label maps.

`lab/train.py ca2sis RECIPE`; RECIPE is a JSON file with the fields of `CA2SISRecipe`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...py.ca2sis import checkpoint, codes, training
from ...py.ca2sis.model import Config, Generator
from ..training.checkpoints import write_file
from ..training.images import save_image
from ..training.loop import Schedule, fit, generator_for
from ..training.paired_data import ImagePair, pairs_in_folders, pairs_in_shards
from ..training.recipe import TrainingRecipe

log = logging.getLogger("exemplary")

TRAINER = "CA2-SIS training"


@dataclass(frozen=True)
class CA2SISRecipe(TrainingRecipe):
    """What a user writes into the recipe file.

    Args:
        output: the folder for checkpoints, sample images and the weights, <name>.safetensors. A run with a checkpoint there is resumed.
        classes: the names of the classes in label order; the first covers the pixels of no other class.
        images, maps: folders (see `training.paired_data`); or shards: .tar files, `*` allowed.
        config: fields of `ca2sis.model.Config` that differ from the published ones, such as "grid": [8, 8] for 128 pixels.
        backbone: a file of torchvision's vgg19 weights for the perceptual loss; without it the loss is left out.
        weights: fields of `ca2sis.training.Weights`.
        noise_steps: steps of the noise network afterwards; with 0 there is none, and styles cannot be sampled.
    """

    output: str
    classes: list
    images: str | None = None
    maps: str | None = None
    shards: str | list | None = None
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

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or not all(isinstance(name, str) and name.strip() for name in self.classes):
            raise ValueError(f"classes is {self.classes!r}; it must list the names of at least two classes.")

    def pairs(self) -> list[ImagePair]:
        """Raises ValueError if there is nothing to train on."""
        if self.shards:
            return pairs_in_shards(self.shards)
        if not (self.images and self.maps):
            raise ValueError(f"{TRAINER}: give images and maps (folders), or shards.")
        return pairs_in_folders(Path(self.images), Path(self.maps))

    def architecture(self) -> Config:
        """Raises ValueError for unknown fields and for values that no generator can be made with."""
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in self.config.items()}
        count = len(self.classes)
        noise: dict[str, Any] = {} if self.noise_steps else {"noise_dim": 0}
        try:
            config = Config(**{"classes": count, "mask_channels": count - 1, **noise, **given})
            with torch.device("meta"):
                Generator(config)
            width, height = config.image_size
        except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as error:
            raise ValueError(f"{TRAINER}: config {self.config!r} gives no generator: {error}.") from None
        if width != height:
            raise ValueError(f"{TRAINER}: config: the grid {list(config.grid)} is not square; the trainer crops squares.")
        if config.classes != count:
            raise ValueError(f"{TRAINER}: config: classes is {config.classes}, but the recipe names {count} classes.")
        return config

    def loss_weights(self) -> training.Weights:
        """Raises ValueError for unknown fields and values below 0."""
        known = [each.name for each in fields(training.Weights)]
        for key, value in self.weights.items():
            if key not in known or isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{TRAINER}: weights: {key} is {value!r}; give numbers from 0 on for {', '.join(known)}.")
        return training.Weights(**self.weights)

    def load_backbone(self) -> training.Vgg19 | None:
        """Raises ValueError if the file is missing or not a VGG19."""
        if self.backbone is None:
            return None
        if not Path(self.backbone).is_file():
            raise ValueError(f"{TRAINER}: backbone is {self.backbone!r}, which is not a file. Give torchvision's vgg19 weights.")
        return training.Vgg19(checkpoint.read(Path(self.backbone))[0])

    @property
    def schedule(self) -> Schedule:
        return replace(super().schedule, weight_decay=0.0, betas=(0.0, 0.9))


def train(recipe: CA2SISRecipe) -> Generator:
    """Train by a recipe; the averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    data, config, weights, backbone = recipe.pairs(), recipe.architecture(), recipe.loss_weights(), recipe.load_backbone()
    torch.manual_seed(recipe.seed)
    generator, discriminator = training.begin_(Generator(config)), training.Discriminator(config.classes)
    log.info("%d images, %d weights to train", len(data), sum(p.numel() for p in generator.parameters()))
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
    fit(recipe.name, parts, loss, recipe.schedule, Path(recipe.output), every, rates)
    if generator.noise_encoder is not None:
        _train_noise(recipe, config, generator, data)
    _save(recipe, config, generator)
    return generator


def batch_of(
    data: Sequence[ImagePair], recipe: CA2SISRecipe, config: Config, rng: torch.Generator, generator: Generator
) -> tuple[Tensor, Tensor]:
    """x [b, 3, h, w] in [-1, 1] and M [b, k, h, w] on the generator's device. Raises ValueError for labels without a class."""
    chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
    images, labels = zip(*(data[row].load_labels(config.image_size[0], rng) for row in chosen))
    try:
        mask = codes.one_hot(torch.stack(labels), config.classes)
    except ValueError as error:
        names = ", ".join(data[row].name for row in chosen)
        raise ValueError(f"{error} The classes are those of the recipe; the images: {names}.") from None
    device = generator.out_conv.weight.device
    return torch.stack(images).to(device), mask.to(device)


def _train_noise(recipe: CA2SISRecipe, config: Config, generator: Generator, data: Sequence[ImagePair]) -> None:
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


def _sampler(recipe: CA2SISRecipe, config: Config, generator: Generator, data: Sequence[ImagePair]) -> Callable[[int], None]:
    """Writes the current weights, and some images above their reconstructions."""

    def write(step: int) -> None:
        _save(recipe, config, generator)
        image, mask = batch_of(data, recipe, config, generator_for(recipe.seed, 0), generator)
        with torch.no_grad():
            drawn = generator(image, mask)
        sheet = torch.cat([torch.cat(list(rows), dim=2) for rows in (image, drawn)], dim=1)
        save_image((sheet.float() + 1) / 2, Path(recipe.output) / f"{recipe.name}_{step:07d}.png")

    return write


def _save(recipe: CA2SISRecipe, config: Config, generator: Generator) -> None:
    path = Path(recipe.output) / f"{recipe.name}.safetensors"
    write_file(path, lambda: checkpoint.save(path, generator.state_dict(), config, recipe.classes))
