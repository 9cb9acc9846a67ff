"""Trains Face-diffuser's models on a user's images: a subject model, or the scene model that goes with it.

`lab/train.py snf RECIPE`; RECIPE is a JSON file with the fields of `SNFRecipe`, the data are `training.persons_data`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_detection
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...py.host import folders, networks, playground
from ...py.host.snf import subjects
from ...py.snf import checkpoint
from ...py.snf.model import MARKER, Postfuse
from ...py.snf.training import (
    LOCALISATION,
    TRAINED_LAYERS,
    Drops,
    fuse_batch,
    is_trained,
    is_trained_in_encoder,
    loss_region,
    subject_loss,
)
from ..training.augmentation import Augmentation
from ..training.checkpoints import save_weights
from ..training.diffusion import denoising_loss
from ..training.frozen_base import PLAYGROUND, FrozenBase, is_main_process, training_device
from ..training.loop import Schedule, fit
from ..training.persons_data import PersonsEntry, load_persons, read_persons
from ..training.recipe import TrainingRecipe
from ..training.sampling import encode_prompt, write_samples
from ..training.text_attention import predict_and_record

log = logging.getLogger("exemplary")

TRAINER = "SNF training"
SUBJECT, SCENE = "subject", "scene"
#: What the published training does to the reference images.
AUGMENTATION = Augmentation(rotate=0.75, degrees=30.0, blur=0.5, warp=0.5, zoom=0.5, colour=0.5, grey=0.1)
SAMPLED = 2  # captions of the data that are drawn as samples


@dataclass(frozen=True)
class SNFRecipe(TrainingRecipe):
    """What a user writes into the recipe file. The defaults are the published training's.

    Args:
        part: "subject" (the UNet, the network that fuses persons into prompts, the image encoder's last layers) or "scene" (the UNet).
        base: a checkpoint's path, of Stable Diffusion 1.5 for a subject; or "playground", for a subject.
        data: a COCO-style .json or WebDataset .tar files; see `training.persons_data`. images: the folder of the JSON's file names. A scene
            needs captions only, their markers are removed.
        output: the folder for checkpoints, sample images and the model, <name>.safetensors. A run with a checkpoint there is resumed.
        name: by default the part.
        image_encoder: the path of a CLIP vision model to begin with, CLIP ViT-L/14 for Stable Diffusion 1.5.
        start_from: a file as Load Subject Model lists it, to continue from; then `base` gives text encoder and VAE only.
        everything: train the whole UNet as published, or only its transformers, which needs half of the memory.
        caption_drop: the share of images with neither caption nor persons. person_drop: the share of persons left as plain text.
        masked: the share of images whose loss counts inside the persons only. localisation: the weight of keeping attention on its person.
        timestep_density: "uniform", "logit_normal" or "mode". snr_gamma: Min-SNR weighting, for example 5; 0 turns it off.
    """

    part: str
    base: str
    data: str | list
    output: str
    name: str = ""
    images: str | None = None
    image_encoder: str | None = None
    start_from: str | None = None
    everything: bool = True
    caption_drop: float = Drops.caption
    person_drop: float = Drops.person
    masked: float = Drops.masked
    localisation: float = LOCALISATION
    resolution: int = 512
    batch: int = 4
    accumulation: int = 8
    steps: int = 150_000
    timestep_density: str = "uniform"
    snr_gamma: float = 0.0
    learning_rate: float = 1e-5
    warmup: int = 0
    final_rate: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.0
    mixed_precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 1000
    sample_every: int = 1000
    sample_steps: int = 30
    sample_cfg: float = 5.0

    def __post_init__(self) -> None:
        if self.part not in (SUBJECT, SCENE):
            raise ValueError(f"part is {self.part!r}; it must be {SUBJECT!r} or {SCENE!r}.")
        if self.part == SCENE:
            for name in ("image_encoder", "start_from"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for the part {SUBJECT!r}. Remove it; a scene model continues from its base.")
            if self.base == PLAYGROUND:
                raise ValueError(
                    f"the base of a scene model is {PLAYGROUND!r}, whose size ComfyUI's loaders do not know. Give a checkpoint's path."
                )
        elif self.base != PLAYGROUND and not (self.image_encoder or self.start_from):
            raise ValueError(
                "a subject model needs image_encoder, the path of a CLIP vision model (ViT-L/14 for Stable Diffusion 1.5) to begin with, "
                "or start_from, a subject model to continue from."
            )

    @property
    def file(self) -> Path:
        """The file of the trained model."""
        return Path(self.output) / f"{self.name or self.part}.safetensors"

    @property
    def schedule(self) -> Schedule:
        """With the published optimiser."""
        return replace(super().schedule, betas=(0.9, 0.999))


def set_trained(model: nn.Module, is_trained: Callable[[str], bool]) -> nn.Module:
    """The same model, with gradients for the parameters whose name `is_trained`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    return model


def new_postfuse(width: int) -> Postfuse:
    """An untrained network: it passes the text on, only normalised."""
    postfuse = Postfuse(width)
    for mlp in (postfuse.mlp1, postfuse.mlp2):
        nn.init.zeros_(mlp.fc2.weight)
        nn.init.zeros_(mlp.fc2.bias)
    return postfuse


def _unfreeze(base: FrozenBase, everything: bool) -> nn.Module:
    return base.unfreeze(lambda name: everything or is_trained(name))


def diffusers_names(model: Any) -> dict[str, str]:
    """The names of a MODEL's weights -> their names in subject models' files. Raises ValueError for a UNet without such names."""
    known = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = model.model.diffusion_model.state_dict()
    names = {own: name for name, own in known.items() if own in weights}
    other = sorted(set(weights) - set(names))
    if other:
        raise ValueError(
            f"{TRAINER}: the base's UNet has {other[0]}, which subject models' files cannot contain. Give a checkpoint of SD1.5."
        )
    return names


@dataclass(frozen=True, eq=False)
class SubjectNetworks:
    """The networks of a subject model in training. `vision` is a CLIP_VISION around the tower."""

    base: FrozenBase
    unet: nn.Module
    vision: Any
    postfuse: Postfuse
    names: dict[str, str] | None  # of the UNet's weights in a whole file; None for the playground's small one
    everything: bool

    @classmethod
    def begin(cls, base: FrozenBase, recipe: SNFRecipe) -> SubjectNetworks:
        """Raises ValueError if the recipe's parts do not fit together."""
        width = base.empty.shape[-1]
        small = recipe.base == PLAYGROUND
        if recipe.start_from:
            folders.register()
            model, vision, fuser = subjects.load(recipe.start_from)
            if fuser.width != width:
                raise ValueError(
                    f"{TRAINER}: {recipe.start_from!r} needs text of width {fuser.width}, the base {recipe.base!r} has {width}. "
                    "Give the base that it was trained on."
                )
            base = FrozenBase(model, base.clip, base.vae, base.device, TRAINER)
            postfuse = Postfuse(width)
            postfuse.load_state_dict({key: value.float() for key, value in fuser.patcher.model.state_dict().items()})
        else:
            vision = playground.load_clip_vision() if small else _image_encoder(recipe.image_encoder, width)
            postfuse = new_postfuse(width)
        names = None if small else diffusers_names(base.model)
        tower = vision.model.float().to(base.device)
        layers = len(tower.vision_model.encoder.layers)
        set_trained(tower, lambda name: is_trained_in_encoder(name, layers))
        return cls(base, _unfreeze(base, recipe.everything), vision, postfuse, names, recipe.everything)

    @property
    def tower(self) -> nn.Module:
        return self.vision.model

    def embeds(self, pictures: Tensor) -> Tensor:
        """Portraits [n, 3, side, side] in 0..1 -> embeddings [n, c], with gradients for the last layers of the tower."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.vision.image_mean, self.vision.image_std))
        left = TRAINED_LAYERS
        with torch.no_grad():
            states = playground.image_states(self.tower, ((pictures - mean) / std).to(self.base.device), left)
        return playground.image_embeds(self.tower, states, left)

    def save(self, path: Path) -> None:
        """Write the file that Load Subject Model reads, in float16."""
        unet, tower, postfuse = (module.state_dict() for module in (self.unet, self.tower, self.postfuse))
        if self.names is None:
            layers = len(self.vision.model.vision_model.encoder.layers)
            unet = {k: v for k, v in unet.items() if self.everything or is_trained(k)}
            tower = {k: v for k, v in tower.items() if is_trained_in_encoder(k, layers)}
            state = checkpoint.join_partial(unet, tower, postfuse)
        else:
            unet = {self.names[key]: value for key, value in unet.items()}
            state = checkpoint.join_checkpoint(checkpoint.SubjectParts(unet, tower, postfuse, self.postfuse.width))
        save_weights(path, state, {"base": PLAYGROUND} if self.names is None else None)


def _image_encoder(path: str | None, width: int) -> Any:
    name = f"{TRAINER}: the image encoder {path!r}"
    if not path or not Path(path).is_file():
        raise ValueError(f"{name} is not a file. Give the path of a CLIP vision model.")
    try:
        vision = comfy.clip_vision.load(path)
    except Exception as error:
        raise ValueError(f"{name} cannot be read as weights ({type(error).__name__}).") from error
    projection = None if vision is None else getattr(getattr(vision.model, "visual_projection", None), "weight", None)
    if projection is None:
        raise ValueError(f"{name} is not a CLIP vision model with a projection. Use CLIP ViT-L/14.")
    if projection.shape[0] != width:
        raise ValueError(
            f"{name} gives embeddings of width {projection.shape[0]}, the base needs text of width {width}. "
            "Stable Diffusion 1.5 needs CLIP ViT-L/14; other bases than those of width 768 have no subject models."
        )
    return vision


def subject_step(
    nets: SubjectNetworks, recipe: SNFRecipe, data: Sequence[PersonsEntry]
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number. Raises ValueError for captions whose markers are wrong, before the first step."""
    base, schedule = nets.base, nets.base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)
    texts = [subjects.find_persons(base.clip, entry.caption, f"{TRAINER}: {entry.name}") for entry in data]
    drops = Drops(recipe.caption_drop, recipe.person_drop, recipe.masked)
    side = getattr(nets.vision, "image_size", 224)
    predict_attended = predict_and_record(nets.unet)

    def predict(x: Tensor, t: Tensor, context: Tensor) -> Any:
        out, attended = predict_attended(x, t, context)
        return base.to_noise(out, x, t), attended

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
        examples = [load_persons(data[row], recipe.resolution) for row in chosen]
        latents = base.latents(torch.stack([each.pixels for each in examples]), seed=recipe.seed + number)
        most = max(len(each.portraits) for each in examples)
        rows, positions = torch.zeros(2, len(examples), most, dtype=torch.long)
        masks = torch.zeros(len(examples), most, *latents.shape[-2:])
        squares: list[Tensor] = []
        for row, (example, chosen_row) in enumerate(zip(examples, chosen)):
            for column, (portrait, mask) in enumerate(example.portraits):
                rows[row, column], positions[row, column] = len(squares), texts[chosen_row][1][column]
                squares.append(
                    subjects.pad_to_square(subjects.crop_to_mask(portrait, mask, "noise", rng=rng), side).movedim(-1, 0)
                )
            small = F.interpolate(example.masks[None], size=masks.shape[-2:], mode="area")[0]
            masks[row, : len(small)] = small
        no_caption, used, masked = drops.draw(masks.flatten(2).amax(dim=-1) > 0, rng)
        text, _ = base.conditions([texts[row][0] for row in chosen], no_caption, recipe.resolution)
        region = loss_region(masks, masked).to(base.device)
        rows, positions, masks, used = (each.to(base.device) for each in (rows, positions, masks, used))
        embeds = nets.embeds(AUGMENTATION(torch.stack(squares), rng)).float()
        context = fuse_batch(nets.postfuse, text.float(), embeds[rows], positions, used)

        def denoising(epsilon: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return denoising_loss(epsilon, latents, schedule, rng, region)

        return subject_loss(predict, denoising, context, positions, masks, used, recipe.localisation)

    return loss


def scene_step(
    base: FrozenBase, unet: nn.Module, recipe: SNFRecipe, data: Sequence[PersonsEntry]
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number: of whole images, with captions without markers."""
    schedule = base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = [data[row] for row in torch.randint(len(data), (recipe.batch,), generator=rng).tolist()]
        pixels = torch.stack([load_persons(replace(entry, persons=()), recipe.resolution).pixels for entry in chosen])
        latents = base.latents(pixels, seed=recipe.seed + number)
        dropped = torch.rand(len(chosen), generator=rng) < recipe.caption_drop
        text, more = base.conditions([without_markers(entry.caption) for entry in chosen], dropped, recipe.resolution)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return base.to_noise(unet(x, t, context=text.float(), **more), x, t)

        return denoising_loss(predict, latents, schedule, rng)

    return loss


def without_markers(caption: str) -> str:
    """A caption without markers."""
    return " ".join(caption.replace(MARKER, " ").split())


def insert_unet(base: str, unet: nn.Module) -> dict[str, Tensor]:
    """The base's own file with this UNet in it, as Load Checkpoint reads it. Raises ValueError if the file has another layout."""
    state = {key: value for key, value in comfy.utils.load_torch_file(base, safe_load=True).items() if isinstance(value, Tensor)}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    weights = {prefix + key: value for key, value in unet.state_dict().items()}
    lost = sorted(set(weights) - set(state))
    if lost:
        raise ValueError(f"{TRAINER}: {Path(base).name} has no {lost[0]}. Give a checkpoint in Stable Diffusion's own layout.")
    return state | weights


def _sampler(
    base: FrozenBase, recipe: SNFRecipe, save: Callable[[], None], positives: Callable[[], list]
) -> dict[int, Callable[[int], None]]:
    """Every `sample_every` steps: writes the current model, and an image of each of these conditionings."""

    def write(step: int) -> None:
        save()
        with torch.no_grad():
            drawn = [(base.model, positive) for positive in positives()]
        how: dict[str, Any] = {"steps": recipe.sample_steps, "cfg": recipe.sample_cfg, "side": recipe.resolution}
        write_samples(recipe.file, step, drawn, base.clip, base.vae, **how)
        base.move_to_device()

    return {recipe.sample_every: write} if is_main_process() else {}


def _train_subject(base: FrozenBase, recipe: SNFRecipe, data: Sequence[PersonsEntry]) -> list[float]:
    nets = SubjectNetworks.begin(base, recipe)

    def positives() -> list:
        state = {key: value.detach().clone() for key, value in nets.postfuse.state_dict().items()}
        width = nets.postfuse.width
        fuser = subjects.SubjectFuser(networks.load(Postfuse, state, width), width)
        found = []
        for entry in data[:SAMPLED]:
            portraits = load_persons(entry, recipe.resolution).portraits
            references = [subjects.crop_to_mask(portrait, mask, "noise")[None] for portrait, mask in portraits]
            found.append(subjects.encode(nets.base.clip, nets.vision, fuser, entry.caption, references)[0])
        nets.tower.to(nets.base.device)  # encoding may have moved it
        return found

    every = _sampler(nets.base, recipe, lambda: nets.save(recipe.file), positives)
    modules = {"unet": nets.unet, "tower": nets.tower, "postfuse": nets.postfuse}
    losses = fit(recipe.file.stem, modules, subject_step(nets, recipe, data), recipe.schedule, recipe.file.parent, every)
    if is_main_process():
        nets.save(recipe.file)
    return losses


def _train_scene(base: FrozenBase, recipe: SNFRecipe, data: Sequence[PersonsEntry]) -> list[float]:
    unet = _unfreeze(base, recipe.everything)
    insert_unet(recipe.base, unet)  # a base that cannot be saved is refused before the first step

    def save() -> None:
        save_weights(recipe.file, insert_unet(recipe.base, unet))

    def positives() -> list:
        return [encode_prompt(base.clip, without_markers(entry.caption)) for entry in data[:SAMPLED]]

    step = scene_step(base, unet, recipe, data)
    every = _sampler(base, recipe, save, positives)
    losses = fit(recipe.file.stem, {"unet": unet}, step, recipe.schedule, recipe.file.parent, every)
    if is_main_process():
        save()
    return losses


def train(recipe: SNFRecipe) -> list[float]:
    """Train by a recipe; the losses. The model is in <output>/<name>.safetensors afterwards. Raises ValueError."""
    device = training_device()
    data = read_persons(recipe.data, recipe.images, with_persons=recipe.part == SUBJECT)
    base = FrozenBase.load(recipe.base, device, torch.float32, TRAINER)
    torch.manual_seed(recipe.seed)
    log.info("%s: %d images", recipe.part, len(data))
    return (_train_subject if recipe.part == SUBJECT else _train_scene)(base, recipe, data)
