"""Trains ControlNeXt (stage 1) and the matcher (stage 2) inside the host's own UNet, on the loop that all trainers share.

`dev.py train am_adapter --config FILE` runs `main` on a user's pictures. The file is JSON; CONFIG says what may stand in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from ..am_adapter.agreement import CORRECTED
from ..am_adapter.checkpoint import load_controlnext, matcher_metadata
from ..am_adapter.model import ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout, inject
from ..am_adapter.training import begin_as_class_bias_, noise_loss, second_view, trained_layer
from ..semantic.palettes import VOID, named_palette
from ..semantic.semantic_map import SemanticMap
from ..semantic.snapping import snap_to_palette
from ..training.loop import Schedule, fit
from ..training.pairs import Pair, find_pairs
from . import hooks
from .am_adapter import PARTS
from .am_adapter_controlnext import PATCH, first_halving
from .am_adapter_exemplar import Recorder

log = logging.getLogger("exemplary")

STAGES = ("controlnext", "matcher")
#: Every entry of a configuration file with its default; None must be given.
CONFIG: dict[str, Any] = {
    "stage": None,  # one of STAGES
    "checkpoint": None,  # path of a Stable Diffusion 1.5 checkpoint
    "pairs": None,  # path of a folder or of *.tar shards, see py/training/pairs.py
    "output": None,  # path of the .safetensors file to write; checkpoints of the training stand beside it
    "palette": "Cityscapes / BDD100K",
    "controlnext": "",  # stage matcher: path of the finished ControlNeXt
    "train_unet": False,  # stage controlnext: train the UNet as well; its increments are written to <output>_unet.safetensors
    "prompt": "",  # for pictures without a caption
    "drop_captions": 0.1,  # stage matcher never reads captions, so that the look must come from the exemplar
    "size": 512,
    "batch": 1,
    "steps": 20000,
    "learning_rate": 1e-4,
    "mixed_precision": "no",
    "seed": 0,
}

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

    def __init__(self, config: dict[str, Any]) -> None:
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(config["checkpoint"])[:3]
        self.model, self.clip, self.vae, self.config = model.model, clip, vae, config
        self.unet: nn.Module = model.model.diffusion_model.float().requires_grad_(False)
        self.palette = named_palette(config["palette"])
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
        side = self.config["size"]
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


def train_stage(config: dict[str, Any]) -> None:
    """Train one stage and write its file."""
    studio, pairs, output = Studio(config), find_pairs(Path(config["pairs"])), Path(config["output"])
    log.info("%s: %d pairs", config["stage"], len(pairs))
    torch.manual_seed(config["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    studio.unet.to(device)
    schedule = Schedule(
        config["steps"],
        config["learning_rate"],
        warmup=min(200, config["steps"] // 10 + 1),
        mixed_precision=config["mixed_precision"],
        seed=config["seed"],
    )
    first = config["stage"] == STAGES[0]
    modules: dict[str, nn.Module]
    if first:
        control = ControlNeXt(ControlNeXtLayout(out_channels=_place(studio.unet)[1]))
        predict: Any = controlled(studio.unet, control)
        modules = {"control": control}
        if config["train_unet"]:
            before = {name: weight.detach().cpu().clone() for name, weight in studio.unet.state_dict().items()}
            modules["unet"] = studio.unet.requires_grad_(True)
    else:
        control = load_controlnext(comfy.utils.load_torch_file(config["controlnext"], safe_load=True))
        control.float().requires_grad_(False).eval().to(device)
        heads = next(iter(hooks.attention_blocks(studio.unet).values())).attn1.heads
        matcher = Matcher(MatcherLayout(heads=heads))
        begin_as_class_bias_(matcher)
        predict = MatchedUNet(studio.unet, control, matcher)
        modules = {"matcher": matcher}

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs), (config["batch"],), generator=rng).tolist()
        views = [studio.view(pairs[row], rng) for row in rows]
        labels = torch.stack([label for _, label, _ in views])
        latent = studio.latents(torch.stack([picture for picture, _, _ in views]))
        texts = [text or config["prompt"] for _, _, text in views] if first else [config["prompt"]] * len(views)
        dropped = torch.rand(len(views), generator=rng) < config["drop_captions"]
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

    fit(output.stem, modules, loss, schedule, output.parent)
    if first:
        _write(output, control.state_dict())
    else:
        _write(output, matcher.state_dict(), matcher_metadata(matcher.layout, CORRECTED))
    if first and config["train_unet"]:
        now = studio.unet.state_dict()
        increments = {name: now[name].cpu() - weight for name, weight in before.items()}
        _write(output.with_name(f"{output.stem}_unet.safetensors"), increments)


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().half().cpu().contiguous() for key, value in state.items()}, path, metadata)
    log.info("wrote %s", path)


def read_config(text: str) -> dict[str, Any]:
    """A configuration with its defaults. Raises ValueError naming what is missing, unknown or of the wrong kind."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"am_adapter training: the configuration is no JSON ({error}).") from error
    unknown = sorted(set(given) - set(CONFIG))
    missing = [name for name, default in CONFIG.items() if default is None and not given.get(name)]
    if unknown or missing:
        what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise ValueError(f"am_adapter training: {what}. A configuration may hold {', '.join(CONFIG)}.")
    config = {**CONFIG, **given}
    if config["stage"] not in STAGES:
        raise ValueError(f"am_adapter training: stage is {config['stage']!r}; choose one of {', '.join(STAGES)}.")
    if config["stage"] == STAGES[1] and not config["controlnext"]:
        raise ValueError(
            "am_adapter training: the stage matcher needs controlnext, the path of the file that stage 1 has written."
        )
    if config["size"] % 64 or config["size"] < 64 or config["batch"] < 1 or config["steps"] < 1:
        raise ValueError("am_adapter training: size must be a multiple of 64, batch and steps at least 1.")
    return config


def main(arguments: list[str]) -> int:
    """`--config FILE`."""
    try:
        train_stage(read_config(Path(arguments[arguments.index("--config") + 1]).read_text(encoding="utf-8")))
    except ValueError as error:
        log.error("%s", error)
        return 2
    return 0
