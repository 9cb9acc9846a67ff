"""Which tokens of an attention call are which pixels of which image, for which condition. Nothing here guesses from a square root."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .run import SamplingRun, current_run

Grid = tuple[int, int]  # rows, columns
View = tuple[float, float, float, float]  # x0 y0 x1 y1 of the image, 0..1, that a model call processes
WHOLE: View = (0.0, 0.0, 1.0, 1.0)


def layer_grid(options: dict, tokens: int) -> Grid | None:
    """Rows and columns of the tokens of the calling layer, or None if they are not a plain grid (another pack merged or tiled them).

    The host writes `activations_shape` before each transformer; tokens that disagree with it were rearranged, even where they would fit
    a coarser layer. Without it, `original_shape` is halved, rounding up as the UNet's strided convolutions do, until the numbers agree.
    """
    shape = options.get("activations_shape")
    if shape is not None:
        return (int(shape[-2]), int(shape[-1])) if shape[-2] * shape[-1] == tokens else None
    shape = options.get("original_shape")
    if shape is None:
        return None
    h, w = int(shape[-2]), int(shape[-1])
    while h * w > tokens and h * w > 1:
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    return (h, w) if h * w == tokens else None


# Conditions

SHARED = ""  # instead of the name of a list, for a uuid that is in several lists


def condition(run: SamplingRun, options: dict, chunk: int) -> dict[str, Any]:
    """The host's dictionary of the condition that a chunk of this call belongs to; {} if it is unknown."""
    found = _named_condition(run, options, chunk)
    return {} if found is None else found[1]


def is_conditional(options: dict, chunk: int) -> bool:
    """Whether a chunk of this call belongs to a positive condition.

    The host numbers the conditions of a call in `cond_or_uncond` as its caller lists them. Most callers list the positive ones first, but
    some list the negative ones first, and extra passes (self-attention guidance, perpendicular negatives) pass only a negative list.
    So the condition is looked up by its uuid among those of the guider. A condition that the guider does not know was made by such an
    extra pass and is not what the user prompts for. Only callers that send no uuids are taken at their numbers: 0 is positive.
    """
    run = current_run(options)
    if run is not None and _uuid(options, chunk) is not None:
        found = _named_condition(run, options, chunk)
        if found is not None and found[0] != SHARED:
            # Guiders of other packs may have no list of this name; then every list counts that is not named as a negative one.
            return found[0] == "positive" or (not run.guider.conds.get("positive") and not _is_negative(found[0]))
        if found is None and run.get_or_make("conditions", dict):
            return False
    kinds = options.get("cond_or_uncond") or [0]
    return kinds[chunk] == 0


def _is_negative(name: str) -> bool:
    return any(word in name.lower() for word in ("neg", "uncond", "empty", "null"))


def _uuid(options: dict, chunk: int) -> Any:
    uuids = options.get("uuids") or []
    return uuids[chunk] if chunk < len(uuids) else None


def _named_condition(run: SamplingRun, options: dict, chunk: int) -> tuple[str, dict[str, Any]] | None:
    """The condition of a chunk and the name of the guider's list that contains it, looked up once a run; None if it is in no list."""
    uuid = _uuid(options, chunk)
    if uuid is None:
        return None
    known: dict[Any, tuple[str, dict[str, Any]]] = run.get_or_make("conditions", dict)
    if uuid not in known:  # the guider replaces its lists when sampling begins
        for name, found in (getattr(run.guider, "conds", None) or {}).items():
            for c in found or ():
                if c.get("uuid") is not None:
                    # For a positive with an area the host adds a copy of it, uuid included, to the negatives.
                    known[c["uuid"]] = (name if known.get(c["uuid"], (name,))[0] == name else SHARED, c)
    return known.get(uuid)


