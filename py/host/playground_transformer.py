"""The playground's transformer base: a `NextDiT` as Z-Image has it, in the host's own class, small enough for a CPU.

It attends to one sequence [text | image | references]. Reference images are latents that are laid below the noisy latent, which is how
they become further image tokens with separate positions on every host: a row of them is as wide as the image, and what a row leaves
free is zero.
"""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .playground import CONTEXT_DIM, load_base, read_weights

FILE = "transformer"  # below assets/playground
KEY = "exemplary_playground"
CONDITION = "playground_references"
REFERENCE_SIDE = 64  # pixels: the size of the reference images that it was trained with
NETWORK_CONFIG = {
    "image_model": "lumina2",
    "patch_size": 1,
    "in_channels": 4,
    "dim": 256,
    "n_layers": 8,
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": CONTEXT_DIM,
    "axes_dims": [8, 12, 12],
    "axes_lens": [512, 64, 64],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}


class PlaygroundTransformerConfig(comfy.supported_models.Lumina2):
    """Z-Image's shape at width 256 with 4 latent channels."""

    unet_config = NETWORK_CONFIG
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {"multiplier": 1.0, "shift": 2.0}
    supported_inference_dtypes = [torch.float32, torch.bfloat16]

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> PlaygroundTransformer:
        return PlaygroundTransformer(self, device=device)


class PlaygroundTransformer(comfy.model_base.Lumina2):
    """The host's Lumina 2 model, with `reference_latents` as trailing rows of the image."""

    def extra_conds(self, **kwargs: Any) -> dict:
        references = kwargs.pop("reference_latents", None)
        out = super().extra_conds(**kwargs)
        out.pop("clip_text_pooled", None)  # newer hosts hand it to models that this is not
        if references:
            out[CONDITION] = comfy.conds.CONDList([self.process_latent_in(latent) for latent in references])
        return out

    def reference_owners(self, latent: Tensor, conditions: dict[str, Any]) -> list[int]:
        """The reference of each token after the image, -1 for what rows of references leave free. For `host/joint`."""
        references, width = conditions.get(CONDITION) or (), latent.shape[-1]
        places, rows = place_references(references, width)
        owners = torch.full((rows, width), -1)
        for index, (reference, (top, left)) in enumerate(zip(references, places)):
            h, w = reference.shape[-2:]
            owners[top : top + h, left : left + w] = index
        return owners.flatten().tolist()


def place_references(references: Any, width: int) -> tuple[list[tuple[int, int]], int]:
    """Where references [b, c, h, w] go: (top, left) of each in rows of `width` cells, and how many rows there are in all.

    Raises:
        ValueError: a reference is wider than the image.
    """
    places, top, left, height = [], 0, 0, 0
    for reference in references:
        h, w = reference.shape[-2:]
        if w > width:
            raise ValueError(
                f"Playground transformer: a reference image is {8 * w} pixels wide, the image only {8 * width}. Give a smaller reference; "
                f"the model was trained with {REFERENCE_SIDE}x{REFERENCE_SIDE} pixels."
            )
        if left + w > width:
            top, left, height = top + height, 0, 0
        places.append((top, left))
        left, height = left + w, max(height, h)
    return places, top + height


def append_references(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """DIFFUSION_MODEL wrapper: [b, 4, h, w] with the references below it, and the result without them."""
    references = kwargs.pop(CONDITION, None)
    if not references:
        return executor(x, *args, **kwargs)
    places, rows = place_references(references, x.shape[-1])
    below = x.new_zeros(*x.shape[:-2], rows, x.shape[-1])
    for reference, (top, left) in zip(references, places):
        h, w = reference.shape[-2:]
        below[..., top : top + h, left : left + w] = reference.to(x)
    return executor(torch.cat([x, below], dim=-2), *args, **kwargs)[..., : x.shape[-2], :]


def load_transformer(weights: dict[str, Tensor] | None = None) -> comfy.model_patcher.ModelPatcher:
    """The transformer base as a MODEL. `weights`: in place of the shipped file. Raises FileNotFoundError if there is none."""
    sd = read_weights(FILE) if weights is None else dict(weights)
    patcher = load_base(PlaygroundTransformerConfig(dict(NETWORK_CONFIG)), sd)
    patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, append_references)
    return patcher
