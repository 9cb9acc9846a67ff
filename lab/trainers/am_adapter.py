"""Trains ControlNeXt (stage 1) and the matcher (stage 2) inside the host's own UNet.

`lab/train.py am_adapter RECIPE` trains on a user's images; RECIPE is a JSON file with the fields of `AMAdapterRecipe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...py.am_adapter.agreement import PAPER_FORMULAS
from ...py.am_adapter.checkpoint import load_controlnext, matcher_metadata
from ...py.am_adapter.model import ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout, inject
from ...py.am_adapter.training import attend_through_matcher, crop_second_view, init_as_class_bias_
from ...py.host import hooks
from ...py.host.am_adapter.apply import PARTS
from ...py.host.am_adapter.controlnext import PATCH, first_halving
from ...py.host.am_adapter.exemplar import FeatureRecorder
from ...py.semantic.palettes import VOID, named_palette
from ...py.semantic.semantic_map import SemanticMap
from ...py.semantic.snapping import snap_to_palette
from ..training.checkpoints import save_weights
from ..training.diffusion import denoising_loss
from ..training.frozen_base import FrozenBase, training_device
from ..training.loop import fit
from ..training.paired_data import ImagePair, find_pairs
from ..training.recipe import TrainingRecipe

log = logging.getLogger("exemplary")

TRAINER = "AM-Adapter training"
CONTROLNEXT, MATCHER = "controlnext", "matcher"


@dataclass(frozen=True)
class AMAdapterRecipe(TrainingRecipe):
    """What a user writes into the recipe file.

    Args:
        stage: "controlnext" first, then "matcher".
        base: the path of a Stable Diffusion 1.5 checkpoint, or "playground".
        data: the path of a folder or of .tar shards with images and maps; see `training.paired_data`.
        output: the folder for checkpoints and the network, <name>.safetensors. A run with a checkpoint there is resumed.
        name: by default the stage.
        palette: the palette of the maps' colours.
        controlnext: for the stage matcher, the path of the trained ControlNeXt.
        train_unet: in the stage controlnext, train the UNet as well; its increments are written to <name>_unet.safetensors.
        prompt: for images without a caption, and for all in the stage matcher, where the look must come from the exemplar.
        drop_captions: the share of images whose prompt is empty.
        timestep_density: "uniform", "logit_normal" or "mode". snr_gamma: Min-SNR weighting, for example 5; 0 turns it off.
    """

    stage: str
    base: str
    data: str
    output: str
    name: str = ""
    palette: str = "Cityscapes / BDD100K"
    controlnext: str = ""
    train_unet: bool = False
    prompt: str = ""
    drop_captions: float = 0.1
    resolution: int = 512
    batch: int = 1
    accumulation: int = 1
    steps: int = 20_000
    timestep_density: str = "uniform"
    snr_gamma: float = 0.0
    learning_rate: float = 1e-4
    warmup: int = 200
    mixed_precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.stage not in (CONTROLNEXT, MATCHER):
            raise ValueError(f"stage is {self.stage!r}; it must be {CONTROLNEXT!r} or {MATCHER!r}.")
        if self.stage == MATCHER and not self.controlnext:
            raise ValueError(f"the stage {MATCHER} needs controlnext, the path of the file that the stage {CONTROLNEXT} wrote.")
        if self.stage == MATCHER and self.train_unet:
            raise ValueError(
                f"train_unet is for the stage {CONTROLNEXT}; the stage {MATCHER} trains the matcher only. Remove it."
            )

    @property
    def file(self) -> Path:
        """The file of the trained network."""
        return Path(self.output) / f"{self.name or self.stage}.safetensors"


#: (noisy latents [b, c, h, w], timesteps [b], context [b, m, c], maps' colours [b, 3, h, w]) -> predicted noise.
Controlled = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def with_control(unet: nn.Module, control: ControlNeXt) -> Controlled:
    """The UNet guided by ControlNeXt, differentiable in both."""
    block, _ = _halving_block(unet)

    def predict(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        return unet(x, t, context=context, transformer_options=_control_options(control, block, hint, t))

    return predict


def _halving_block(unet: nn.Module) -> tuple[int, int]:
    found = first_halving(unet)
    if found is None:
        raise ValueError(
            "The base has no block that halves the resolution, so it is not a UNet. Give a Stable Diffusion 1.5 checkpoint."
        )
    return found


def _control_options(control: ControlNeXt, block: int, hint: Tensor, t: Tensor) -> dict[str, Any]:
    def patch(h: Tensor, options: dict) -> Tensor:
        return inject(h, control(hint, t), 1.0) if tuple(options["block"][:2]) == ("input", block) else h

    return {"patches": {PATCH: [patch]}}


class MatchedUNet:
    """The frozen UNet whose self-attention also attends to exemplars, weighted by a matcher."""

    def __init__(self, unet: nn.Module, control: ControlNeXt, matcher: Matcher) -> None:
        self.unet, self.control, self.matcher = unet, control, matcher
        self.block, _ = _halving_block(unet)
        self.keys = list(hooks.attention_blocks(unet))

    def __call__(
        self, x: Tensor, t: Tensor, context: Tensor, labels: Tensor, hint: Tensor, exemplar: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Predicted noise, with gradients for the matcher.

        Args:
            x, t, context, hint: as for `Controlled`. labels: [b, h, w].
            exemplar: one per row: noisy latents of the same timesteps, labels and colours of their map.
        """
        noisy, exemplar_labels, exemplar_hint = exemplar
        recorder = FeatureRecorder({})
        options = _control_options(self.control, self.block, exemplar_hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, recorder)}}
        with torch.no_grad():
            self.unet(noisy, t, context=context, transformer_options=options)

        def attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            keys, values, grid = recorder.layers[hooks.layer_key(options)]
            encoder = self.matcher.encoder(PARTS[options["block"][0]], part_encoder=True)
            grids = (tuple(options["activations_shape"][-2:]), grid)
            return attend_through_matcher(
                encoder, q, k, v, options["n_heads"], (keys, values), (labels, exemplar_labels), grids, void=VOID
            )

        options = _control_options(self.control, self.block, hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, attend)}}
        return self.unet(x, t, context=context, transformer_options=options)


