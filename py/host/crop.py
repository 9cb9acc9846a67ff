"""Crop an image to a size that a model works on, and paste the result back: Crop to Edit, Paint by Example Prepare and Stitch."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.crop import CropRecord, fit_rotated_window, fit_window, paste_back
from ..imaging.faces import face_tilt
from ..imaging.masks import Box, feather_mask, grow_mask, mask_bounds, pad_box
from ..semantic.palettes import VOID
from ..semantic.semantic_map import SemanticMap
from . import notices
from .inputs import check_choice, check_image, check_integer, check_mask, check_number, list_names

CROP, STITCH = "Crop to Edit", "Stitch"
CELL = 8  # pixels of a latent cell
LARGEST_SIDE, WIDEST_BAND, MOST_CONTEXT = 8192, 512, 10.0
MOST_PIXELS = 2**26  # of a window that is larger than its image
AROUND, WHOLE = "around the hole", "whole picture"
WINDOWS = (AROUND, WHOLE)
UPRIGHT, BY_EYES = "none", "by the eyes"
ALIGNMENTS = (UPRIGHT, BY_EYES)
RATIO_TOLERANCE = 0.02  # upscalers round sides


def record_crop(
    image: Tensor,
    mask: Tensor,
    *,
    width: int,
    height: int,
    window: str,
    context: float,
    grow: int,
    feather: int,
    node: str,
    item: str = "object",
) -> CropRecord:
    """The windows around what masks select in images.

    Args:
        image, mask: [b, h, w, c] and [b, h, w]; a single one is used for all of the other.
        width, height: of the windows that the model works on, multiples of 8.
        window: one of `WINDOWS`.
        context: margin on each side in sides of the mask's bounding box, for windows around the hole.
        grow, feather: pixels of the source, see `imaging.crop`.
        node: for messages. item: what the user should paint over, for messages.

    An image whose mask is empty passes through unchanged, as frames in which a detector found nothing.

    Raises:
        ValueError: names the input, the value and the remedy; all masks are empty.
    """
    check_image(image, node)
    source = (image if image.ndim == 4 else image[None]).detach().cpu()
    source = source if source.shape[-1] >= 3 else source.expand(*source.shape[:-1], 3)
    masks = check_mask(mask, node)
    width, height = (
        check_integer(side, node, name, CELL, LARGEST_SIDE, CELL) for name, side in (("width", width), ("height", height))
    )
    grow, feather = (check_integer(v, node, name, 0, WIDEST_BAND) for name, v in (("grow", grow), ("feather", feather)))
    context = check_number(context, node, "context", 0.0, MOST_CONTEXT)
    check_choice(window, node, "window", WINDOWS)
    source, masks = _match_batches(source, masks, node)
    if masks.shape[-2:] != source.shape[1:3]:
        masks = F.interpolate(masks[:, None], size=source.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    image_size = (source.shape[2], source.shape[1])
    selected = (masks > 0.5).float()
    empty = [index for index, one in enumerate(selected) if not one.any()]
    if len(empty) == len(selected):
        which = "mask is empty" if len(selected) == 1 else f"all {len(selected)} masks are empty"
        raise ValueError(f"{node}: the {which} (nothing is above one half). Paint over the {item}.")
    if empty:
        numbers = list_names(str(index + 1) for index in empty)
        notices.warn_user(f"{node}: no mask for image {numbers} of {len(selected)} (empty); it passes through unchanged.")
    holes, weights, boxes = [], [], []
    for one in selected:
        comfy.model_management.throw_exception_if_processing_interrupted()
        hole = grow_mask(one[None], grow)
        weights.append(feather_mask(hole, feather)[0])
        holes.append(hole[0])
        bounds = mask_bounds(hole[0])
        if bounds is None or window == WHOLE:
            boxes.append((0, 0, *image_size))
        else:
            box = fit_window(bounds, image_size, (width, height), context, pad_box(bounds, feather, image_size))
            boxes.append(_check_extent(box, image_size, (width, height), node))
    return CropRecord(source, torch.stack(holes), torch.stack(weights), tuple(boxes), (width, height))


def _match_batches(image: Tensor, mask: Tensor, node: str) -> tuple[Tensor, Tensor]:
    count = max(len(image), len(mask))
    if len(image) not in (1, count) or len(mask) not in (1, count):
        raise ValueError(
            f"{node}: image has a batch of {len(image)} and mask has a batch of {len(mask)}. "
            "Connect one of either, or the same number of both."
        )
    return image.expand(count, *image.shape[1:]), mask.expand(count, *mask.shape[1:])


def _check_extent(box: Box, image_size: tuple[int, int], size: tuple[int, int], node: str) -> Box:
    w, h = box[2] - box[0], box[3] - box[1]
    if w * h > max(MOST_PIXELS, 4 * image_size[0] * image_size[1]):
        raise ValueError(
            f"{node}: width {size[0]} and height {size[1]} give a window of {w} x {h} pixels around this mask. "
            "Choose a width and a height whose ratio is closer to that of the mask."
        )
    return box


def crop_to_edit(
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
) -> tuple[Tensor, Tensor, SemanticMap | None, CropRecord]:
    """The windows around what a mask selects, for an editor of another size, such as CA2-SIS for a face in a photo.

    Args:
        image, mask, width, height, context, grow, feather: as for `record_crop`.
        semantic_map: of the whole image and of its size; one is used for all images.
        align: one of `ALIGNMENTS`; by the eyes rotates the window until the eyes of the masked face are level and above its mouth.

    Returns:
        Images [b, height, width, 3], masks [b, height, width], their maps (None without one), and the record for `stitch`.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    check_choice(align, CROP, "align", ALIGNMENTS)
    record = record_crop(
        image, mask, width=width, height=height, window=AROUND, context=context, grow=grow, feather=feather, node=CROP
    )
    labels = None
    if semantic_map is not None:
        labels = semantic_map.labels
        if labels.shape[-2:] != record.source.shape[1:3] or len(labels) not in (1, len(record.source)):
            (h, w), (rows, columns) = record.source.shape[1:3], semantic_map.size
            raise ValueError(
                f"{CROP}: semantic_map has {len(labels)} maps of {columns}x{rows} for {len(record.source)} images of {w}x{h}. "
                "Connect the map of the whole image: one, or as many as there are images."
            )
        labels = labels.cpu().expand(len(record.source), *labels.shape[1:])
    if align == BY_EYES:
        if semantic_map is None or labels is None:
            raise ValueError(
                f"{CROP}: align is {align!r}, but semantic_map is empty. Connect the map of the face, or choose none."
            )
        record = _align_by_eyes(record, labels, semantic_map.names, context, feather)
    maps = None
    if semantic_map is not None and labels is not None:
        maps = SemanticMap(record.label_windows(labels, VOID), semantic_map.palette)
    return record.windows().movedim(1, -1), record.holes()[:, 0], maps, record


