"""Texts without their padding.

An encoder fills every text up to one length, and the padding tokens summarise the whole text. Where several texts share an image these
summaries compete: each describes an image with its own object only, so the first object that appears suppresses the others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

CHUNK = 77  # positions in one chunk of a CLIP text encoder


def encode_unpadded(clip: Any, text: str) -> Tensor:
    """One text encoded by the host's CLIP as CLIP Text Encode does, prompt syntax included: [m, c], without the padding."""
    tokens = clip.tokenize(text)
    return clip.encode_from_tokens(tokens)[0, : _count_used(tokens)].detach()


def without_padding(tokens: Tensor, pooled: Tensor | None) -> Tensor:
    """A CONDITIONING's tokens [b, n, c] up to the end of its longest text where that can be found, else all of them.

    It can be found for texts of one chunk by an encoder whose pooled vector [b, c] is the token at the end of the text: Stable Diffusion
    1.x without CLIP skip, and the playground. Tokens of other encoders and of exemplars are returned unchanged.
    """
    if tokens.shape[1] != CHUNK or pooled is None or pooled.shape != (tokens.shape[0], tokens.shape[2]):
        return tokens
    ends = (tokens == pooled[:, None].to(tokens)).all(dim=-1)
    if not bool(ends.any(dim=1).all()):
        return tokens
    return tokens[:, : int(ends.int().argmax(dim=1).max()) + 1]


def _count_used(tokens: dict[str, list]) -> int | None:
    """How many positions a text uses: start, words, end. None, for all of them, if it has several chunks."""
    counts = []
    for chunks in tokens.values():
        ids = [entry[0] for entry in chunks[0]] if len(chunks) == 1 else []
        last = len(ids)
        while last > 1 and _is_same(ids[last - 1], ids[last - 2]):
            last -= 1
        counts.append(last)
    return min(counts, default=0) or None  # encoders pad with their end token or with another one behind it


def _is_same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b  # a textual inversion's rows are tensors
