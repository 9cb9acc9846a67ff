"""Trains Paint by Example on a user's images with boxes, from published weights or any other that Load Paint by Example lists.

`lab/train.py paint_by_example RECIPE`; RECIPE is a JSON file with the fields of `PaintByExampleRecipe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...py.host import folders
from ...py.host.paint_by_example import conditioning, loader
from ...py.imaging import crop, masks
from ...py.paint_by_example import checkpoint, shapes
from ...py.paint_by_example.exemplar import normalise
from ...py.paint_by_example.model import ExemplarMapper
from ...py.paint_by_example.training import exemplar_box, is_trained, is_usable, make_context, unet_input
from ..training.augmentation import Augmentation
from ..training.checkpoints import write_file
from ..training.diffusion import denoising_loss
from ..training.frozen_base import FrozenBase, is_main_process, training_device
from ..training.layout_data import LayoutEntry, load_layout, read_layouts
from ..training.loop import fit
from ..training.recipe import TrainingRecipe

log = logging.getLogger("exemplary")

TRAINER = "Paint by Example training"
LATENT_CELL = 8  # pixels
MAX_BOXES = 16  # of an image, the largest


@dataclass(frozen=True)
class PaintByExampleRecipe(TrainingRecipe):
    """What a user writes into the recipe file. The defaults are the published training's.

    Args:
        base: a file as Load Paint by Example lists it.
        data: a COCO-style .json or WebDataset .tar files; see `training.layout_data`. images: the folder of the JSON's file names.
        output: the folder for checkpoints and the model, <name>.safetensors. A run with a checkpoint there is resumed.
        everything: train the whole UNet as published, or only the first convolution and the transformers, which needs half of the memory.
        drop: the share of examples without an exemplar.
        timestep_density: "uniform", "logit_normal" or "mode". snr_gamma: Min-SNR weighting, for example 5; 0 turns it off.
    """

    base: str
    data: str | list
    output: str
    name: str = "paint_by_example"
    images: str | None = None
    everything: bool = True
    drop: float = 0.2
    resolution: int = 512
    batch: int = 4
    accumulation: int = 8
    steps: int = 100_000
    timestep_density: str = "uniform"
    snr_gamma: float = 0.0
    learning_rate: float = 1e-5
    warmup: int = 10_000
    final_rate: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.9999
    mixed_precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 1000


def load_example(entry: LayoutEntry, side: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor] | None:
    """Image [3, side, side], hole [1, side, side] and exemplar [3, size, size] of one entry; None without a box of a usable size."""
    example = load_layout(entry, side, MAX_BOXES)
    boxes = [box for box in example.boxes if is_usable(box)]
    if not boxes:
        return None
    box = boxes[int(torch.randint(len(boxes), (), generator=rng))]
    image = example.pixels.movedim(-1, 0)
    x0, y0, x1, y1 = exemplar_box(box, side, rng)
    exemplar = F.interpolate(image[None, :, y0:y1, x0:x1], size=(size, size), mode="bilinear", antialias=True)[0]
    a, b, c, d = (edge * side for edge in box)
    return image, shapes.draw_mask_shape((a, b, c, d), side, side, rng)[None], exemplar


def _load_batch(
    data: Sequence[LayoutEntry], recipe: PaintByExampleRecipe, size: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(50 * recipe.batch):
        entry = data[int(torch.randint(len(data), (), generator=rng))]
        example = load_example(entry, recipe.resolution, size, rng)
        found += [example] if example is not None else []
        if len(found) == recipe.batch:
            images, holes, exemplars = (torch.stack(parts) for parts in zip(*found))
            return images, holes, exemplars
    raise ValueError(f"{TRAINER}: hardly any image has a box of 2 to 80 % of its area. Check the boxes of the data.")


def loss_of(
    base: FrozenBase,
    encoder: conditioning.ExemplarEncoder,
    mapper: ExemplarMapper,
    recipe: PaintByExampleRecipe,
    data: Sequence[LayoutEntry],
) -> Callable[[int, torch.Generator], Tensor]:
    """The published loss: the error of the predicted noise over the whole latent, with the exemplar dropped at times."""
    augment = Augmentation()
    schedule = base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)
    grid = (recipe.resolution // LATENT_CELL, recipe.resolution // LATENT_CELL)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        images, holes, exemplars = _load_batch(data, recipe, encoder.size, rng)
        with torch.no_grad():
            seed = recipe.seed + number
            latent = base.latents(images.movedim(1, -1), seed)
            known = base.latents(crop.erase_hole(images, holes).movedim(1, -1), seed)
            hole = masks.mask_to_latent(holes, grid, "bilinear").to(base.device)
            pixels = normalise(augment(exemplars, rng), encoder.mean, encoder.std)
            pooled = encoder.vision(pixels.to(encoder.clip_vision.load_device))[2].float().to(base.device)
        context = make_context(mapper, pooled, recipe.drop, rng)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return base.to_noise(base.unet(unet_input(x, known, hole), t, context=context), x, t)

        return denoising_loss(predict, latent, schedule, rng)

    return loss


def train(recipe: PaintByExampleRecipe) -> list[float]:
    """Train by a recipe; the losses. The averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    device = training_device()
    data = read_layouts(recipe.data, recipe.images)
    folders.register()
    model, encoder, vae = loader.load(recipe.base)
    if vae is None:
        raise ValueError(f"{TRAINER}: {recipe.base!r} has no VAE. Give a whole checkpoint, or its diffusers folder.")
    base = FrozenBase(model, None, vae, device, TRAINER)
    unet = base.unfreeze(lambda name: recipe.everything or is_trained(name))
    encoder.clip_vision.model.to(encoder.clip_vision.load_device).requires_grad_(False)
    weights = {name: weight.float() for name, weight in encoder.mapper.model.state_dict().items()}
    mapper = ExemplarMapper(encoder.mapper.model.config)
    mapper.load_state_dict(weights)
    log.info("%d images", len(data))
    losses = fit(
        recipe.name,
        {"unet": unet, "mapper": mapper},
        loss_of(base, encoder, mapper, recipe, data),
        recipe.schedule,
        Path(recipe.output),
    )
    if is_main_process():
        contents = loader.read_contents(recipe.base)
        is_small = contents.metadata.get("base") == "playground"
        trained = {n: w for n, w in unet.state_dict().items() if not is_small or is_trained(n) or recipe.everything}
        done = checkpoint.Contents(trained, contents.tower, dict(mapper.state_dict()), contents.vae, contents.metadata)
        path = Path(recipe.output) / f"{recipe.name}.safetensors"
        write_file(path, lambda: checkpoint.save(path, done))
    return losses
