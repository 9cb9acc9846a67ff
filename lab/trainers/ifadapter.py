"""IFAdapter's trainer in the host's terms: the host's frozen UNet with an adapter in training inside its text attention.

`dev.py train ifadapter --config FILE` runs `main`: any checkpoint that ComfyUI loads with an SDXL or Stable Diffusion 1.x/2.x UNet, or
the playground's models. The file is JSON with the fields of `Recipe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...py.host import grids, hooks, networks, playground, slots
from ...py.host.ifadapter import apply as ifadapter
from ...py.host.ifadapter import text as ifadapter_text
from ...py.host.ifadapter import trained
from ...py.ifadapter import checkpoint
from ...py.ifadapter.instances import Instance, Instances
from ...py.ifadapter.model import SDXL, Config, IFAdapter, Layer
from ...py.ifadapter.training import Batch, Prepared, draw_drops
from ..evaluate import sampling
from ..training import layout_data
from ..training.diffusion import diffusion_loss
from ..training.frozen_base import FrozenBase
from ..training.layout_data import Entry, Example
from ..training.loop import fit
from ..training.recipe import FromFile, command

log = logging.getLogger("exemplary")

NODE = "IFAdapter training"
SIZES: dict[str, Any] = {"dim": 1280, "heads": 10}  # of the resampler where the base is smaller than SDXL


def layers_of(unet: Any, places: Sequence[hooks.LayerKey]) -> tuple[Layer, ...]:
    """The description of these text attentions of a UNet, as `Config` takes it."""
    blocks = hooks.attention_blocks(unet)
    found = []
    for place in places:
        attention = blocks[place].attn2
        found.append(Layer("_".join(map(str, place)), place, attention.heads * attention.dim_head, attention.heads))
    return tuple(found)


def predicted(unet: Any, config: Config, x: Tensor, t: Tensor, context: Tensor, prepared: Prepared, **more: Any) -> Tensor:
    """The frozen UNet's prediction with what the adapter adds, with gradients for the adapter."""

    def hook_of(key: str) -> Callable:
        def hook(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            h, w = grids.layer_grid(options, q.shape[1]) or (1, q.shape[1])
            base = slots.plain_attention(q, k, v, options)
            return base + prepared.change(key, q, h, w).to(base)

        return hook

    table = {layer.place: hook_of(layer.key) for layer in config.layers}
    return unet(x, t, context=context, transformer_options={"patches_replace": {"attn2": table}}, **more)


@dataclass(frozen=True)
class Recipe(FromFile):
    """What a user writes into the configuration file.

    Args:
        base: a checkpoint's path, or "playground".
        data: a COCO-style .json or WebDataset .tar files; see `training.layout_data`. images: the folder of the JSON's file names.
        output: the folder for checkpoints, sample pictures and the adapter, <name>.safetensors. A run that is there is resumed.
        resolution: side of the square pictures that are trained on.
        batch: pictures a batch; a step takes batch * accumulation * processes of them.
        adapter: fields of `ifadapter.model.Config` that shall differ from the base's default. `layers` is a list of places such as
            ["output", 3, 0].
        start_from: an adapter file to go on from, such as the published one.
        samples: layouts of {"caption", "instances": [{"box", "phrase"}]} to draw every `sample_every` steps; by default two of the data.
    """

    base: str
    data: Any
    output: str
    name: str = "ifadapter"
    images: str | None = None
    resolution: int = 1024
    batch: int = 4
    accumulation: int = 40
    steps: int = 100_000
    learning_rate: float = 1e-4
    warmup: int = 500
    final_rate: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.9999
    mixed_precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 1000
    sample_steps: int = 30
    sample_cfg: float = 7.5
    adapter: dict = field(default_factory=dict)
    start_from: str | None = None
    samples: list = field(default_factory=list)


def config_for(base: FrozenBase, changes: dict) -> Config:
    """The adapter's description for a base: the published one for SDXL; else every text attention of the middle and the way up."""
    blocks = hooks.attention_blocks(base.unet)
    places = [place for place in blocks if place[0] != "input"]
    config = Config(layers=layers_of(base.unet, places), encoders=base.encoders(), **SIZES)
    if _fits(base, SDXL) and base.encoders() == SDXL.encoders:
        config = SDXL
    elif _fits(base, playground_config(base.unet)) and base.encoders() == playground_config(base.unet).encoders:
        config = playground_config(base.unet)
    changes = dict(changes)
    if "layers" in changes:
        wanted = [tuple(place) for place in changes.pop("layers")]
        gone = [place for place in wanted if place not in blocks]
        if gone:
            raise ValueError(f"{NODE}: the base has no text attention at {list(gone[0])}. It has {[list(p) for p in blocks]}.")
        changes["layers"] = layers_of(base.unet, wanted)
    for name in ("encoders", "text_layers"):
        if name in changes:
            changes[name] = tuple(tuple(each) if isinstance(each, list) else each for each in changes[name])
    try:
        return replace(config, **changes)
    except TypeError as error:
        raise ValueError(f"{NODE}: adapter: {error}.") from None


def _fits(base: FrozenBase, config: Config) -> bool:
    blocks = hooks.attention_blocks(base.unet)
    here = {place: block.attn2.heads * block.attn2.dim_head for place, block in blocks.items() if block.attn2 is not None}
    return all(here.get(layer.place) == layer.channels for layer in config.layers)


def playground_config(unet: Any) -> Config:
    """A small adapter for every text attention of the playground's UNet."""
    return Config(
        layers=layers_of(unet, list(hooks.attention_blocks(unet))),
        encoders=(("l", playground.CONTEXT_DIM),),
        text_layers=(-1, -2, -3),
        eot_layer=-1,
        queries=2,
        dim=192,
        depth=2,
        heads=4,
        dim_head=48,
        ff_mult=2,
        position_width=256,
        frequencies=32,
        reduction=8,
    )


def batch_of(examples: Sequence[Example], clip: Any, config: Config) -> Batch:
    """Examples as the adapter's batch, padded to the largest number of instances; phrases encoded by the host's CLIP."""
    phrases = [phrase for each in examples for phrase in each.phrases]
    found = ifadapter_text.encode(clip, phrases or [""], config, NODE)
    slots_used = max(1, *(len(each.phrases) for each in examples))
    rows, number = torch.zeros(len(examples), slots_used, dtype=torch.long), 0
    boxes = torch.zeros(len(examples), slots_used, 4)
    present = torch.zeros(len(examples), slots_used, dtype=torch.bool)
    for row, each in enumerate(examples):
        for place, box in enumerate(each.boxes):
            rows[row, place], boxes[row, place], present[row, place] = number, torch.tensor(box), True
            number += 1
    return Batch(found.hidden[rows], found.eot[rows], found.counts[rows], boxes, present)


def loss_of(
    base: FrozenBase, network: IFAdapter, recipe: Recipe, data: Sequence[Entry]
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number, for the loop."""
    config = network.config

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
        examples = [layout_data.example(data[place], recipe.resolution, config.slots) for place in chosen]
        without_phrases, without_caption = draw_drops(len(examples), rng)
        latents = base.latents(torch.stack([each.pixels for each in examples]), seed=recipe.seed + number)
        text, more = base.conditions([each.caption for each in examples], without_caption, recipe.resolution)
        batch = batch_of(examples, base.clip, config).drop_phrases(without_phrases).to(base.device)
        prepared = Prepared(network, batch)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return base.as_noise(predicted(base.unet, config, x, t, text, prepared, **more), x, t)

        return diffusion_loss(predict, latents, base.alphas, rng)

    return loss


def _sampler(base: FrozenBase, network: IFAdapter, recipe: Recipe, data: Sequence[Entry]) -> Callable[[int], None]:
    """Writes the adapter as it is now, and a picture of each sample layout."""
    layouts = [
        (each["caption"], Instances(tuple(Instance(i["box"], i["phrase"]) for i in each["instances"]))) for each in recipe.samples
    ]
    for entry in data[: 0 if layouts else 2]:
        shown = layout_data.example(entry, recipe.resolution, network.config.slots)
        layouts.append((shown.caption, Instances(tuple(map(Instance, shown.boxes, shown.phrases)))))

    def write(step: int) -> None:
        folder = Path(recipe.output)
        _save(folder / f"{recipe.name}.safetensors", network)
        state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        adapter = trained.Adapter(networks.load(IFAdapter, state, network.config), network.config, recipe.name)
        for place, (caption, instances) in enumerate(layouts, start=1):
            with torch.no_grad():
                model = ifadapter.apply(base.model, base.clip, instances, adapter=adapter)
                image = sampling.picture(
                    model,
                    base.vae,
                    sampling.prompt(base.clip, caption),
                    sampling.prompt(base.clip, ""),
                    seed=place,
                    steps=recipe.sample_steps,
                    cfg=recipe.sample_cfg,
                    side=recipe.resolution,
                )
            pixels = image[0].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
            Image.fromarray(pixels).save(folder / f"{recipe.name}_{step:07d}_{place}.png")
        base.place()

    return write


def _save(path: Path, network: IFAdapter) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, network.config, {key: value.half() for key, value in network.state_dict().items()})


def train(recipe: Recipe) -> list[float]:
    """Train by a recipe; the losses. The averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    from accelerate import PartialState  # first, since it chooses this process's device before the host does

    state = PartialState(cpu=not torch.cuda.is_available())
    data = layout_data.entries(recipe.data, recipe.images)
    dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
    base = FrozenBase.load(recipe.base, state.device, dtype, NODE)
    torch.manual_seed(recipe.seed)
    if recipe.start_from:
        config, weights = checkpoint.read(recipe.start_from)
        trained.check_base(base.model, trained.Adapter(None, config, Path(recipe.start_from).name))
        network = IFAdapter(config)
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    else:
        network = IFAdapter(config_for(base, recipe.adapter))
    ifadapter_text.encode(base.clip, ["a"], network.config, NODE)  # refuses text encoders that do not fit before the first step
    log.info("%d pictures, %d weights to train", len(data), sum(weight.numel() for weight in network.parameters()))
    every = {recipe.sample_every: _sampler(base, network, recipe, data)} if state.is_main_process else {}
    losses = fit(
        recipe.name, {"adapter": network}, loss_of(base, network, recipe, data), recipe.schedule, Path(recipe.output), every
    )
    if state.is_main_process:
        _save(Path(recipe.output) / f"{recipe.name}.safetensors", network)
    return losses


def main(arguments: list[str]) -> int:
    """`dev.py train ifadapter --config FILE`. Returns the exit code."""
    return command("ifadapter", Recipe, train, arguments)
