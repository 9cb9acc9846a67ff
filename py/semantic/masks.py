"""Named masks to a map, and back."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from .palettes import VOID, Palette, own_palette
from .semantic_map import SemanticMap, broadcast_batch


def paint_mask(
    semantic_map: SemanticMap | None,
    mask: Tensor,
    class_name: str,
    *,
    palette: Palette | None = None,
    background: str = "",
    threshold: float = 0.5,
) -> SemanticMap:
    """Paint one class where the mask is, over what is there; then fill what is still void with the background class.

    Args:
        semantic_map: the map to paint on. None begins with a void map of the mask's size.
        mask: [b, h, w] or [h, w] in 0..1. A mask of another size than the map is resized. 1 mask serves every map and the reverse.
        class_name: a class of the palette, or void to erase. An open palette takes new names.
        palette: for the first mask only; None is the open palette without classes.
        background: a class as above, or empty for none.
        threshold: the class is painted where the mask is at least this.

    Raises:
        ValueError: an unknown or empty class name, NaN in the mask, a mask without pixels, batches that do not match.
    """
    mask = mask_batch(mask)
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold: {threshold} would select everything or nothing; give a number above 0 and at most 1.")
    if semantic_map is None:
        labels = torch.full(mask.shape, VOID, dtype=torch.uint8)
        palette = own_palette() if palette is None else palette
    else:
        labels, palette = semantic_map.labels, semantic_map.palette
    palette, label = _label_of(palette, class_name, "class_name")
    fill = VOID
    if background.strip():
        palette, fill = _label_of(palette, background, "background")
    batch = broadcast_batch(len(mask), len(labels), "mask", "semantic_map")
    if mask.shape[1:] != labels.shape[1:]:
        mask = F.interpolate(mask[:, None], size=labels.shape[1:], mode="bilinear", align_corners=False, antialias=True)[:, 0]
    labels = labels.expand(batch, -1, -1).masked_fill(mask >= threshold, label)
    if fill != VOID:
        labels = labels.masked_fill_(labels == VOID, fill)
    return SemanticMap(labels, palette)


def paint_masks(
    semantic_map: SemanticMap | None,
    masks: Tensor,
    class_names: str,
    *,
    palette: Palette | None = None,
    background: str = "",
    threshold: float = 0.5,
) -> SemanticMap:
    """One map from a batch of masks with a name each, in painting order: where masks overlap, the later one wins.

    Args:
        masks: [n, h, w], a mask for each name.
        class_names: n names, separated by commas or lines. Otherwise as `paint_mask`.

    Raises:
        ValueError: another number of names than masks, or as `paint_mask`.
    """
    masks, names = mask_batch(masks), split_names(class_names)
    if len(names) != len(masks):
        raise ValueError(
            f"class_names: {len(names)} names for {len(masks)} masks ({', '.join(names[:24])}). Give one name per mask of the batch, in its "
            "order; a name may repeat."
        )
    for mask, name in zip(masks[:-1], names):
        semantic_map = paint_mask(semantic_map, mask, name, palette=palette, threshold=threshold)
    return paint_mask(semantic_map, masks[-1], names[-1], palette=palette, background=background, threshold=threshold)


def split_names(text: str) -> list[str]:
    """Names separated by commas or lines, without empty ones."""
    return [name for name in (part.strip() for part in re.split(r"[,\n]", text.replace("\ufeff", ""))) if name]


def mask_of_classes(semantic_map: SemanticMap, classes: str) -> Tensor:
    """Where the listed classes are, [b, h, w] float32, 1 there and 0 elsewhere. A class that the map does not have gives zeros.

    Args:
        classes: names or labels, separated by commas or lines; `*` is every class, without void.

    Raises:
        ValueError: nothing listed, or a name that is not a class of the palette.
    """
    wanted = class_labels(semantic_map.palette, classes, "classes")
    if not wanted:
        raise ValueError(f"classes: nothing is listed; name at least one of: {present_names(semantic_map)}.")
    table = torch.zeros(256)
    table[wanted] = 1.0
    return table[semantic_map.labels.int()]


def class_labels(palette: Palette, classes: str, where: str) -> list[int]:
    """The labels of names separated by commas or lines, each once, in order; `*` is every class. `where` names the input.

    Raises:
        ValueError: a name that is not a class of the palette.
    """
    labels: dict[int, None] = {}
    for word in split_names(classes):
        for label in range(len(palette.names)) if word == "*" else (palette.label(word, where),):
            labels[label] = None
    return list(labels)


def present_names(semantic_map: SemanticMap, most: int = 24) -> str:
    """The classes of the map, the largest first, for messages."""
    counts = semantic_map.counts().sum(dim=0)
    present = [label for label in counts.argsort(descending=True, stable=True).tolist() if counts[label] > 0]
    names = [semantic_map.palette.class_name(label) for label in present[:most]]
    return ", ".join([*names, "..."] if len(present) > most else names)


def mask_batch(mask: Tensor) -> Tensor:
    """A MASK as [b, h, w] float32 in 0..1 on the CPU, from [h, w], [b, h, w], [b, 1, h, w] or [b, h, w, 1]; 0..255 is scaled.

    Raises:
        ValueError: an image or another shape, no pixels, NaN or infinity.
    """
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask[:, 0] if mask.shape[1] == 1 else mask[..., 0]
    if mask.ndim not in (2, 3) or mask.numel() == 0:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)}; a mask is [batch, height, width] with at least one pixel. "
            "Convert an image with Convert Image to Mask first."
        )
    mask = mask.detach().to("cpu", torch.float32).reshape(-1, *mask.shape[-2:])
    if not torch.isfinite(mask).all():
        raise ValueError("mask: it has NaN or infinite values; the node that made it failed. Make the mask again, or draw one.")
    return mask / 255.0 if float(mask.max()) > 2.0 else mask  # 2: a sharp filter may overshoot 1


def _label_of(palette: Palette, name: str, where: str) -> tuple[Palette, int]:
    label = palette.find(name)
    if label is None and palette.is_open and name.strip():
        palette = palette.with_class(name)
        label = palette.find(name)
    return palette, palette.label(name, where) if label is None else label
