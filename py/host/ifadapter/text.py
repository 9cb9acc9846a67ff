"""Phrases encoded by the host's CLIP as an IFAdapter takes them: raw hidden layers of every text encoder, one chunk, no prompt syntax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ifadapter.model import Config


@dataclass(frozen=True, eq=False)
class Phrases:
    """Encoded phrases: hidden [i, t, l, c], eot [i, 1, c], counts [i]; see `ifadapter.model.IFAdapter.tokens`."""

    hidden: Tensor
    eot: Tensor
    counts: Tensor

    def __deepcopy__(self, memo: dict) -> Phrases:
        return self


def encode_for_adapter(clip: Any, phrases: Sequence[str], config: Config, node: str) -> Phrases:
    """Encode phrases for an adapter.

    Weights such as (this:1.2) are plain text here, a phrase is cut off after one chunk, and the layers are those of the adapter whatever
    CLIP skip is set. A phrase that occurs twice is encoded once.

    Raises:
        ValueError: if this CLIP is not the text encoders that the adapter was trained with.
    """
    encoders = _encoders(clip, config, node)
    distinct = list(dict.fromkeys(phrases))
    chunks: dict[str, list] = {name: [] for name in encoders}
    counts = []
    for phrase in distinct:
        found = clip.tokenize(phrase, disable_weights=True)
        for name in encoders:
            chunk = [(entry[0], 1.0) for entry in found[name][0]]
            chunks[name].append(chunk[: config.phrase_length])
        counts.append(_count_used(chunks[config.encoders[0][0]][-1], encoders[config.encoders[0][0]]))
    layers = dict.fromkeys((*config.text_layers, config.eot_layer))
    with _without_last_norm(encoders.values()):
        hidden = {layer: _hidden(clip, chunks, layer, len(distinct)) for layer in layers}
    width = hidden[config.eot_layer].shape[-1]
    if width != config.width:
        raise ValueError(
            f"{node}: this CLIP produces text embeddings of width {width}, but the adapter was trained with width {config.width} "
            f"({_named(config)}). Connect the CLIP of the checkpoint that the adapter is for."
        )
    used = torch.tensor(counts)
    eot = hidden[config.eot_layer][torch.arange(len(distinct)), used - 1][:, None]
    order = torch.tensor([distinct.index(phrase) for phrase in phrases], dtype=torch.long)
    return Phrases(torch.stack([hidden[layer] for layer in config.text_layers], dim=1)[order], eot[order], used[order])


def _hidden(clip: Any, chunks: dict[str, list], layer: int, phrases: int) -> Tensor:
    """One hidden layer of all phrases, [i, l, c], with the channels of all encoders."""
    own = clip.clone()  # the layer is a setting of the CLIP value, which others use too
    own.clip_layer(layer)
    out = own.encode_from_tokens(chunks)
    return out[0].detach().float().unflatten(0, (phrases, -1))


def _count_used(chunk: list, encoder: Any) -> int:
    """Positions used: start, words, first end token."""
    end = encoder.special_tokens.get("end")
    for index, (token, _) in enumerate(chunk):
        if isinstance(token, int) and token == end:
            return index + 1
    return len(chunk)


def _encoders(clip: Any, config: Config, node: str) -> dict[str, Any]:
    """The text encoders by their names, in the adapter's order. Raises ValueError if they are not the adapter's."""
    if clip is None:
        raise ValueError(
            f"{node}: the CLIP input is empty. Connect the CLIP of the checkpoint; a diffusion model file has none inside."
        )
    model = clip.cond_stage_model
    every = {
        name.removeprefix("clip_"): part
        for name, part in model.named_children()
        if hasattr(part, "transformer") and hasattr(part, "special_tokens")
    }
    needed = [name for name, _ in config.encoders]
    if sorted(every) != sorted(needed):
        raise ValueError(
            f"{node}: the adapter uses the text encoders {_named(config)}, but this CLIP has {', '.join(sorted(every)) or 'none of that kind'}. "
            "Connect the CLIP of the checkpoint that the adapter is for; an SDXL adapter needs a CLIP with both l and g."
        )
    deepest = max(abs(layer) for layer in (*config.text_layers, config.eot_layer))
    for name in needed:
        if every[name].num_layers < deepest:
            raise ValueError(
                f"{node}: the adapter uses hidden layer -{deepest} of text encoder {name}, but this CLIP's has {every[name].num_layers} "
                "layers. Connect the CLIP of the checkpoint that the adapter is for."
            )
    return {name: every[name] for name in needed}


def _named(config: Config) -> str:
    return " and ".join(f"{name} (width {width})" for name, width in config.encoders)


@contextmanager
def _without_last_norm(encoders: Any) -> Iterator[None]:
    """Make the host return raw hidden layers; for Stable Diffusion 1.x it normalises them otherwise."""
    before = [(encoder, encoder.layer_norm_hidden_state) for encoder in encoders]
    try:
        for encoder, _ in before:
            encoder.layer_norm_hidden_state = False
        yield
    finally:
        for encoder, value in before:
            encoder.layer_norm_hidden_state = value