def chunks(options: dict, rows: int) -> list[tuple[int, int, int, bool]] | None:
    """[(chunk, first row, last row + 1, is it conditional)] of this call.

    A call holds one chunk per condition, in any order and number, each with the same number of latents. None if the rows do not divide
    into chunks, or are more or fewer than the call has: another pack rearranged them.
    """
    kinds = options.get("cond_or_uncond") or [0]
    shape = options.get("original_shape")
    size, rest = divmod(rows, len(kinds))
    if rest or size == 0 or (shape is not None and shape[0] != rows):
        return None
    return [(chunk, chunk * size, (chunk + 1) * size, is_conditional(options, chunk)) for chunk in range(len(kinds))]


def conditional_chunks(options: dict, rows: int) -> list[tuple[int, int, int]] | None:
    """[(chunk, first row, last row + 1)] of the conditional rows of this call; None as for `chunks`."""
    found = chunks(options, rows)
    return None if found is None else [(chunk, first, last) for chunk, first, last, conditional in found if conditional]


# Frames and views


def frame_indices(options: dict, rows: int) -> tuple[int, ...]:
    """Which images of the latent batch the rows of one chunk are: all in order, or those of a context window."""
    chosen = (options.get("ad_params") or {}).get("sub_idxs")
    if chosen is None:
        window = options.get("context_window")
        chosen = window.index_list if window is not None and getattr(window, "dim", 0) == 0 else None
    if chosen is None or len(chosen) != rows:
        return tuple(range(rows))
    return tuple(int(index) for index in chosen)


def chunk_view(run: SamplingRun, options: dict, chunk: int) -> View | None:
    """Which part of the image a chunk shows.

    The whole; the area that its CONDITIONING is limited to; a spatial context window of the host; or a tile of a tiled sampler, which is
    found by its values in the latent of the step. None if it is none of these.
    """
    full_h, full_w = run.latent_shape[-2:]
    h, w = options.get("original_shape", run.latent_shape)[-2:]
    area = condition(run, options, chunk).get("area")
    if area is not None and len(area) == 4 and tuple(area[:2]) == (h, w):
        return _view((area[2], area[3]), (h, w), (full_h, full_w))
    if (h, w) == (full_h, full_w):
        return WHOLE
    corner = _window_corner(options, (h, w), run.latent_shape) or _tile_corner(run, options, chunk)
    return None if corner is None else _view(corner, (h, w), (full_h, full_w))


def _view(corner: Grid, size: Grid, full: Grid) -> View:
    (y, x), (h, w), (full_h, full_w) = corner, size, full
    return x / full_w, y / full_h, (x + w) / full_w, (y + h) / full_h


def _window_corner(options: dict, size: Grid, full: tuple[int, ...]) -> Grid | None:
    """(row, column) where a context window over rows or columns of the latent begins; None if the call is not such a window."""
    window = options.get("context_window")
    axis = getattr(window, "dim", 0) - len(full)  # -2 rows, -1 columns
    if window is None or axis not in (-2, -1):
        return None
    indices = list(window.index_list)
    first = indices[0]
    # Looped schedules have windows that wrap around the edge: no rectangle.
    is_connected = indices == list(range(first, first + len(indices)))
    other = -3 - axis
    if not is_connected or size[axis] != len(indices) or size[other] != full[other]:
        return None
    return (first, 0) if axis == -2 else (0, first)


def _tile_corner(run: SamplingRun, options: dict, chunk: int) -> Grid | None:
    """(row, column) of the tile that a tiled sampler cut out of the latent of this step for a chunk; None if it is not found.

    Noise makes every part of a latent unlike the others, so the one place where all values agree is where the tile was cut.
    """
    whole, tile = run.step_latent, run.model_input
    kinds = options.get("cond_or_uncond") or [0]
    if whole is None or tile is None or whole.ndim != 4 or tile.ndim != 4 or len(tile) % len(kinds):
        return None
    size = len(tile) // len(kinds)
    frames = frame_indices(options, size)
    if max(frames) >= len(whole):
        return None
    part = tile[chunk * size : (chunk + 1) * size, : whole.shape[1]]
    return run.get_or_make_for_call(("tile", chunk), lambda: _find(_scaled(run, options, whole[list(frames)], part), part))


