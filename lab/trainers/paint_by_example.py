"""Training Paint by Example: the playground's, by its recipe, and any, from published or own weights, by `dev.py train paint_by_example`.

The file of that command is JSON with the fields of `Recipe`; the data are pictures with boxes (`training.layout_data`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...py.host import folders, playground
from ...py.host.paint_by_example import loader as paint_by_example
from ...py.imaging import crop as stitching
from ...py.paint_by_example import checkpoint, shapes
from ...py.paint_by_example.exemplar import normalised
from ...py.paint_by_example.model import Config, ExemplarMapper
from ...py.paint_by_example.training import context_of, exemplar_box, unet_input, usable
from ..playground.recipes import image_encoder
from ..playground.recipes import paint_by_example as recipe
from ..training import layout_data
from ..training.augmentation import Augmentation
from ..training.diffusion import diffusion_loss
from ..training.layout_data import Entry
from ..training.loop import fit
from ..training.recipe import FromFile, command

log = logging.getLogger("exemplary")

NODE = "Paint by Example training"
BLOCKS = 2
FILE = playground.ASSETS / "paint_by_example" / "playground_paint_by_example.safetensors"
CELL = 8
MOST = 16  # boxes of a picture, the largest


def widened(weight: Tensor, channels: int) -> Tensor:
    """The first convolution's weight for more channels; the new ones are zero, so nothing changes before the first step."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])], dim=1)


def playground_networks(encode: Callable[[Tensor], Tensor]) -> recipe.Networks:
    """The playground's models ready to become a Paint by Example; `encode` is its VAE."""
    unet = playground.new_unet(checkpoint.CHANNELS)
    state = {name: weight.float() for name, weight in playground.read_weights("unet").items()}
    first = "input_blocks.0.0.weight"
    unet.load_state_dict(state | {first: widened(state[first], checkpoint.CHANNELS)})
    train_only(unet)
    tower = playground.new_image_encoder(image_encoder.CONFIG)
    tower.load_state_dict({name: weight.float() for name, weight in playground.read_weights("image_encoder").items()})
    mapper = ExemplarMapper(Config(image_encoder.CONFIG["hidden_size"], playground.CONTEXT_DIM, BLOCKS))
    vision: Any = tower.eval().requires_grad_(False).vision_model
    return recipe.Networks(unet, mapper, encode, lambda pixels: vision(pixels)[2])


def train_only(unet: nn.Module, everything: bool = False) -> None:
    """Let the first convolution and the transformers learn, or everything."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(everything or recipe.trained(name))


def ship(nets: recipe.Networks, path: Path = FILE) -> Path:
    """Write what was trained on the playground, in float16, as the loader reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unet = {name: weight for name, weight in nets.unet.state_dict().items() if recipe.trained(name)}
    facts = {"base": "playground", "steps": str(recipe.SCHEDULE.steps)}
    checkpoint.save(path, checkpoint.Contents(unet=unet, mapper=dict(nets.mapper.state_dict()), metadata=facts))
    path.chmod(0o644)  # the library writes for the owner alone; these files ship
    return path


@dataclass(frozen=True)
class Recipe(FromFile):
    """What a user writes into the configuration file. The defaults are the published training's.

    Args:
        base: a file as Load Paint by Example lists it.
        data: a COCO-style .json or WebDataset .tar files; see `training.layout_data`. images: the folder of the JSON's file names.
        output: the folder for checkpoints and the model, <name>.safetensors. A run that is there is resumed.
        everything: train the whole UNet as published, or only the first convolution and the transformers, which needs half of the memory.
        drop: how often the condition is no exemplar.
    """

    base: str
    data: Any
    output: str
    name: str = "paint_by_example"
    images: str | None = None
    everything: bool = True
    drop: float = 0.2
    resolution: int = 512
    batch: int = 4
    accumulation: int = 8
    steps: int = 100_000
    learning_rate: float = 1e-5
    warmup: int = 10_000
    final_rate: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.9999
    mixed_precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 1000


