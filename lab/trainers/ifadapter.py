"""Trains an IFAdapter: the host's frozen UNet with an adapter in training inside its text attention.

`lab/train.py ifadapter RECIPE`: any checkpoint that ComfyUI loads with an SDXL or Stable Diffusion 1.x/2.x UNet, or the playground's models.
RECIPE is a JSON file with the fields of `IFAdapterRecipe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...py.host import grids, hooks, networks, playground, slots
from ...py.host.ifadapter import apply as ifadapter
from ...py.host.ifadapter import text as ifadapter_text
from ...py.host.ifadapter import trained
from ...py.ifadapter import checkpoint
from ...py.ifadapter.instances import Instance, Instances
from ...py.ifadapter.model import SDXL, Config, IFAdapter, Layer
from ...py.ifadapter.training import Batch, Prepared, draw_drops
from ..training.checkpoints import write_file
from ..training.diffusion import denoising_loss
from ..training.frozen_base import FrozenBase, is_main_process, training_device
from ..training.layout_data import LayoutEntry, LayoutExample, load_layout, read_layouts
from ..training.loop import fit
from ..training.recipe import TrainingRecipe
from ..training.sampling import encode_prompt, write_samples

log = logging.getLogger("exemplary")

TRAINER = "IFAdapter training"
SIZES: dict[str, Any] = {"dim": 1280, "heads": 10}  # of the resampler where the base is smaller than SDXL


def layers_of(unet: Any, keys: Sequence[hooks.LayerKey]) -> tuple[Layer, ...]:
    """The text attention layers of a UNet at these keys, as `Config` takes them."""
    blocks = hooks.attention_blocks(unet)
    found = []
    for key in keys:
        attention = blocks[key].attn2
        found.append(Layer("_".join(map(str, key)), key, attention.heads * attention.dim_head, attention.heads))
    return tuple(found)


def predict_with(unet: Any, config: Config, x: Tensor, t: Tensor, context: Tensor, prepared: Prepared, **more: Any) -> Tensor:
    """The frozen UNet's prediction with the adapter's additions, with gradients for the adapter."""

    def hook_of(key: str) -> Callable:
        def hook(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            h, w = grids.layer_grid(options, q.shape[1]) or (1, q.shape[1])
            base = slots.plain_attention(q, k, v, options)
            return base + prepared.change(key, q, h, w).to(base)

        return hook

    table = {layer.place: hook_of(layer.key) for layer in config.layers}
    return unet(x, t, context=context, transformer_options={"patches_replace": {"attn2": table}}, **more)


@dataclass(frozen=True)
class IFAdapterRecipe(TrainingRecipe):
    """What a user writes into the recipe file.

    Args:
        base: a checkpoint's path, or "playground".
        data: a COCO-style .json or WebDataset .tar files; see `training.layout_data`. images: the folder of the JSON's file names.
        output: the folder for checkpoints, sample images and the adapter, <name>.safetensors. A run with a checkpoint there is resumed.
        resolution: side of the square images that are trained on.
        batch: images per batch; a step takes batch * accumulation * processes of them.
        adapter: fields of `ifadapter.model.Config` that differ from the base's default. `layers` is a list of layer keys such as
            ["output", 3, 0].
        start_from: an adapter file to continue from, such as the published one.
        samples: layouts of {"caption", "instances": [{"box", "phrase"}]} to draw every `sample_every` steps; by default two of the data.
        timestep_density: "uniform", "logit_normal" or "mode". snr_gamma: Min-SNR weighting, for example 5; 0 turns it off.
    """

    base: str
    data: str | list
    output: str
    name: str = "ifadapter"
    images: str | None = None
    resolution: int = 1024
    batch: int = 4
    accumulation: int = 40
    steps: int = 100_000
    timestep_density: str = "uniform"
    snr_gamma: float = 0.0
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
    """The adapter's configuration for a base: the published one for SDXL; else every text attention of the middle and output blocks.

    Raises:
        ValueError: `changes` has unknown fields, or values that no adapter can be made with.
    """
    blocks = hooks.attention_blocks(base.unet)
    keys = [key for key in blocks if key[0] != "input"]
    config = Config(layers=layers_of(base.unet, keys), encoders=base.encoders(), **SIZES)
    if _fits(base, SDXL) and base.encoders() == SDXL.encoders:
        config = SDXL
    elif _fits(base, playground_config(base.unet)) and base.encoders() == playground_config(base.unet).encoders:
        config = playground_config(base.unet)
    changes = dict(changes)
    if "layers" in changes:
        changes["layers"] = layers_of(base.unet, _layer_keys(changes["layers"], list(blocks)))
    for name in ("encoders", "text_layers"):
        if isinstance(changes.get(name), list):
            changes[name] = tuple(tuple(each) if isinstance(each, list) else each for each in changes[name])
    try:
        found = replace(config, **changes)
        with torch.device("meta"):
            IFAdapter(found)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(f"{TRAINER}: adapter {changes!r} gives no adapter: {error}.") from None
    return found


def _layer_keys(wanted: Any, known: list[hooks.LayerKey]) -> list[hooks.LayerKey]:
    shown = [list(key) for key in known]
    if not isinstance(wanted, list) or not wanted:
        raise ValueError(f"{TRAINER}: adapter: layers is {wanted!r}; it must be a list of layer keys, some of {shown}.")
    keys = [tuple(each) if isinstance(each, list) else (each,) for each in wanted]
    missing = [list(key) for key in keys if key not in known]
    if missing:
        raise ValueError(f"{TRAINER}: adapter: the base has no text attention at {missing[0]}. It has {shown}.")
    return keys


def _fits(base: FrozenBase, config: Config) -> bool:
    blocks = hooks.attention_blocks(base.unet)
    here = {key: block.attn2.heads * block.attn2.dim_head for key, block in blocks.items() if block.attn2 is not None}
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


def batch_of(examples: Sequence[LayoutExample], clip: Any, config: Config) -> Batch:
    """Examples as the adapter's batch, padded to the largest number of instances; phrases encoded by the host's CLIP."""
    phrases = [phrase for each in examples for phrase in each.phrases]
    found = ifadapter_text.encode_for_adapter(clip, phrases or [""], config, TRAINER)
    slots_used = max(1, *(len(each.phrases) for each in examples))
    rows, number = torch.zeros(len(examples), slots_used, dtype=torch.long), 0
    boxes = torch.zeros(len(examples), slots_used, 4)
    present = torch.zeros(len(examples), slots_used, dtype=torch.bool)
    for row, each in enumerate(examples):
        for column, box in enumerate(each.boxes):
            rows[row, column], boxes[row, column], present[row, column] = number, torch.tensor(box), True
            number += 1
    return Batch(found.hidden[rows], found.eot[rows], found.counts[rows], boxes, present)


def loss_of(
    base: FrozenBase, network: IFAdapter, recipe: IFAdapterRecipe, data: Sequence[LayoutEntry]
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number, for the loop."""
    config, schedule = network.config, base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
        examples = [load_layout(data[row], recipe.resolution, config.slots) for row in chosen]
        without_phrases, without_caption = draw_drops(len(examples), rng)
        latents = base.latents(torch.stack([each.pixels for each in examples]), seed=recipe.seed + number)
        text, more = base.conditions([each.caption for each in examples], without_caption, recipe.resolution)
        batch = batch_of(examples, base.clip, config).drop_phrases(without_phrases).to(base.device)
        prepared = Prepared(network, batch)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return base.to_noise(predict_with(base.unet, config, x, t, text, prepared, **more), x, t)

        return denoising_loss(predict, latents, schedule, rng)

    return loss