class TrainingImages:
    """The user's image pairs as the networks take them."""

    def __init__(self, recipe: AMAdapterRecipe, base: FrozenBase) -> None:
        self.base, self.side, self.prompt, self.share = base, recipe.resolution, recipe.prompt, recipe.drop_captions
        self.palette = named_palette(recipe.palette)
        self.pairs = find_pairs(recipe.data)

    def crop(self, pair: ImagePair, rng: torch.Generator) -> tuple[Tensor, Tensor, str]:
        """A random square of a pair at its own scale (smaller images are enlarged): image [3, s, s], labels [s, s], caption."""
        image, colours, text = pair.load_colours()
        labels = snap_to_palette(colours[None], self.palette).labels[0]
        side = self.side
        factor = max(1.0, side / min(image.shape[:2]))
        h, w = (max(side, round(factor * edge)) for edge in image.shape[:2])
        image = F.interpolate(rearrange(image, "h w c -> 1 c h w"), (h, w), mode="bilinear", antialias=True)[0]
        labels = F.interpolate(labels[None, None].float(), (h, w), mode="nearest-exact")[0, 0].to(torch.uint8)
        top, left = (int(torch.randint(0, edge - side + 1, (), generator=rng)) for edge in (h, w))
        square = (slice(top, top + side), slice(left, left + side))
        return image[:, square[0], square[1]], labels[square], text

    def contexts(self, texts: list[str], rng: torch.Generator) -> Tensor:
        """Text features [b, 77, c] of prompts, a share of them of the empty prompt."""
        dropped = torch.rand(len(texts), generator=rng) < self.share
        return self.base.conditions(texts, dropped, self.side)[0].float()

    def latents(self, images: Tensor, seed: int) -> Tensor:
        """[b, 3, h, w] in 0..1 -> latents without noise."""
        return self.base.latents(rearrange(images, "b c h w -> b h w c"), seed)

    def hints(self, labels: Tensor) -> Tensor:
        """The maps' colours, [b, 3, h, w]."""
        return rearrange(SemanticMap(labels, self.palette).to_image(), "b h w c -> b c h w")


