"""Trains ControlNeXt (stage 1) and the matcher (stage 2) inside the host's own UNet, on the loop that all trainers share.

`dev.py train am_adapter --config FILE` runs `main` on a user's pictures; the file is JSON with the fields of `Recipe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from ...py.am_adapter.agreement import CORRECTED
from ...py.am_adapter.checkpoint import load_controlnext, matcher_metadata
from ...py.am_adapter.model import ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout, inject
from ...py.am_adapter.training import begin_as_class_bias_, noise_loss, second_view, trained_layer
from ...py.host import hooks
from ...py.host.am_adapter.apply import PARTS
from ...py.host.am_adapter.controlnext import PATCH, first_halving
from ...py.host.am_adapter.exemplar import Recorder
from ...py.semantic.palettes import VOID, named_palette
from ...py.semantic.semantic_map import SemanticMap
from ...py.semantic.snapping import snap_to_palette
from ..training.loop import fit
from ..training.pairs import Pair, find_pairs
from ..training.recipe import FromFile, command

log = logging.getLogger("exemplary")

CONTROLNEXT, MATCHER = "controlnext", "matcher"


@dataclass(frozen=True)
class Recipe(FromFile):
    """What a user writes into the configuration file.

    Args:
        stage: "controlnext", then "matcher".
        base: the path of a Stable Diffusion 1.5 checkpoint.
        data: the path of a folder or of .tar shards with pictures and maps; see `training.pairs`.
        output: the folder for checkpoints and the network, <name>.safetensors. A run that is there is resumed.
        name: by default the stage.
        palette: that the maps are drawn in.
        controlnext: for the stage matcher, the path of the finished ControlNeXt.
        train_unet: in the stage controlnext, train the UNet as well; its increments are written to <name>_unet.safetensors.
        prompt: for pictures without a caption, and for all in the stage matcher, where the look must come from the exemplar.
        drop_captions: how often a picture has no prompt at all.
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
    learning_rate: float = 1e-4
    warmup: int = 200
    mixed_precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.stage not in (CONTROLNEXT, MATCHER):
            raise ValueError(f"stage is {self.stage!r}; it must be {CONTROLNEXT!r} or {MATCHER!r}.")
        if self.drop_captions > 1:
            raise ValueError(f"drop_captions is {self.drop_captions}; it is a share, from 0 to 1.")
        if self.stage == MATCHER and not self.controlnext:
            raise ValueError(
                f"the stage {MATCHER} needs controlnext, the path of the file that the stage {CONTROLNEXT} has written."
            )
        if self.stage == MATCHER and self.train_unet:
            raise ValueError(
                f"train_unet is for the stage {CONTROLNEXT}; the stage {MATCHER} trains nothing but the matcher. Remove it."
            )

    @property
    def file(self) -> Path:
        """What is trained."""
        return Path(self.output) / f"{self.name or self.stage}.safetensors"