def _sampler(base: FrozenBase, network: IFAdapter, recipe: IFAdapterRecipe, data: Sequence[LayoutEntry]) -> Callable[[int], None]:
    """Writes the current adapter, and an image of each sample layout. Raises ValueError for samples of another form."""
    layouts = [_sample_layout(each) for each in recipe.samples]
    for entry in data[: 0 if layouts else 2]:
        shown = load_layout(entry, recipe.resolution, network.config.slots)
        layouts.append((shown.caption, Instances(tuple(map(Instance, shown.boxes, shown.phrases)))))
    file = Path(recipe.output) / f"{recipe.name}.safetensors"

    def drawn(adapter: trained.LoadedAdapter) -> Iterator[tuple[Any, list]]:
        for caption, instances in layouts:
            yield ifadapter.apply(base.model, base.clip, instances, adapter=adapter), encode_prompt(base.clip, caption)

    def write(step: int) -> None:
        _save(file, network)
        state = {key: value.detach().clone() for key, value in network.state_dict().items()}
        adapter = trained.LoadedAdapter(networks.load(IFAdapter, state, network.config), network.config, recipe.name)
        how: dict[str, Any] = {"steps": recipe.sample_steps, "cfg": recipe.sample_cfg, "side": recipe.resolution}
        write_samples(file, step, drawn(adapter), base.clip, base.vae, **how)
        base.move_to_device()

    return write


def _sample_layout(sample: Any) -> tuple[str, Instances]:
    try:
        caption, instances = sample["caption"], [(i["box"], i["phrase"]) for i in sample["instances"]]
        if not isinstance(caption, str) or not all(len(box) == 4 and isinstance(phrase, str) for box, phrase in instances):
            raise TypeError
        return caption, Instances(tuple(Instance(tuple(map(float, box)), phrase) for box, phrase in instances))
    except (KeyError, TypeError, ValueError):
        form = '{"caption": text, "instances": [{"box": [x0, y0, x1, y1], "phrase": text}]}'
        raise ValueError(f"{TRAINER}: samples has {sample!r}; it must have the form {form}.") from None


def _save(path: Path, network: IFAdapter) -> None:
    state = {key: value.half() for key, value in network.state_dict().items()}
    write_file(path, lambda: checkpoint.save(path, network.config, state))


def train(recipe: IFAdapterRecipe) -> list[float]:
    """Train by a recipe; the losses. The averaged weights are in <output>/<name>.safetensors afterwards. Raises ValueError."""
    device = training_device()
    data = read_layouts(recipe.data, recipe.images)
    base = FrozenBase.load(recipe.base, device, torch.bfloat16 if device.type == "cuda" else torch.float32, TRAINER)
    torch.manual_seed(recipe.seed)
    if recipe.start_from:
        config, weights = checkpoint.read(recipe.start_from)
        trained.check_base(base.model, trained.LoadedAdapter(None, config, Path(recipe.start_from).name))
        network = IFAdapter(config)
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    else:
        network = IFAdapter(config_for(base, recipe.adapter))
    ifadapter_text.encode_for_adapter(
        base.clip, ["a"], network.config, TRAINER
    )  # refuses text encoders that do not fit before the first step
    log.info("%d images, %d weights to train", len(data), sum(weight.numel() for weight in network.parameters()))
    every = {recipe.sample_every: _sampler(base, network, recipe, data)} if is_main_process() else {}
    losses = fit(
        recipe.name, {"adapter": network}, loss_of(base, network, recipe, data), recipe.schedule, Path(recipe.output), every
    )
    if is_main_process():
        _save(Path(recipe.output) / f"{recipe.name}.safetensors", network)
    return losses