def train(recipe: AMAdapterRecipe) -> list[float]:
    """Train one stage and write its file; the losses. Raises ValueError."""
    device = training_device()
    base = FrozenBase.load(recipe.base, device, torch.float32, TRAINER)
    _halving_block(base.unet)
    images = TrainingImages(recipe, base)
    log.info("%s: %d pairs", recipe.stage, len(images.pairs))
    torch.manual_seed(recipe.seed)
    return (_train_controlnext if recipe.stage == CONTROLNEXT else _train_matcher)(recipe, base, images)


def _train_controlnext(recipe: AMAdapterRecipe, base: FrozenBase, images: TrainingImages) -> list[float]:
    unet = base.unfreeze(lambda _: recipe.train_unet)
    schedule = base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)
    control = ControlNeXt(ControlNeXtLayout(out_channels=_halving_block(unet)[1]))
    before = {name: w.detach().cpu().clone() for name, w in unet.state_dict().items()} if recipe.train_unet else {}
    predict = with_control(unet, control)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(images.pairs), (recipe.batch,), generator=rng).tolist()
        pixels, labels, texts = zip(*(images.crop(images.pairs[row], rng) for row in rows))
        latents = images.latents(torch.stack(pixels), recipe.seed + number)
        context = images.contexts([text or recipe.prompt for text in texts], rng)
        hint = images.hints(torch.stack(labels)).to(base.device)
        return denoising_loss(lambda x, t: base.to_noise(predict(x, t, context, hint), x, t), latents, schedule, rng)

    modules: dict[str, nn.Module] = {"control": control, **({"unet": unet} if recipe.train_unet else {})}
    losses = fit(recipe.file.stem, modules, loss, recipe.schedule, recipe.file.parent)
    save_weights(recipe.file, control.state_dict())
    if recipe.train_unet:
        increments = {name: weight.cpu() - before[name] for name, weight in unet.state_dict().items()}
        save_weights(recipe.file.with_name(f"{recipe.file.stem}_unet.safetensors"), increments)
    return losses


def _train_matcher(recipe: AMAdapterRecipe, base: FrozenBase, images: TrainingImages) -> list[float]:
    unet = base.unfreeze(lambda _: False)
    schedule = base.noise_schedule(recipe.timestep_density, recipe.snr_gamma)
    control = load_controlnext(_read_controlnext(recipe.controlnext))
    control.float().requires_grad_(False).eval().to(base.device)
    matcher = Matcher(MatcherLayout(heads=next(iter(hooks.attention_blocks(unet).values())).attn1.heads))
    init_as_class_bias_(matcher)
    predict = MatchedUNet(unet, control, matcher)

    def loss(number: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(images.pairs), (recipe.batch,), generator=rng).tolist()
        pixels, labels, _ = zip(*(images.crop(images.pairs[row], rng) for row in rows))
        targets = torch.stack(labels)
        latents = images.latents(torch.stack(pixels), recipe.seed + number)
        context = images.contexts([recipe.prompt] * len(rows), rng)
        hint = images.hints(targets).to(base.device)

        def predict_noise(x: Tensor, t: Tensor) -> Tensor:
            views, maps = zip(*(crop_second_view(*images.crop(images.pairs[row], rng)[:2], rng) for row in rows))
            exemplar_labels = torch.stack(maps)
            view = images.latents(torch.stack(views), recipe.seed + number)
            noisy = schedule.add_noise(view, torch.randn(view.shape, generator=rng).to(view), t)
            exemplar = (noisy, exemplar_labels.to(base.device), images.hints(exemplar_labels).to(base.device))
            return base.to_noise(predict(x, t, context, targets.to(base.device), hint, exemplar), x, t)

        return denoising_loss(predict_noise, latents, schedule, rng)

    losses = fit(recipe.file.stem, {"matcher": matcher}, loss, recipe.schedule, recipe.file.parent)
    save_weights(recipe.file, matcher.state_dict(), matcher_metadata(matcher.layout, PAPER_FORMULAS))
    return losses


def _read_controlnext(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(
            f"{TRAINER}: controlnext is {path!r}, which is not a file. Give the file that the stage controlnext wrote."
        )
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # the host raises many types for damaged files
        raise ValueError(f"{TRAINER}: controlnext {Path(path).name} cannot be read ({type(error).__name__}).") from None
