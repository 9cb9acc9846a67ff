"""Coloured images to labels: every pixel gets the class of its colour, in spite of JPEG noise and soft edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .palettes import (
    AUTOMATIC_NAME,
    MAX_CLASSES,
    NUMBERS_ONLY,
    PALETTE_NAMES,
    VOID,
    Colour,
    Palette,
    named_palette,
    palette_of_colours,
)
from .semantic_map import SemanticMap

# The numbers below were chosen on random maps of every named palette, saved as JPEG of quality 75 and 50 or halved by a bicubic filter.

#: Farther than this from its class's colour, a pixel cannot be part of an area; nor with another colour less than 1 / _CLEAR as far.
_CERTAIN = 12.0
_CLEAR = 0.6
#: Neighbours in an area of no known colour differ by no more than this in any channel.
_NOISE = 8
#: A class with fewer pixels in areas than this is noise (in pictures of 64 x 64 and more).
_LEAST = 16
#: How far an unsettled pixel looks. JPEG halves the resolution of colour, so its edges are three to four pixels wide.
_REACH = 3
#: More unsettled pixels than this, and than half of the image, are not worth the time: a photo.
_MANY = 1 << 18
_NONE = -1
_ROWS = 1 << 14
#: RGB to brightness (doubled) and two colour differences: JPEG blurs these more, so they count less. Straight lines stay straight.
_LUMA_CHROMA = np.array([[0.598, -0.169, 0.5], [1.174, -0.331, -0.419], [0.228, 0.5, -0.081]], dtype=np.float32)


def snap_to_palette(image: Tensor, palette: Palette, tolerance: float = 32.0, clean_edges: bool = True) -> SemanticMap:
    """The class of each pixel: the nearest palette colour in RGB, within the tolerance; otherwise void.

    With `clean_edges`, a pixel without an exact palette colour is settled by its neighbours: if its colour is a mixture of two
    neighbouring classes, it becomes the nearer one. Without this, an edge between two classes shows a third one, whose colour happens
    to lie between theirs. Exact colours are never changed.

    Args:
        image: [b, h, w, c] in 0..1; c is 1 (gray), 3 or 4. Values beyond are clipped. Where the fourth channel is below a half: void.
        tolerance: largest distance in RGB, 0..255 a channel. 0 accepts exact colours only.

    Raises:
        ValueError: another shape, no pixels, NaN or infinity, a tolerance that is negative or NaN.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: {tolerance} is not a distance; give 0 (exact colours) to 442 (every colour).")
    rgb, visible = image_to_bytes(image)
    colours, indices = _distinct(rgb)
    found = _Nearest(colours, *_nearest(colours, palette))
    own = np.where(found.distances <= tolerance, found.labels, VOID).astype(np.uint8)
    result = np.take(own, indices, mode="clip")
    if clean_edges and tolerance > 0 and found.distances.any():
        for row in range(len(rgb)):
            result[row] = _clean(rgb[row], result[row], indices[row], found, palette, tolerance)
    if visible is not None:
        result[~visible] = VOID
    return SemanticMap(torch.from_numpy(result), palette)


def colours_of_image(image: Tensor, tolerance: float = 32.0) -> Palette:
    """The palette of a map with unknown classes: the colours of its areas, the largest area first, named `#rrggbb`.

    A colour counts where an area at least two pixels wide has it, so that soft edges make no classes. In an image with JPEG noise, colours
    within the tolerance of a larger class that cover less than a thousandth are noise. With tolerance 0 every distinct colour is a class.
    A batch gets one palette.

    Raises:
        ValueError: as `snap_to_palette`; or more than 255 colours.
    """
    rgb, visible = image_to_bytes(image)
    codes, indices = _distinct(rgb)
    if tolerance > 0:
        interior = _interior(rgb)
        counted = interior if interior.any() else np.ones_like(interior)
    else:
        counted = np.ones(indices.shape, dtype=bool)
    if visible is not None:
        counted &= visible
    counts = np.bincount(indices[counted], minlength=len(codes))
    chosen = _peaks(codes, counts, tolerance, pixels=indices.size)
    if len(chosen) > MAX_CLASSES:
        raise ValueError(
            f"image: it has {'at least ' if tolerance > 0 else ''}{len(chosen)} colours, a map at most {MAX_CLASSES} classes. "
            "Raise the tolerance to merge similar ones, choose the palette that the map was drawn with, or check that it is a map, not a photo."
        )
    return palette_of_colours(chosen)


AUTOMATIC = AUTOMATIC_NAME