def _scaled(run: SamplingRun, options: dict, latent: Tensor, like: Tensor) -> Tensor:
    """Latents as the UNet gets them at this noise level."""
    sigma = torch.full((len(latent),), run.sigma(options), device=latent.device)
    return to_like(run.patcher.get_model_object("model_sampling").calculate_input(sigma, latent), like)


def _find(whole: Tensor, tile: Tensor) -> Grid | None:
    """(row, column) of the only place in [b, c, H, W] whose values are those of [b, c, h, w]."""
    h, w = tile.shape[-2:]
    rows, columns = whole.shape[-2] - h + 1, whole.shape[-1] - w + 1
    if whole.shape[:2] != tile.shape[:2] or rows < 1 or columns < 1:
        return None
    tolerance = 1e-2 * float(tile.float().std())
    apart = (whole[..., :rows, :columns] - tile[..., :1, :1]).abs().float().amax(dim=(0, 1))
    found = [
        (y, x)
        for y, x in (apart <= tolerance).nonzero().tolist()
        if float((whole[..., y : y + h, x : x + w] - tile).abs().max()) <= tolerance
    ]
    return found[0] if len(found) == 1 else None


def part_of(images: Tensor, view: View) -> Tensor:
    """The part of [..., h, w] that a view shows, at least one pixel of it."""
    if view == WHOLE:
        return images
    h, w = images.shape[-2:]
    x0, y0, x1, y1 = view
    top, left = min(int(y0 * h), h - 1), min(int(x0 * w), w - 1)
    return images[..., top : max(top + 1, round(y1 * h)), left : max(left + 1, round(x1 * w))]


# Rows of a layer


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one condition in one call of one layer.

    Args:
        rows: which rows of the call. grid: of the layer. view: the part of the image. frames: the images of the latent batch.
        chunk: its number in the call.
    """

    rows: slice
    grid: Grid
    view: View
    frames: tuple[int, ...]
    chunk: int = 0

    def of(self, batch: Tensor) -> Tensor:
        """The entries of a batch for these rows; a batch of 1 serves all."""
        return batch if batch.shape[0] == 1 else batch[list(self.frames)]


def conditional_rows(run: SamplingRun, options: dict, q: Tensor, node: str, lost: str, k: Tensor | None = None) -> Iterator[Rows]:
    """The conditional rows of queries [rows, l, c] whose pixels are known. Of others the log says once that `lost`, the end of a sentence.

    Args:
        k: of a self-attention layer, whose rows must be those of q; tiled layers of other packs have them apart.
    """
    grid, found = layer_grid(options, q.shape[1]), conditional_chunks(options, q.shape[0])
    if grid is None or found is None or (k is not None and k.shape[0] != q.shape[0]):
        run.warn_once(
            f"{node}: another node merges, tiles or multiplies the tokens of an attention layer (token merging, HyperTile, attention "
            f"couple); {lost} there."
        )
        return
    for chunk, first, last in found:
        view = chunk_view(run, options, chunk)
        if view is None:
            run.warn_once(
                f"{node}: a model call processes a part of the image (a tiled sampler?) whose position is unknown; {lost} there."
            )
        else:
            yield Rows(slice(first, last), grid, view, frame_indices(options, last - first), chunk)


def batch_error(node: str, name: str, found: int, latents: int) -> ValueError:
    """The error for a batch that is neither 1 nor as long as the latents."""
    return ValueError(
        f"{node}: {name} has {found} images, but {latents} latents are sampled. Connect one, which is used for all, or {latents}."
    )


def to_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor on the device and in the number format of `like`."""
    return tensor.to(device=like.device, dtype=like.dtype)
