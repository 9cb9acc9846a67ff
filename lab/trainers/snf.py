"""Face-diffuser's trainer for pictures of one's own: a subject model, or the scene model that goes with it.

`dev.py train snf --config FILE` runs `main`; the file is JSON with the fields of `Recipe`, the data are `training.persons_data`.
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
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ...py.host import folders, networks, playground
from ...py.host.snf import subjects
from ...py.snf import checkpoint
from ...py.snf.model import Postfuse
from ...py.snf.training import LOCALISATION, Drops, Predict, fused_batch, region_of_loss, subject_loss
from ..evaluate import sampling
from ..playground import subject as subject_training
from ..playground.recipes import subject as playground_subject
from ..training import persons_data
from ..training.augmentation import Augmentation
from ..training.diffusion import diffusion_loss
from ..training.frozen_base import PLAYGROUND, FrozenBase
from ..training.loop import Schedule, fit
from ..training.persons_data import MARKER, Entry
from ..training.recipe import FromFile, command

log = logging.getLogger("exemplary")

NODE = "SNF training"
SUBJECT, SCENE = "subject", "scene"
SHARES = ("caption_drop", "person_drop", "masked")
#: What the published training does to the pictures that persons are known from.
CHANGES = Augmentation(rotate=0.75, degrees=30.0, blur=0.5, warp=0.5, zoom=0.5, colour=0.5, grey=0.1)
SHOWN = 2  # pictures of the data that are drawn as samples


@dataclass(frozen=True)
class Recipe(FromFile):
    """What a user writes into the configuration file. The defaults are the published training's.

    Args:
        part: "subject" (the UNet, the network that fuses persons into prompts, the image encoder's last layers) or "scene" (the UNet).
        base: a checkpoint's path, of Stable Diffusion 1.5 for a subject; or "playground", for a subject.
        data: a COCO-style .json or WebDataset .tar files; see `training.persons_data`. images: the folder of the JSON's file names. A scene
            needs captions only, their markers are left out.
        output: the folder for checkpoints, sample pictures and the model, <name>.safetensors. A run that is there is resumed.
        name: by default the part.
        image_encoder: the path of a CLIP vision model to begin with, CLIP ViT-L/14 for Stable Diffusion 1.5.
        start_from: a file as Load Subject Model lists it, to go on from; then `base` gives text encoder and VAE only.
        everything: train the whole UNet as published, or only its transformers, which needs half of the memory.
        caption_drop: how often a picture has neither caption nor persons. person_drop: how often a person is plain text.
        masked: how often the loss counts inside of the persons only. localisation: the weight of keeping attention on its person.
    """

    part: str
    base: str
    data: Any
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
        for name in SHARES:
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        if self.part == SCENE:
            for name in ("image_encoder", "start_from"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for the part {SUBJECT!r}. Remove it; a scene model goes on from its base.")
            if self.base == PLAYGROUND:
                raise ValueError(
                    f"the base of a scene model is {PLAYGROUND!r}, whose size no loader of ComfyUI knows. Give a checkpoint's path."
                )
        elif self.base != PLAYGROUND and not (self.image_encoder or self.start_from):
            raise ValueError(
                "a subject model needs image_encoder, the path of a CLIP vision model (ViT-L/14 for Stable Diffusion 1.5) to begin with, "
                "or start_from, a subject model to go on from."
            )

    @property
    def file(self) -> Path:
        """What is trained."""
        return Path(self.output) / f"{self.name or self.part}.safetensors"

    @property
    def schedule(self) -> Schedule:
        """The optimiser is the published one."""
        return replace(super().schedule, betas=(0.9, 0.999))


def trained_unet(base: FrozenBase, everything: bool) -> nn.Module:
    """The base's UNet in full precision, with what shall learn."""
    unet = base.unet.float().to(base.device)
    unet.dtype = torch.float32
    return subject_training.train_only(unet, lambda name: everything or playground_subject.trained(name))


def diffusers_names(model: Any) -> dict[str, str]:
    """The names of a MODEL's weights -> those that subject models' files have. Raises ValueError for a UNet that has no such names."""
    known = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = model.model.diffusion_model.state_dict()
    names = {own: name for name, own in known.items() if own in weights}
    other = sorted(set(weights) - set(names))
    if other:
        raise ValueError(
            f"{NODE}: the base's UNet has {other[0]}, which no subject model's file can hold. Give a checkpoint of SD1.5."
        )
    return names


@dataclass(frozen=True, eq=False)
class Subject:
    """What is trained of a subject model. `vision` is a CLIP_VISION around the tower."""

    base: FrozenBase
    unet: nn.Module
    vision: Any
    postfuse: Postfuse
    names: dict[str, str] | None  # of the UNet's weights in a whole file; None for the playground's small one
    everything: bool

    @classmethod
    def begin(cls, base: FrozenBase, recipe: Recipe) -> Subject:
        """Raises ValueError if the recipe's parts do not fit together."""
        width = base.empty.shape[-1]
        small = recipe.base == PLAYGROUND
        if recipe.start_from:
            folders.register()
            model, vision, fuser = subjects.load(recipe.start_from)
            if fuser.width != width:
                raise ValueError(
                    f"{NODE}: {recipe.start_from!r} reads text of width {fuser.width}, the base {recipe.base!r} writes {width}. "
                    "Give the base that it was trained on."
                )
            base = FrozenBase(model, base.clip, base.vae, base.device, NODE)
            postfuse = Postfuse(width)
            postfuse.load_state_dict({key: value.float() for key, value in fuser.patcher.model.state_dict().items()})
        else:
            vision = playground.load_clip_vision() if small else _image_encoder(recipe.image_encoder, width)
            postfuse = subject_training.new_postfuse(width)
        names = None if small else diffusers_names(base.model)
        tower = vision.model.float().to(base.device)
        layers = len(tower.vision_model.encoder.layers)
        subject_training.train_only(tower, lambda name: playground_subject.trained_in_tower(name, layers))
        return cls(base, trained_unet(base, recipe.everything), vision, postfuse, names, recipe.everything)

    @property
    def tower(self) -> nn.Module:
        return self.vision.model

    def embeds(self, pictures: Tensor) -> Tensor:
        """Portraits [n, 3, side, side] in 0..1 -> embeddings [n, c], with gradients for the last layers of the tower."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.vision.image_mean, self.vision.image_std))
        left = playground_subject.TRAINED_LAYERS
        with torch.no_grad():
            states = playground.image_states(self.tower, ((pictures - mean) / std).to(self.base.device), left)
        return playground.image_embeds(self.tower, states, left)

    def save(self, path: Path) -> None:
        """Write what Load Subject Model reads, in float16."""
        unet, tower, postfuse = (module.state_dict() for module in (self.unet, self.tower, self.postfuse))
        if self.names is None:
            layers = len(self.vision.model.vision_model.encoder.layers)
            unet = {k: v for k, v in unet.items() if self.everything or playground_subject.trained(k)}
            tower = {k: v for k, v in tower.items() if playground_subject.trained_in_tower(k, layers)}
            state = checkpoint.changes_file(unet, tower, postfuse)
        else:
            unet = {self.names[key]: value for key, value in unet.items()}
            state = checkpoint.parts_file(checkpoint.SubjectParts(unet, tower, postfuse, self.postfuse.width))
        _write(path, state, {"base": PLAYGROUND} if self.names is None else None)


def _image_encoder(path: str | None, width: int) -> Any:
    name = f"{NODE}: the image encoder {path!r}"
    if not path or not Path(path).is_file():
        raise ValueError(f"{name} is no file. Give the path of a CLIP vision model.")
    try:
        vision = comfy.clip_vision.load(path)
    except Exception as error:
        raise ValueError(f"{name} cannot be read as weights ({type(error).__name__}).") from error
    projection = None if vision is None else getattr(getattr(vision.model, "visual_projection", None), "weight", None)
    if projection is None:
        raise ValueError(f"{name} is no CLIP vision model with a projection. Take CLIP ViT-L/14.")
    if projection.shape[0] != width:
        raise ValueError(
            f"{name} gives embeddings of width {projection.shape[0]}, the base reads text of width {width}. "
            "Stable Diffusion 1.5 needs CLIP ViT-L/14; other bases than those of width 768 have no subject models."
        )
    return vision


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {key: value.detach().half() if value.is_floating_point() else value for key, value in state.items()}
    save_file({key: value.cpu().contiguous().clone() for key, value in half.items()}, path, metadata)
    log.info("wrote %s", path)


def subject_step(nets: Subject, recipe: Recipe, data: Sequence[Entry]) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number. Raises ValueError for captions whose markers are wrong, before the first step."""
    base = nets.base
    texts = [subjects.marked(base.clip, entry.caption, f"{NODE}: {entry.name}") for entry in data]
    drops = Drops(recipe.caption_drop, recipe.person_drop, recipe.masked)
    side = getattr(nets.vision, "image_size", 224)
    unet = subject_training.predict_with(nets.unet)

    def predict(x: Tensor, t: Tensor, context: Tensor) -> Any:
        out, attended = unet(x, t, context)
        return base.as_noise(out, x, t), attended

    noise: Predict = predict

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (recipe.batch,), generator=rng).tolist()
        examples = [persons_data.example(data[place], recipe.resolution) for place in chosen]
        latents = base.latents(torch.stack([each.pixels for each in examples]), seed=recipe.seed + number)
        most = max(len(each.portraits) for each in examples)
        rows, positions = torch.zeros(2, len(examples), most, dtype=torch.long)
        masks = torch.zeros(len(examples), most, *latents.shape[-2:])
        squares: list[Tensor] = []
        for row, (example, place) in enumerate(zip(examples, chosen)):
            for column, (picture, mask) in enumerate(example.portraits):
                rows[row, column], positions[row, column] = len(squares), texts[place][1][column]
                squares.append(subjects.squared(subjects.outline(picture, mask, "noise", rng=rng), side).movedim(-1, 0))
            small = F.interpolate(example.masks[None], size=masks.shape[-2:], mode="area")[0]
            masks[row, : len(small)] = small
        no_caption, used, masked = drops.draw(masks.flatten(2).amax(dim=-1) > 0, rng)
        text, _ = base.conditions([texts[place][0] for place in chosen], no_caption, recipe.resolution)
        region = region_of_loss(masks, masked).to(base.device)
        rows, positions, masks, used = (each.to(base.device) for each in (rows, positions, masks, used))
        embeds = nets.embeds(CHANGES(torch.stack(squares), rng)).float()
        context = fused_batch(nets.postfuse, text.float(), embeds[rows], positions, used)

        def denoising(epsilon: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return diffusion_loss(epsilon, latents, base.alphas, rng, region)

        return subject_loss(noise, denoising, context, positions, masks, used, recipe.localisation)

    return loss


def scene_step(
    base: FrozenBase, unet: nn.Module, recipe: Recipe, data: Sequence[Entry]
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of a batch by its number: the whole picture's, of captions without markers."""

    def loss(number: int, rng: torch.Generator) -> Tensor:
        chosen = [data[place] for place in torch.randint(len(data), (recipe.batch,), generator=rng).tolist()]
        pixels = torch.stack([persons_data.example(replace(entry, persons=()), recipe.resolution).pixels for entry in chosen])
        latents = base.latents(pixels, seed=recipe.seed + number)
        dropped = torch.rand(len(chosen), generator=rng) < recipe.caption_drop
        text, more = base.conditions([plain(entry.caption) for entry in chosen], dropped, recipe.resolution)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return base.as_noise(unet(x, t, context=text.float(), **more), x, t)

        return diffusion_loss(predict, latents, base.alphas, rng)

    return loss


def plain(caption: str) -> str:
    """A caption without markers."""
    return " ".join(caption.replace(MARKER, " ").split())


def laid_over(base: str, unet: nn.Module) -> dict[str, Tensor]:
    """The base's own file with this UNet in it, so that Load Checkpoint reads it. Raises ValueError if the file is made differently."""
    state = {key: value for key, value in comfy.utils.load_torch_file(base, safe_load=True).items() if isinstance(value, Tensor)}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    weights = {prefix + key: value for key, value in unet.state_dict().items()}
    lost = sorted(set(weights) - set(state))
    if lost:
        raise ValueError(f"{NODE}: {Path(base).name} has no {lost[0]}. Give a checkpoint in Stable Diffusion's own layout.")
    return state | weights


def _sampler(base: FrozenBase, recipe: Recipe, save: Callable[[], None], positives: Callable[[], list]) -> Callable[[int], None]:
    """Writes the model as it is now, and a picture of each of these conditionings."""

    def write(step: int) -> None:
        save()
        with torch.no_grad():
            for place, positive in enumerate(positives(), start=1):
                negative = sampling.prompt(base.clip, "")
                image = sampling.picture(
                    base.model,
                    base.vae,
                    positive,
                    negative,
                    seed=place,
                    steps=recipe.sample_steps,
                    cfg=recipe.sample_cfg,
                    side=recipe.resolution,
                )
                pixels = image[0].permute(1, 2, 0).mul(255).round().byte().cpu().numpy()
                Image.fromarray(pixels).save(recipe.file.with_name(f"{recipe.file.stem}_{step:07d}_{place}.png"))
        base.place()

    return write


def _train_subject(base: FrozenBase, recipe: Recipe, data: Sequence[Entry], main: bool) -> list[float]:
    nets = Subject.begin(base, recipe)

    def positives() -> list:
        state = {key: value.detach().clone() for key, value in nets.postfuse.state_dict().items()}
        width = nets.postfuse.width
        fuser = subjects.SubjectFuser(networks.load(Postfuse, state, width), width)
        found = []
        for entry in data[:SHOWN]:
            portraits = persons_data.example(entry, recipe.resolution).portraits
            pictures = [subjects.outline(picture, mask, "noise")[None] for picture, mask in portraits]
            found.append(subjects.encode(nets.base.clip, nets.vision, fuser, entry.caption, pictures)[0])
        nets.tower.to(nets.base.device)  # encoding may have taken it away
        return found

    every = {recipe.sample_every: _sampler(nets.base, recipe, lambda: nets.save(recipe.file), positives)} if main else {}
    modules = {"unet": nets.unet, "tower": nets.tower, "postfuse": nets.postfuse}
    losses = fit(recipe.file.stem, modules, subject_step(nets, recipe, data), recipe.schedule, recipe.file.parent, every)
    if main:
        nets.save(recipe.file)
    return losses


def _train_scene(base: FrozenBase, recipe: Recipe, data: Sequence[Entry], main: bool) -> list[float]:
    unet = trained_unet(base, recipe.everything)
    laid_over(recipe.base, unet)  # a base that cannot be saved is refused before the first step

    def save() -> None:
        _write(recipe.file, laid_over(recipe.base, unet))

    def positives() -> list:
        return [sampling.prompt(base.clip, plain(entry.caption)) for entry in data[:SHOWN]]

    every = {recipe.sample_every: _sampler(base, recipe, save, positives)} if main else {}
    step = scene_step(base, unet, recipe, data)
    losses = fit(recipe.file.stem, {"unet": unet}, step, recipe.schedule, recipe.file.parent, every)
    if main:
        save()
    return losses


def train(recipe: Recipe) -> list[float]:
    """Train by a recipe; the losses. The model is in <output>/<name>.safetensors afterwards. Raises ValueError."""
    from accelerate import PartialState  # first, since it chooses this process's device before the host does

    state = PartialState(cpu=not torch.cuda.is_available())
    data = persons_data.entries(recipe.data, recipe.images, persons=recipe.part == SUBJECT)
    base = FrozenBase.load(recipe.base, state.device, torch.float32, NODE)
    torch.manual_seed(recipe.seed)
    log.info("%s: %d pictures", recipe.part, len(data))
    return (_train_subject if recipe.part == SUBJECT else _train_scene)(base, recipe, data, state.is_main_process)


def main(arguments: list[str]) -> int:
    """`dev.py train snf --config FILE`. Returns the exit code."""
    return command("snf", Recipe, train, arguments)