def _align_by_eyes(record: CropRecord, labels: Tensor, names: tuple[str, ...], context: float, feather: int) -> CropRecord:
    angles, reasons = [], {}
    masked = [index for index, hole in enumerate(record.hole) if hole.any()]
    for index, (hole, one) in enumerate(zip(record.hole, labels)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            angles.append(face_tilt(one, names, hole) if index in masked else 0.0)
        except ValueError as error:
            angles.append(0.0)
            reasons[index] = str(error)
    remedy = "Choose none for align, or look at the map in Semantic Map Preview."
    if len(reasons) == len(masked):
        raise ValueError(f"{CROP}: {next(iter(reasons.values()))}, so the face cannot be aligned. {remedy}")
    for index, reason in reasons.items():
        notices.warn_user(f"{CROP}: image {index + 1} is not aligned: {reason}. {remedy}")
    boxes = tuple(
        fit_rotated_window(hole, angle, record.size, context, weight) if angle else box
        for hole, weight, angle, box in zip(record.hole, record.weight, angles, record.boxes)
    )
    return replace(record, boxes=boxes, angles=tuple(angles))


def stitch(image: Tensor, record: CropRecord, colour_match: float = 0.0, together: bool = False) -> Tensor:
    """Results [n, h, w, c] in their images. Outside of the grown and feathered mask these are the source's pixels, bit for bit.

    Args:
        together: with several masks of one image, paste all results into one copy of it.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    colour_match = check_number(colour_match, STITCH, "colour_match", 0.0, 1.0)
    if torch.is_tensor(image) and image.is_floating_point() and not image.isfinite().all():
        raise ValueError(
            f"{STITCH}: image contains NaN or infinite values. The sampling failed; a VAE in half precision is a common cause."
        )
    image = check_image(image, STITCH)
    (width, height), (rows, columns) = record.size, image.shape[1:3]
    if abs(columns * height / (rows * width) - 1) > RATIO_TOLERANCE:
        notices.warn_user(
            f"{STITCH}: image is {columns} x {rows}, but the window that it replaces is {width} x {height}; it is stretched. "
            "Connect the result of this window."
        )
    interrupted = comfy.model_management.throw_exception_if_processing_interrupted
    try:
        return paste_back(image, record, colour_match, bool(together), interrupted)
    except ValueError as error:
        raise ValueError(f"{STITCH}: {error}") from None
