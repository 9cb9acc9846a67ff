"""Texts without their padding.

An encoder fills every text up to one length. What stands in the filling repeats what the whole text says, "one thing and nothing else".
Where several texts share a picture each would forbid the others: the first thing that appears leaves no room for any other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

CHUNK = 77  # positions of one chunk of a CLIP text encoder


def encoded(clip: Any, text: str) -> Tensor:
    """A text alone through the host's CLIP, as CLIPTextEncode would, any prompt syntax included: [m, c], without the padding."""
    tokens = clip.tokenize(text)
    return clip.encode_from_tokens(tokens)[0, : _used(tokens)].detach()


def without_padding(tokens: Tensor, pooled: Tensor | None) -> Tensor:
    """A CONDITIONING's tokens [b, n, c] up to the end of its longest text, where that can be told, or all of them.

    It can be told for texts of one chunk by an encoder whose pooled vector [b, c] is what stands at the end of the text: Stable
    Diffusion 1.x without CLIP skip, the playground. What other encoders made, and exemplars, are no such tokens and stay whole.
    """
    if tokens.shape[1] != CHUNK or pooled is None or pooled.shape != (tokens.shape[0], tokens.shape[2]):
        return tokens
    ends = (tokens == pooled[:, None].to(tokens)).all(dim=-1)
    if not bool(ends.any(dim=1).all()):
        return tokens
    return tokens[:, : int(ends.int().argmax(dim=1).max()) + 1]


def _used(tokens: dict[str, list]) -> int | None:
    """How many positions a text needs: start, words, end. None, for all of them, if it has several chunks."""
    counts = []
    for chunks in tokens.values():
        ids = [entry[0] for entry in chunks[0]] if len(chunks) == 1 else []
        last = len(ids)
        while last > 1 and _same(ids[last - 1], ids[last - 2]):
            last -= 1
        counts.append(last)
    return min(counts, default=0) or None  # encoders pad with their end token or with another one behind it


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b  # an embedding's rows are tensors
