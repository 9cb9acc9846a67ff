"""Which tokens of an attention call are which place of which picture, for which condition. Nothing here guesses from a square root."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .run import SamplingRun

Grid = tuple[int, int]  # rows, columns
View = tuple[float, float, float, float]  # x0 y0 x1 y1 of the picture, 0..1, that the model call sees
WHOLE: View = (0.0, 0.0, 1.0, 1.0)


def layer_grid(options: dict, tokens: int) -> Grid | None:
    """Rows and columns of the tokens of the calling layer, or None if they are no plain grid (another pack merged or tiled them).

    The host writes `activations_shape` before each transformer. Where it is missing or stale we halve `original_shape`, rounding up as
    the UNet's strided convolutions do, until the numbers agree.
    """
    shape = options.get("activations_shape")
    if shape is not None and shape[-2] * shape[-1] == tokens:
        return int(shape[-2]), int(shape[-1])
    shape = options.get("original_shape")
    if shape is None:
        return None
    h, w = int(shape[-2]), int(shape[-1])
    while h * w > tokens and h * w > 1:
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    return (h, w) if h * w == tokens else None


def chunks(options: dict, rows: int) -> list[tuple[int, int, int, bool]] | None:
    """[(chunk, first row, last row + 1, is it conditional)] of this call.

    A call holds one chunk per condition, in any order and number, each with the same number of latents: `cond_or_uncond` says 0 for a
    positive and 1 for a negative one. None if the rows do not divide into chunks (another pack rearranged them).
    """
    kinds = options.get("cond_or_uncond") or [0]
    size, rest = divmod(rows, len(kinds))
    if rest or size == 0:
        return None
    return [(chunk, chunk * size, (chunk + 1) * size, kind == 0) for chunk, kind in enumerate(kinds)]


def conditional_chunks(options: dict, rows: int) -> list[tuple[int, int, int]] | None:
    """[(chunk, first row, last row + 1)] of the conditional rows of this call; None as for `chunks`."""
    found = chunks(options, rows)
    return None if found is None else [(chunk, first, last) for chunk, first, last, conditional in found if conditional]


def frame_indices(options: dict, rows: int) -> tuple[int, ...]:
    """Which pictures of the latent batch the rows of one chunk are: all in order, or what a context window chose."""
    chosen = (options.get("ad_params") or {}).get("sub_idxs")
    if chosen is None:
        window = options.get("context_window")
        chosen = window.index_list if window is not None and getattr(window, "dim", 0) == 0 else None
    if chosen is None or len(chosen) != rows:
        return tuple(range(rows))
    return tuple(int(index) for index in chosen)


def chunk_view(run: SamplingRun, options: dict, chunk: int) -> View | None:
    """Which part of the picture a chunk sees: the whole, or the area that its CONDITIONING is limited to.

    None if the model sees a crop that the host does not tell us about (tiled samplers).
    """
    full_h, full_w = run.latent_shape[-2:]
    h, w = options.get("original_shape", run.latent_shape)[-2:]
    area = condition(run, options, chunk).get("area")
    if area is not None and len(area) == 4:
        y, x = area[2:]
        return x / full_w, y / full_h, (x + w) / full_w, (y + h) / full_h
    return WHOLE if (h, w) == (full_h, full_w) else None


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one condition in one call of one layer: which they are, their grid, the part of the picture, the pictures of the batch."""

    rows: slice
    grid: Grid
    view: View
    frames: tuple[int, ...]

    def of(self, batch: Tensor) -> Tensor:
        """What a batch of 1, or of all latents, holds for these rows."""
        return batch if batch.shape[0] == 1 else batch[list(self.frames)]


def conditional_rows(run: SamplingRun, options: dict, q: Tensor, node: str, lost: str) -> Iterator[Rows]:
    """The conditional rows of queries [rows, l, c] whose places are known. Of others the log says once that `lost`, a sentence's end."""
    grid, found = layer_grid(options, q.shape[1]), conditional_chunks(options, q.shape[0])
    if grid is None or found is None:
        run.warn_once(f"{node}: another node rearranges the places of an attention layer; {lost} there.")
        return
    for chunk, first, last in found:
        view = chunk_view(run, options, chunk)
        if view is None:
            run.warn_once(f"{node}: the model is given a part of the picture (a tiled sampler?), whose place is unknown; {lost}.")
        else:
            yield Rows(slice(first, last), grid, view, frame_indices(options, last - first))


def part_of(pictures: Tensor, view: View) -> Tensor:
    """The part of [..., h, w] that a view shows, at least one pixel of it."""
    if view == WHOLE:
        return pictures
    h, w = pictures.shape[-2:]
    x0, y0, x1, y1 = view
    top, left = min(int(y0 * h), h - 1), min(int(x0 * w), w - 1)
    return pictures[..., top : max(top + 1, round(y1 * h)), left : max(left + 1, round(x1 * w))]


def condition(run: SamplingRun, options: dict, chunk: int) -> dict[str, Any]:
    """The host's dictionary of the condition that a chunk of this call belongs to; {} if it cannot be told."""
    uuids = options.get("uuids") or []
    if chunk < len(uuids):
        for conditions in (getattr(run.guider, "conds", None) or {}).values():
            for condition in conditions or ():
                if condition.get("uuid") == uuids[chunk]:
                    return condition
    return {}


def batch_error(node: str, name: str, found: int, latents: int) -> ValueError:
    """The one sentence for a batch that is neither 1 nor as long as the latents."""
    return ValueError(
        f"{node}: {name} has {found} pictures, but {latents} latents are sampled. Give one (it is used for all) or {latents}."
    )


def to_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Same place and number format as `like`."""
    return tensor.to(device=like.device, dtype=like.dtype)
