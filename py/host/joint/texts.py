"""CONDITIONING of a phrase -> the text tokens that a transformer model receives, as its own code makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens [b, m, c] of one text and, if the model was given one, its mask [b, m]."""

    tokens: Tensor
    mask: Tensor | None


def encode_phrase(clip: Any, phrase: str) -> Any:
    """A phrase as CONDITIONING, through the text encoders of the MODEL's family and their prompt template, as CLIP Text Encode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(phrase))


def encode(model: Any, conditioning: Any, latent: Tensor) -> list[Text]:
    """The texts of a CONDITIONING, one per entry, as this model (the host's model object) would receive them.

    Args:
        latent: the model's input, for its shape and device.
    """
    conditions = comfy.sampler_helpers.convert_cond(conditioning)
    for condition in conditions:
        condition.setdefault("pooled_output", None)
    noise = torch.zeros((1, *latent.shape[1:]), device=latent.device)
    found = comfy.samplers.encode_model_conds(model.extra_conds, conditions, noise, latent.device, "positive")
    return [_text(model, entry["model_conds"], latent) for entry in found]


def _text(model: Any, conditions: dict[str, Any], latent: Tensor) -> Text:
    def value(name: str) -> Tensor | None:
        condition = conditions.get(name)
        return None if condition is None else condition.cond.to(latent.device)

    tokens, mask, ids = value("c_crossattn"), value("attention_mask"), value("t5xxl_ids")
    if tokens is None:
        raise ValueError("a conditioning has no text. Connect the output of a text encoder.")
    if ids is not None:  # with gradients the host leaves the adaption of the text to the network (Anima)
        tokens = adapt_text(model, tokens, ids, value("t5xxl_weights"))
    return Text(tokens.detach() if not torch.is_grad_enabled() else tokens, mask if mask is not None and mask.ndim == 2 else None)


def adapt_text(model: Any, tokens: Tensor, ids: Tensor, weights: Tensor | None) -> Tensor:
    """Anima's text: the network's own adapter, called as its forward would."""
    return model.diffusion_model.preprocess_text_embeds(tokens.to(model.get_dtype()), ids, t5xxl_weights=weights)
