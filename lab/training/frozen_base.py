"""A frozen base model for trainers: any checkpoint that the host loads, or the playground's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import torch
from torch import Tensor

from ...py.host import hooks, playground

PLAYGROUND = "playground"


class FrozenBase:
    """A frozen base model on one device: latents, text and predictions for the trainer."""

    def __init__(self, model: Any, clip: Any, vae: Any, device: torch.device, node: str) -> None:
        hooks.text_layers(model, node)  # refuses what is no UNet
        kinds = comfy.model_base.ModelType
        if model.model.model_type not in (kinds.EPS, kinds.V_PREDICTION):
            raise ValueError(f"{node}: {hooks.model_name(model)} predicts neither noise nor velocity; it cannot be trained on.")
        self.model, self.clip, self.vae, self.device = model, clip, vae, device
        self.velocity = model.model.model_type == kinds.V_PREDICTION
        self.alphas = (1 / (1 + model.get_model_object("model_sampling").sigmas.double() ** 2)).float()
        model.model.requires_grad_(False)
        self.place()
        with torch.no_grad():
            self.empty = self._text([""])[0]

    @classmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype, node: str) -> FrozenBase:
        """From a checkpoint's path, or `PLAYGROUND`. Raises ValueError naming the file and what it lacks."""
        if name == PLAYGROUND:
            return cls(playground.load_model(), playground.load_clip(), playground.load_vae(), device, node)
        if not Path(name).is_file():
            raise ValueError(f"{node}: the base {name!r} is no file. Give a checkpoint's path, or {PLAYGROUND!r}.")
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(name, model_options={"dtype": dtype})
        if model is None or clip is None or vae is None:
            raise ValueError(f"{node}: {Path(name).name} lacks a UNet, a text encoder or a VAE. Give a whole checkpoint.")
        return cls(model, clip, vae, device, node)

    def place(self) -> None:
        """The UNet on the training device, where sampling may have taken it away from."""
        self.model.model.diffusion_model.to(self.device)

    @property
    def unet(self) -> Any:
        return self.model.model.diffusion_model

    def encoders(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each text encoder, in the order in which the host joins them."""
        parts = dict(self.clip.cond_stage_model.named_children())
        found = [(name.removeprefix("clip_"), part) for name, part in parts.items() if hasattr(part, "special_tokens")]
        return tuple((name, int(part.transformer.get_input_embeddings().weight.shape[1])) for name, part in found)

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text features [b, 77, c] and the pooled ones [b, c]: the first chunk of each caption, as the host encodes it."""
        features, pooled = [], []
        for caption in captions:
            found = self.clip.tokenize(caption, disable_weights=True)  # the brackets of a caption are no prompt's
            tokens = {name: chunks[:1] for name, chunks in found.items()}
            text, whole = self.clip.encode_from_tokens(tokens, return_pooled=True)
            features.append(text)
            pooled.append(whole)
        joined = None if pooled[0] is None else torch.cat(pooled).to(self.device)
        return torch.cat(features).to(self.device), joined

    @torch.no_grad()
    def conditions(self, captions: Sequence[str], dropped: Tensor, side: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the UNet reads: text features, and SDXL's size embedding with the pooled text.

        A dropped prompt is zeros for SDXL, as its adapter was trained, and the encoded empty text for the others, as users sample them.
        """
        text, pooled = self._text(captions)
        gone = dropped.to(self.device)
        size = {"device": self.device, "width": side, "height": side, "target_width": side, "target_height": side}
        zeros = pooled is not None and self.unet.num_classes is not None
        text = torch.where(gone.view(-1, 1, 1), torch.zeros_like(text) if zeros else self.empty, text)
        if pooled is None or not zeros:
            return text, {}
        pooled = torch.where(gone.view(-1, 1), torch.zeros_like(pooled), pooled)
        return text, {"y": self.model.model.encode_adm(pooled_output=pooled, **size).to(self.device)}

    @torch.no_grad()
    def latents(self, pixels: Tensor, seed: int) -> Tensor:
        """Pictures [b, h, w, 3] in 0..1 -> latents in the UNet's scale. The VAE draws its noise from the global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.vae.encode(pixels)
        return self.model.model.process_latent_in(found).float().to(self.device)

    def as_noise(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What the UNet said of noisy latents x at timesteps t, as predicted noise."""
        if not self.velocity:
            return out
        a = self.alphas.to(x)[t].view(-1, 1, 1, 1)
        return a.sqrt() * out + (1 - a).sqrt() * x
