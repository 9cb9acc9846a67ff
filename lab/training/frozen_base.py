"""The base model of a training: any checkpoint that ComfyUI loads, or the playground's models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import torch
from torch import Tensor, nn

from ...py.host import hooks, playground
from .diffusion import NoiseSchedule

PLAYGROUND = "playground"


def training_device() -> torch.device:
    """The device of this process, as accelerate assigns it. Call it before the host chooses one."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).device


def is_main_process() -> bool:
    """Whether this process writes the files."""
    from accelerate import PartialState

    return PartialState().is_main_process


class FrozenBase:
    """A frozen base model on one device: latents, text features and predictions for a trainer.

    Args:
        clip: may be None where a trainer encodes no text.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, device: torch.device, trainer: str) -> None:
        hooks.text_layers(model, trainer)  # refuses models without a UNet
        kinds = comfy.model_base.ModelType
        if model.model.model_type not in (kinds.EPS, kinds.V_PREDICTION):
            raise ValueError(
                f"{trainer}: {hooks.model_name(model)} predicts neither noise nor velocity, which training needs. Give another base."
            )
        self.model, self.clip, self.vae, self.device = model, clip, vae, device
        self.velocity = model.model.model_type == kinds.V_PREDICTION
        self.alphas_cumprod = (1 / (1 + model.get_model_object("model_sampling").sigmas.double() ** 2)).float()
        model.model.requires_grad_(False)
        self.move_to_device()
        if clip is not None:
            with torch.no_grad():
                self.empty = self._encode([""])[0]

    @classmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype, trainer: str) -> FrozenBase:
        """From a checkpoint's path, or `PLAYGROUND`. Raises ValueError naming the file and what it lacks."""
        if name == PLAYGROUND:
            return cls(playground.load_model(), playground.load_clip(), playground.load_vae(), device, trainer)
        if not Path(name).is_file():
            raise ValueError(f"{trainer}: the base {name!r} is not a file. Give the path of a checkpoint, or {PLAYGROUND!r}.")
        try:
            model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(name, model_options={"dtype": dtype})
        except Exception as error:  # the host raises many types for files that are damaged or of another kind
            raise ValueError(
                f"{trainer}: ComfyUI cannot load the base {Path(name).name} ({type(error).__name__}). "
                "Give a whole checkpoint with UNet, text encoder and VAE."
            ) from error
        if model is None or clip is None or vae is None:
            raise ValueError(f"{trainer}: {Path(name).name} lacks a UNet, a text encoder or a VAE. Give a whole checkpoint.")
        return cls(model, clip, vae, device, trainer)

    def move_to_device(self) -> None:
        """Put the UNet on the training device; sampling may have moved it to another."""
        self.unet.to(self.device)

    @property
    def unet(self) -> Any:
        return self.model.model.diffusion_model

    def unfreeze(self, is_trained: Callable[[str], bool]) -> nn.Module:
        """The UNet in float32 on the training device, with gradients for the parameters whose name `is_trained`."""
        unet = self.unet.float().to(self.device)
        unet.dtype = torch.float32
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(is_trained(name))
        return unet

    def noise_schedule(self, density: str = "uniform", snr_gamma: float = 0.0) -> NoiseSchedule:
        """The base's noise levels with a recipe's choices."""
        return NoiseSchedule(self.alphas_cumprod, density, snr_gamma)

    def encoders(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each text encoder, in the order in which the host joins them."""
        parts = dict(self.clip.cond_stage_model.named_children())
        found = [(name.removeprefix("clip_"), part) for name, part in parts.items() if hasattr(part, "special_tokens")]
        return tuple((name, int(part.transformer.get_input_embeddings().weight.shape[1])) for name, part in found)

    def _encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text features [b, 77, c] and the pooled ones [b, c]: the first chunk of each caption, as the host encodes it."""
        features, pooled = [], []
        for caption in captions:
            found = self.clip.tokenize(caption, disable_weights=True)  # brackets in a caption are not prompt weights
            tokens = {name: chunks[:1] for name, chunks in found.items()}
            text, whole = self.clip.encode_from_tokens(tokens, return_pooled=True)
            features.append(text)
            pooled.append(whole)
        joined = None if pooled[0] is None else torch.cat(pooled).to(self.device)
        return torch.cat(features).to(self.device), joined

    @torch.no_grad()
    def conditions(self, captions: Sequence[str], dropped: Tensor, side: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The UNet's conditioning: text features, and SDXL's size embedding with the pooled text.

        A dropped prompt is zeros for SDXL, as its adapter was trained, and the encoded empty text for the others, as users sample them.
        """
        text, pooled = self._encode(captions)
        gone = dropped.to(self.device)
        size = {"device": self.device, "width": side, "height": side, "target_width": side, "target_height": side}
        is_sdxl = pooled is not None and self.unet.num_classes is not None
        text = torch.where(gone.view(-1, 1, 1), torch.zeros_like(text) if is_sdxl else self.empty, text)
        if pooled is None or not is_sdxl:
            return text, {}
        pooled = torch.where(gone.view(-1, 1), torch.zeros_like(pooled), pooled)
        return text, {"y": self.model.model.encode_adm(pooled_output=pooled, **size).to(self.device)}

    @torch.no_grad()
    def latents(self, pixels: Tensor, seed: int) -> Tensor:
        """Images [b, h, w, 3] in 0..1 -> latents in the UNet's scale.

        A VAE that samples takes its noise from the global generator: it is seeded, so that a resumed run sees the same latents.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.vae.encode(pixels)
        return self.model.model.process_latent_in(found).float().to(self.device)

    def to_noise(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The UNet's output for noisy latents x at timesteps t, as predicted noise."""
        if not self.velocity:
            return out
        a = self.alphas_cumprod.to(x)[t].view(-1, 1, 1, 1)
        return a.sqrt() * out + (1 - a).sqrt() * x