def triple(entry: Entry, side: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor] | None:
    """Picture [3, side, side], hole [1, side, side] and exemplar [3, size, size] of one entry; None without a box of a usable size."""
    example = layout_data.example(entry, side, MOST)
    boxes = [box for box in example.boxes if usable(box)]
    if not boxes:
        return None
    box = boxes[int(torch.randint(len(boxes), (), generator=rng))]
    picture = example.pixels.movedim(-1, 0)
    x0, y0, x1, y1 = exemplar_box(box, side, rng)
    exemplar = F.interpolate(picture[None, :, y0:y1, x0:x1], size=(size, size), mode="bilinear", antialias=True)[0]
    a, b, c, d = (edge * side for edge in box)
    return picture, shapes.mask_shape((a, b, c, d), side, side, rng)[None], exemplar


def loss_of(
    model: Any,
    encoder: paint_by_example.ExemplarEncoder,
    mapper: ExemplarMapper,
    vae: Any,
    chosen: Recipe,
    data: Sequence[Entry],
    device: Any,
) -> Callable[[int, torch.Generator], Tensor]:
    """The published loss: the error of the predicted noise over the whole latent, the condition dropped at times."""
    unet, augment = model.model.diffusion_model, Augmentation()
    alphas = (1 / (1 + model.get_model_object("model_sampling").sigmas.double() ** 2)).float()
    grid = (chosen.resolution // CELL, chosen.resolution // CELL)

    def latents(pictures: Tensor) -> Tensor:
        return model.model.process_latent_in(vae.encode(pictures.movedim(1, -1))).float().to(device)

    def loss(_: int, rng: torch.Generator) -> Tensor:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for _try in range(50 * chosen.batch):
            entry = data[int(torch.randint(len(data), (), generator=rng))]
            one = triple(entry, chosen.resolution, encoder.size, rng)
            found += [one] if one is not None else []
            if len(found) == chosen.batch:
                break
        else:
            raise ValueError(
                f"{NODE}: of the pictures hardly any has a box of 2 to 80 % of its area. Look at the boxes of the data."
            )
        pictures, holes, exemplars = (torch.stack(parts) for parts in zip(*found))
        with torch.no_grad():
            latent, known = latents(pictures), latents(stitching.masked(pictures, holes))
            hole = stitching.cells(holes, grid, "bilinear").to(device)
            pixels = normalised(augment(exemplars, rng), encoder.mean, encoder.std)
            pooled = encoder.vision(pixels.to(encoder.tower.load_device))[2].float().to(device)
        context = context_of(mapper, pooled, chosen.drop, rng)
        return diffusion_loss(lambda x, t: unet(unet_input(x, known, hole), t, context=context), latent, alphas.to(device), rng)

    return loss


def train(chosen: Recipe) -> list[float]:
    """Train by a recipe; the losses. The averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    from accelerate import PartialState  # first, since it chooses this process's device before the host does

    state = PartialState(cpu=not torch.cuda.is_available())
    data = layout_data.entries(chosen.data, chosen.images)
    folders.register()
    model, encoder, vae = paint_by_example.load(chosen.base)
    if vae is None:
        raise ValueError(f"{NODE}: {chosen.base!r} has no VAE. Give a whole checkpoint, or its diffusers folder.")
    unet = model.model.diffusion_model.float().to(state.device)
    unet.dtype = torch.float32
    train_only(unet, chosen.everything)
    encoder.tower.model.to(encoder.tower.load_device).requires_grad_(False)
    weights = {name: weight.float() for name, weight in encoder.mapper.model.state_dict().items()}
    mapper = ExemplarMapper(encoder.mapper.model.config)
    mapper.load_state_dict(weights)
    losses = fit(
        chosen.name,
        {"unet": unet, "mapper": mapper},
        loss_of(model, encoder, mapper, vae, chosen, data, state.device),
        chosen.schedule,
        Path(chosen.output),
    )
    if state.is_main_process:
        contents = checkpoint.read(folders.path(paint_by_example.FOLDER, chosen.base, NODE, paint_by_example.LINK))
        small = contents.metadata.get("base") == "playground"
        trained = {n: w for n, w in unet.state_dict().items() if not small or recipe.trained(n) or chosen.everything}
        done = checkpoint.Contents(trained, contents.tower, dict(mapper.state_dict()), contents.vae, contents.metadata)
        checkpoint.save(Path(chosen.output) / f"{chosen.name}.safetensors", done)
    return losses


def main(arguments: list[str]) -> int:
    """`dev.py train paint_by_example --config FILE`. Returns the exit code."""
    return command("paint_by_example", Recipe, train, arguments)