#: (noisy latents [b, c, h, w], timesteps [b], context [b, m, c], maps' colours [b, 3, h, w]) -> the predicted noise.
Controlled = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def controlled(unet: nn.Module, control: ControlNeXt) -> Controlled:
    """The UNet with the control in it, differentiable in both."""
    block, _ = _place(unet)

    def predict(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        return unet(x, t, context=context, transformer_options=_control_options(control, block, hint, t))

    return predict


def _place(unet: nn.Module) -> tuple[int, int]:
    found = first_halving(unet)
    if found is None:
        raise ValueError(
            "This network has no block that halves the size, so it is no UNet. Load a Stable Diffusion 1.5 checkpoint."
        )
    return found


def _control_options(control: ControlNeXt, block: int, hint: Tensor, t: Tensor) -> dict[str, Any]:
    def patch(h: Tensor, options: dict) -> Tensor:
        return inject(h, control(hint, t), 1.0) if tuple(options["block"][:2]) == ("input", block) else h

    return {"patches": {PATCH: [patch]}}


class MatchedUNet:
    """The frozen UNet whose layers read exemplars through a matcher."""

    def __init__(self, unet: nn.Module, control: ControlNeXt, matcher: Matcher) -> None:
        self.unet, self.control, self.matcher = unet, control, matcher
        self.block, _ = _place(unet)
        self.keys = list(hooks.attention_blocks(unet))

    def __call__(
        self, x: Tensor, t: Tensor, context: Tensor, labels: Tensor, hint: Tensor, exemplar: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The predicted noise, with gradients to the matcher.

        Args:
            x, t, context, hint: as for `Controlled`. labels: [b, h, w].
            exemplar: one a row: noisy latents of the same timesteps, labels and colours of their map.
        """
        noisy, exemplar_labels, exemplar_hint = exemplar
        recorder = Recorder({})
        options = _control_options(self.control, self.block, exemplar_hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, recorder)}}
        with torch.no_grad():
            self.unet(noisy, t, context=context, transformer_options=options)

        def read(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            keys, values, grid = recorder.layers[hooks.layer_key(options)]
            encoder = self.matcher.encoder(PARTS[options["block"][0]], part_encoder=True)
            grids = (tuple(options["activations_shape"][-2:]), grid)
            return trained_layer(
                encoder, q, k, v, options["n_heads"], (keys, values), (labels, exemplar_labels), grids, void=VOID
            )

        options = _control_options(self.control, self.block, hint, t)
        options |= {"patches_replace": {"attn1": dict.fromkeys(self.keys, read)}}
        return self.unet(x, t, context=context, transformer_options=options)


class Studio:
    """A checkpoint taken apart for training, and pictures as it reads them."""

    def __init__(self, recipe: Recipe) -> None:
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(recipe.base)[:3]
        self.model, self.clip, self.vae, self.side = model.model, clip, vae, recipe.resolution
        self.unet: nn.Module = model.model.diffusion_model.float().requires_grad_(False)
        self.palette = named_palette(recipe.palette)
        self.alphas = 1 / (1 + model.model.model_sampling.sigmas.float() ** 2)
        self._contexts: dict[str, Tensor] = {}
        _place(self.unet)

    def context(self, text: str) -> Tensor:
        """[1, m, c] of a prompt."""
        if text not in self._contexts:
            self._contexts[text] = self.clip.encode_from_tokens(self.clip.tokenize(text))[0][:1].detach().float().cpu()
        return self._contexts[text]

    def view(self, pair: Pair, rng: torch.Generator) -> tuple[Tensor, Tensor, str]:
        """A random square of a pair at its own scale (smaller pictures are enlarged): picture [3, s, s], labels [s, s], caption."""
        picture, coloured, text = pair.load()
        labels = snap_to_palette(coloured[None], self.palette).labels[0]
        side = self.side
        factor = max(1.0, side / min(picture.shape[:2]))
        h, w = (max(side, round(factor * edge)) for edge in picture.shape[:2])
        picture = F.interpolate(rearrange(picture, "h w c -> 1 c h w"), (h, w), mode="bilinear", antialias=True)[0]
        labels = F.interpolate(labels[None, None].float(), (h, w), mode="nearest-exact")[0, 0].to(torch.uint8)
        top, left = (int(torch.randint(0, edge - side + 1, (), generator=rng)) for edge in (h, w))
        square = (slice(top, top + side), slice(left, left + side))
        return picture[:, square[0], square[1]], labels[square], text

    def latents(self, pictures: Tensor) -> Tensor:
        """[b, 3, h, w] in 0..1 -> what the UNet reads, without noise."""
        with torch.no_grad():
            return self.model.process_latent_in(self.vae.encode(rearrange(pictures, "b c h w -> b h w c")).float()).cpu()

    def hints(self, labels: Tensor) -> Tensor:
        """The maps' colours, [b, 3, h, w]."""
        return rearrange(SemanticMap(labels, self.palette).to_image(), "b h w c -> b c h w")


def train(recipe: Recipe) -> None:
    """Train one stage and write its file."""
    studio, pairs, output = Studio(recipe), find_pairs(Path(recipe.data)), recipe.file
    log.info("%s: %d pairs", recipe.stage, len(pairs))
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    studio.unet.to(device)
    first = recipe.stage == CONTROLNEXT
    modules: dict[str, nn.Module]
    if first:
        control = ControlNeXt(ControlNeXtLayout(out_channels=_place(studio.unet)[1]))
        predict: Any = controlled(studio.unet, control)
        modules = {"control": control}
        if recipe.train_unet:
            before = {name: weight.detach().cpu().clone() for name, weight in studio.unet.state_dict().items()}
            modules["unet"] = studio.unet.requires_grad_(True)
    else:
        control = load_controlnext(comfy.utils.load_torch_file(recipe.controlnext, safe_load=True))
        control.float().requires_grad_(False).eval().to(device)
        heads = next(iter(hooks.attention_blocks(studio.unet).values())).attn1.heads
        matcher = Matcher(MatcherLayout(heads=heads))
        begin_as_class_bias_(matcher)
        predict = MatchedUNet(studio.unet, control, matcher)
        modules = {"matcher": matcher}

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs), (recipe.batch,), generator=rng).tolist()
        views = [studio.view(pairs[row], rng) for row in rows]
        labels = torch.stack([label for _, label, _ in views])
        latent = studio.latents(torch.stack([picture for picture, _, _ in views]))
        texts = [text or recipe.prompt for _, _, text in views] if first else [recipe.prompt] * len(views)
        dropped = torch.rand(len(views), generator=rng) < recipe.drop_captions
        contexts = [studio.context("" if drop else text) for text, drop in zip(texts, dropped)]
        if len({context.shape for context in contexts}) > 1:  # captions of different lengths: the longest counts
            most = max(context.shape[1] for context in contexts)
            contexts = [context.repeat(1, -(-most // context.shape[1]), 1)[:, :most] for context in contexts]
        context = torch.cat(contexts).to(device)
        t = torch.randint(len(studio.alphas), (len(views),), generator=rng)
        noise = torch.randn(latent.shape, generator=rng).to(device)
        latent, hint, alphas = latent.to(device), studio.hints(labels).to(device), studio.alphas.to(device)
        t, labels = t.to(device), labels.to(device)
        if first:
            return noise_loss(lambda x, t: predict(x, t, context, hint), latent, t, noise, alphas)
        others = [second_view(*studio.view(pairs[row], rng)[:2], rng) for row in rows]
        other_labels = torch.stack([label for _, label in others])
        a = rearrange(alphas[t], "b -> b 1 1 1")
        other = studio.latents(torch.stack([picture for picture, _ in others])).to(device)
        noisy = a.sqrt() * other + (1 - a).sqrt() * torch.randn(other.shape, generator=rng).to(device)
        exemplar = (noisy, other_labels.to(device), studio.hints(other_labels).to(device))
        return noise_loss(lambda x, t: predict(x, t, context, labels, hint, exemplar), latent, t, noise, alphas)

    fit(output.stem, modules, loss, recipe.schedule, output.parent)
    if first:
        _write(output, control.state_dict())
    else:
        _write(output, matcher.state_dict(), matcher_metadata(matcher.layout, CORRECTED))
    if first and recipe.train_unet:
        now = studio.unet.state_dict()
        increments = {name: now[name].cpu() - weight for name, weight in before.items()}
        _write(output.with_name(f"{output.stem}_unet.safetensors"), increments)


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().half().cpu().contiguous() for key, value in state.items()}, path, metadata)
    log.info("wrote %s", path)


def main(arguments: list[str]) -> int:
    """`dev.py train am_adapter --config FILE`. Returns the exit code."""
    return command("am_adapter", Recipe, train, arguments)
