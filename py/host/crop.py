"""A window of a picture for an editor of another size, such as CA2-SIS for a face in a photo; Stitch puts the result back."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..imaging import crop as stitching
from ..imaging.crop import Cut
from ..semantic.palettes import VOID
from ..semantic.semantic_map import SemanticMap
from .paint_by_example.prepare import cut_around

NODE = "Crop to Edit"
UPRIGHT, BY_EYES = "none", "by the eyes"
ALIGNMENTS = (UPRIGHT, BY_EYES)
EYES = ("l_eye", "r_eye", "eye")  # as CelebAMask-HQ and as the playground call them


def crop(
    image: Tensor,
    mask: Tensor,
    semantic_map: SemanticMap | None = None,
    *,
    width: int = 256,
    height: int = 256,
    context: float = 0.3,
    grow: int = 0,
    feather: int = 12,
    align: str = UPRIGHT,
) -> tuple[Tensor, Tensor, SemanticMap | None, Cut]:
    """The windows around what a mask shows.

    Args:
        image, mask: [b, h, w, c] and [b, h, w]; one of either serves all of the other.
        semantic_map: of the whole picture, of its size; one serves all pictures.
        context: room on each side, in sides of what the mask shows.
        grow, feather: pixels of the source, see `stitching`.
        align: one of `ALIGNMENTS`; by the eyes turns the window until the eyes of the map are level.

    Returns:
        Pictures [b, height, width, 3], masks [b, height, width], their maps (None without one), and what Stitch needs.

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    cut = cut_around(image, mask, width, height, "around the hole", context, grow, feather, NODE)
    labels = None
    if semantic_map is not None:
        labels = semantic_map.labels
        if labels.shape[-2:] != cut.source.shape[1:3] or len(labels) not in (1, len(cut.source)):
            (h, w), (rows, columns) = cut.source.shape[1:3], semantic_map.size
            raise ValueError(
                f"{NODE}: semantic_map has {len(labels)} maps of {columns}x{rows} for {len(cut.source)} pictures of {w}x{h}. "
                "Give the map of the whole picture, one or as many as pictures."
            )
        labels = labels.expand(len(cut.source), *labels.shape[1:])
    if align == BY_EYES:
        if semantic_map is None or labels is None:
            raise ValueError(
                f"{NODE}: align is {align!r}, but semantic_map is empty. Connect the map of the face, or choose none."
            )
        angles = tuple(tilt(one, semantic_map.names) for one in labels)
        boxes = tuple(
            stitching.turned_window_around(hole, angle, (width, height), context) if angle else box
            for hole, angle, box in zip(cut.hole, angles, cut.boxes)
        )
        cut = replace(cut, boxes=boxes, angles=angles)
    maps = None
    if semantic_map is not None and labels is not None:
        maps = SemanticMap(cut.label_windows(labels, VOID), semantic_map.palette)
    return cut.windows().movedim(1, -1), cut.holes()[:, 0], maps, cut


def tilt(labels: Tensor, names: tuple[str, ...]) -> float:
    """By how many radians, clockwise, a face leans whose eyes are in these labels [h, w].

    Raises:
        ValueError: there are no two eyes.
    """
    eyes = torch.isin(labels, torch.tensor([n for n, name in enumerate(names) if name in EYES], dtype=labels.dtype))
    y, x = torch.nonzero(eyes).T.double()
    # One class may hold both eyes: what is left and what is right of their middle.
    left = x < (x.min() + x.max()) / 2 if len(x) else eyes.flatten()[:0]
    if not left.any() or left.all():
        raise ValueError(
            f"{NODE}: semantic_map shows no two eyes (classes {', '.join(EYES)}), by which the face would be turned. "
            "Choose none for align, or look at the map in Semantic Map Preview."
        )
    return math.atan2(float(y[~left].mean() - y[left].mean()), float(x[~left].mean() - x[left].mean()))