def choose_palette(image: Tensor, name: str, tolerance: float, like: SemanticMap | None = None) -> Palette:
    """The palette of `like` if there is one, else one of PALETTE_NAMES by name, else (AUTOMATIC) the image's own colours.

    Raises:
        ValueError: an unknown name, or as `colours_of_image`.
    """
    if like is not None:
        return like.palette
    return colours_of_image(image, tolerance) if name == AUTOMATIC else named_palette(name)


@dataclass(frozen=True)
class PaletteFit:
    """How much of an image lies within the tolerance of a palette's colours (void's colour not counted), 0..1.

    `ties`: other palettes that fit exactly as well.
    """

    name: str
    share: float
    ties: tuple[str, ...] = ()


def best_palette(image: Tensor, tolerance: float = 32.0) -> PaletteFit:
    """The named palette that fits an image best, judged on at most 128 x 128 pixels of the first image."""
    step = max(1, max(image.shape[1:3]) // 128)
    rgb, _ = image_to_bytes(image[:1, ::step, ::step])
    codes, indices = _distinct(rgb)
    counts = np.bincount(indices.ravel(), minlength=len(codes))
    fits = []
    for name in (each for each in PALETTE_NAMES if each not in NUMBERS_ONLY):
        labels, distances, _ = _nearest(codes, named_palette(name))
        # Closeness breaks ties: with a wide tolerance ADE20K's 150 colours accept almost anything.
        closeness = np.clip(1.0 - distances / (tolerance + 1.0), 0.0, 1.0) * (labels != VOID)
        fits.append(PaletteFit(name, float((counts * closeness).sum() / counts.sum())))
    best = max(fits, key=lambda fit: fit.share)
    return PaletteFit(best.name, best.share, tuple(f.name for f in fits if f is not best and f.share == best.share))


def palette_distances(colours: np.ndarray, palette: Palette) -> np.ndarray:
    """How far each colour [u, 3] is from the nearest colour of the palette, void included, [u]."""
    return _nearest(colours, palette)[1]


def image_to_bytes(image: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """An IMAGE as [b, h, w, 3] uint8, and where it is opaque [b, h, w] bool (None: everywhere).

    Raises:
        ValueError: another shape, no pixels, NaN or infinity.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or image.numel() == 0:
        raise ValueError(
            f"image: shape {tuple(image.shape)}; a label image is [batch, height, width, 1, 3 or 4 channels] with at least one pixel."
        )
    image = image.detach().to("cpu", torch.float32)
    if not torch.isfinite(image.sum()) and not torch.isfinite(image).all():
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(
            f"image: {bad} values are NaN or infinite. The image comes from a run that failed (often half precision in the VAE); "
            "decode it again in float32, or load the map from a file."
        )
    visible = None
    if image.shape[-1] == 4:
        visible = (image[..., 3] >= 0.5).numpy()
        visible = None if visible.all() else visible
        image = image[..., :3]
    elif image.shape[-1] == 1:
        image = image.expand(*image.shape[:3], 3)
    return (image * 255.0).round_().clamp_(0, 255).to(torch.uint8).contiguous().numpy(), visible


def _distinct(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct colours [u, 3] float32, and for each pixel which of them it has [b, h, w].

    A table of all 2**24 colours instead of sorting: 30 times faster on two million pixels.
    """
    codes = rgb[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= rgb[..., channel]
    present = np.zeros(1 << 24, dtype=bool)
    present[codes] = True
    distinct = np.flatnonzero(present)
    rank = np.empty(1 << 24, dtype=np.int32)
    rank[distinct] = np.arange(len(distinct), dtype=np.int32)
    colours = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], axis=1).astype(np.float32)
    return colours, np.take(rank, codes, mode="clip")


def _nearest(
    colours: np.ndarray, palette: Palette, present: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The palette colour nearest to each colour: its label [u], its distance [u], and the distance of the runner-up [u].

    Of classes that share a colour it is the first, void comes last. `present` [256] bool: consider these labels only.
    """
    entries: dict[Colour, int] = {}
    for label, colour in [*enumerate(palette.colours), (VOID, palette.void_colour)]:
        if present is None or present[label]:
            entries.setdefault(colour, label)
    labels = np.array(list(entries.values()), dtype=np.uint8)
    table = torch.tensor(list(entries), dtype=torch.float32)  # [k, 3]
    squares = (table * table).sum(dim=1)
    best = np.empty(len(colours), dtype=np.int64)
    distances = np.full((2, len(colours)), np.inf, dtype=np.float32)
    for start in range(0, len(colours), _ROWS):
        rows = torch.from_numpy(colours[start : start + _ROWS])
        # |c - p|^2 without |c|^2, in whole numbers below 2^24: float32 is exact.
        squared = torch.addmm(squares, rows, table.T, alpha=-2.0)
        own = (rows * rows).sum(dim=1)
        value, index = squared.min(dim=1)
        best[start : start + _ROWS] = index.numpy()
        distances[0, start : start + _ROWS] = (value + own).clamp_(min=0).sqrt_().numpy()
        if len(table) > 1:
            value = squared.scatter_(1, index[:, None], torch.inf).amin(dim=1)
            distances[1, start : start + _ROWS] = (value + own).clamp_(min=0).sqrt_().numpy()
    return labels[best], distances[0], distances[1]


@dataclass(frozen=True)
class _Nearest:
    """The distinct colours of a batch, [u, 3], and what `_nearest` found for them."""

    colours: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    runners_up: np.ndarray


def _clean(
    rgb: np.ndarray, labels: np.ndarray, indices: np.ndarray, found: _Nearest, palette: Palette, tolerance: float
) -> np.ndarray:
    """Labels [h, w] of one image in which an edge shows only classes of its two sides.

    1. An area is where a 2x2 block has, up to noise, one colour of the palette. Only classes that have an area are in the image;
       where a block has one colour that belongs to none of the classes, the area is void. Pixels of areas are settled.
    2. Every other pixel asks the settled ones around it, twice, so that edges up to a dozen pixels wide are covered.
    3. The rest takes the nearest colour of the classes in the image, if that is within the tolerance.
    """
    certain = (found.distances <= min(tolerance, _CERTAIN)) & (found.distances <= _CLEAR * found.runners_up)
    exact = np.take(found.distances == 0, indices, mode="clip")
    far = found.distances > tolerance
    settled = _blocks(rgb, labels, np.take(certain | far, indices, mode="clip"), np.take(far, indices, mode="clip"))
    lossless = exact.mean() >= 0.5
    if lossless:  # then a single pixel of an exact colour is meant
        settled |= exact
    if settled.all():
        return labels
    least = 1 if lossless else max(1, min(_LEAST, settled.size // 256))
    present = np.bincount(labels[settled], minlength=256) >= least
    settled &= present[labels]
    if not present.any() or (~settled).sum() > max(0.5 * settled.size, _MANY):
        return labels  # so few areas: no map
    own_labels, own_distances, _ = _nearest(found.colours, palette, present)
    own = np.where(own_distances <= tolerance, own_labels, VOID).astype(np.uint8)
    result = np.where(settled, labels, np.take(own, indices, mode="clip"))
    seen = np.concatenate([found.colours @ _LUMA_CHROMA, np.full((1, 3), 1e4, dtype=np.float32)])  # the last: no neighbour
    for _ in range(2):
        result, settled = _ask_neighbours(result, settled, indices, seen, own_distances, tolerance)
    return result


def _ask_neighbours(
    labels: np.ndarray, settled: np.ndarray, indices: np.ndarray, seen: np.ndarray, own_distances: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and settled [h, w] after every unsettled pixel has looked at the first settled one in each of eight directions.

    For a pixel of colour c, with P the nearest to c of those eight colours and Q any of them, the mixture error is the distance of c
    from the line P..Q. It becomes P's class if that explains c about as well as c's own nearest colour does. `seen` and
    `own_distances` belong to the distinct colours, which `indices` [h, w] names.
    """
    h, w = labels.shape
    width = w + 2 * _REACH
    position = np.full((h + 2 * _REACH, width), _NONE, dtype=np.int32)  # of settled pixels, in a border of none
    position[_REACH : _REACH + h, _REACH : _REACH + w] = np.where(settled, np.arange(h * w, dtype=np.int32).reshape(h, w), _NONE)
    position = position.ravel()
    steps = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])
    flat_labels, flat_settled = labels.ravel().copy(), settled.ravel().copy()
    flat_indices = np.append(indices.ravel(), len(seen) - 1)  # position -1: no neighbour
    unsettled = np.flatnonzero(~settled)
    for start in range(0, len(unsettled), _ROWS):
        pixels = unsettled[start : start + _ROWS]
        centre = (pixels // w + _REACH) * width + pixels % w + _REACH
        around = position[centre[:, None] + steps]  # [n, 8]
        for distance in range(2, _REACH + 1):
            around = np.where(around == _NONE, position[centre[:, None] + distance * steps], around)
        asked = (around != _NONE).any(axis=1)
        pixels, around = pixels[asked], around[asked]
        if len(pixels) == 0:
            continue
        own = flat_indices[pixels]
        offset = torch.from_numpy(np.take(seen, flat_indices[around], axis=0) - seen[own][:, None])  # q - c: [n, 8, 3]
        nearest = offset.square().sum(dim=-1).argmin(dim=1)
        rows = torch.arange(len(pixels))
        to_p = offset[rows, nearest][:, None]  # p - c
        line = offset - to_p  # q - p
        along = (-(to_p * line).sum(dim=-1) / line.square().sum(dim=-1).clamp_(min=1e-6)).clamp_(0.0, 1.0)
        error = (to_p + along[..., None] * line).square().sum(dim=-1).amin(dim=1).sqrt_().numpy()
        take = (error <= 3.0 * tolerance) & (error <= own_distances[own] + tolerance)
        neighbour = around[rows.numpy(), nearest.numpy()]
        flat_labels[pixels[take]] = flat_labels[neighbour[take]]
        flat_settled[pixels[take]] = True
    return flat_labels.reshape(h, w), flat_settled.reshape(h, w)


def _blocks(rgb: np.ndarray, labels: np.ndarray, sure: np.ndarray, far: np.ndarray) -> np.ndarray:
    """The pixels of 2x2 blocks that are sure and have one label, [h, w] bool; far ones also need one colour up to JPEG noise."""
    h, w = labels.shape
    tall, wide = min(h, 2), min(w, 2)
    block = np.ones((h - tall + 1, w - wide + 1), dtype=bool)
    windows = [(slice(dy, dy + block.shape[0]), slice(dx, dx + block.shape[1])) for dy in range(tall) for dx in range(wide)]
    for window in windows:
        block &= sure[window]
        block &= labels[window] == labels[windows[0]]
    uncertain = np.nonzero(block & far[windows[0]])
    if len(uncertain[0]):
        corner, even = rgb[windows[0]][uncertain].astype(np.int16), np.ones(len(uncertain[0]), dtype=bool)
        for window in windows[1:]:
            even &= (np.abs(rgb[window][uncertain] - corner) <= _NOISE).all(axis=-1)
        block[uncertain] = even
    result = np.zeros((h, w), dtype=bool)
    for window in windows:
        result[window] |= block
    return result


def _interior(rgb: np.ndarray) -> np.ndarray:
    """Where a pixel and its right, lower and diagonal neighbour have one colour up to JPEG noise, [b, h, w] bool."""
    b, h, w, _ = rgb.shape
    same = np.ones((b, h, w), dtype=bool)
    signed = rgb.astype(np.int16)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        if h > dy and w > dx:
            near = (np.abs(signed[:, dy:, dx:] - signed[:, : h - dy, : w - dx]) <= 6).all(axis=-1)
            same[:, : h - dy, : w - dx] &= near
    return same


def _peaks(colours: np.ndarray, counts: np.ndarray, tolerance: float, pixels: int) -> list[Colour]:
    """The colours that represent the others, the most frequent first; stops one past the limit."""
    order = np.flatnonzero(counts)
    order = order[np.argsort(-counts[order], kind="stable")]
    colours, counts = colours[order], counts[order]
    least = min(4, max(1, pixels // 4))
    if tolerance == 0 or _are_apart(colours):
        return _as_colours(colours if tolerance == 0 else colours[counts >= least])
    chosen: list[np.ndarray] = []
    radius = min(tolerance, _CERTAIN)
    for _ in range(4 * MAX_CLASSES):
        if counts.sum() < least or len(chosen) > MAX_CLASSES:
            break
        members = np.square(colours - colours[0]).sum(axis=1) <= radius**2
        size = counts[members].sum()
        apart = min((float(np.sqrt(np.square(colours[0] - other).sum())) for other in chosen), default=np.inf)
        if size >= least and (apart > tolerance or size >= 0.001 * pixels):
            chosen.append(colours[0])
        colours, counts = colours[~members], counts[~members]
    return _as_colours(chosen)


def _are_apart(colours: np.ndarray) -> bool:
    """Whether no two colours are so near that only compression explains it; then the file is without loss."""
    if len(colours) > MAX_CLASSES:
        return False
    gaps = np.square(colours[:, None] - colours).sum(axis=-1) + np.diag(np.full(len(colours), np.inf))
    return not (gaps < 5.0**2).any()


def _as_colours(rows: np.ndarray | list[np.ndarray]) -> list[Colour]:
    return [(int(red), int(green), int(blue)) for red, green, blue in rows]
