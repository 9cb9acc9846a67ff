"""How far a face leans, from the labels of its eyes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .masks import mask_bounds

#: Names of classes as in CelebAMask-HQ, in face parsers derived from it, and in the playground.
EYES = ("l_eye", "r_eye", "eye", "eyes")
BELOW_EYES = (("mouth", "u_lip", "l_lip", "lips"), ("nose",), ("skin", "face"))  # the first that is present tells where down is
SPECK = 0.1  # pieces smaller than this share of the largest eye are errors of the map
APART = 1.3  # in lengths of an eye: two pieces nearer than this are one eye


def face_tilt(labels: Tensor, names: tuple[str, ...], mask: Tensor) -> float:
    """The angle in radians, -pi..pi, clockwise, by which the face that a mask selects leans.

    Eyes inside of the mask are used; if it has none (a mask of the skin or the hair), those inside of its bounding box; and if that has none
    either, the only two of the map.

    Args:
        labels: [h, w], numbers of classes. names: of the classes. mask: [h, w], above one half on the face.

    Raises:
        ValueError: there are not exactly two eyes.
    """
    box = mask_bounds(mask)
    pieces = _eye_pieces(labels, names)
    if box is None or not pieces:
        raise ValueError(f"semantic_map shows no eyes (classes {', '.join(EYES)})")
    x0, y0, x1, y1 = box
    in_box = torch.zeros_like(mask, dtype=torch.bool)
    in_box[y0:y1, x0:x1] = True
    by_mask, by_box = ([piece for piece in pieces if _share(piece, area) >= 0.5] for area in (mask > 0.5, in_box))
    pair = _find_pair(by_mask) or _find_pair(by_box) or (None if by_box else _find_pair(pieces))
    if pair is None:
        raise ValueError(f"semantic_map does not show two eyes of one face (classes {', '.join(EYES)}) where the mask is")
    (first_y, first_x), (second_y, second_x) = sorted((_centre(eye) for eye in pair), key=lambda point: point[1])
    dy, dx = second_y - first_y, second_x - first_x
    angle = math.atan2(dy, dx)
    down = _down(labels, names, in_box, ((first_y + second_y) / 2, (first_x + second_x) / 2), math.hypot(dx, dy))
    if down is not None and down[0] * math.cos(angle) - down[1] * math.sin(angle) < 0:
        angle -= math.copysign(math.pi, angle)
    return angle


def _eye_pieces(labels: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Connected regions [n, 2] (row, column) of eye classes, without specks."""
    from scipy import ndimage

    pieces = []
    for number, name in enumerate(names):
        if name not in EYES:
            continue
        box = mask_bounds((labels == number).to(torch.uint8))
        if box is None:
            continue
        x0, y0, x1, y1 = box
        regions, count = ndimage.label((labels[y0:y1, x0:x1] == number).cpu().numpy(), np.ones((3, 3)))
        for region in range(1, count + 1):
            points = torch.from_numpy(np.argwhere(regions == region))
            pieces.append(points + torch.tensor([y0, x0]))
    largest = max((len(piece) for piece in pieces), default=0)
    return [piece for piece in pieces if len(piece) >= SPECK * largest]


def _find_pair(pieces: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The two eyes [n, 2] that pieces form; an eye may be in several pieces. None unless there are exactly two."""
    if len(pieces) < 2:
        return None
    centres = torch.tensor([_centre(piece) for piece in pieces])
    distances = torch.cdist(centres, centres)
    first, second = divmod(int(distances.argmax()), len(pieces))
    is_first = distances[:, first] <= distances[:, second]
    eyes = tuple(
        torch.cat([piece for piece, chosen in zip(pieces, is_first.tolist()) if chosen == side]) for side in (True, False)
    )
    # Sorted by rows, so that means are the same however the pixels were grouped.
    eyes = tuple(eye[np.lexsort((eye[:, 1].numpy(), eye[:, 0].numpy()))] for eye in eyes)
    length = max(_length(piece) for piece in pieces)
    (ay, ax), (by, bx) = (_centre(eye) for eye in eyes)
    if max(_length(eye) for eye in eyes) > 2 * length or math.hypot(ay - by, ax - bx) < APART * length:
        return None
    return eyes[0], eyes[1]


def _down(
    labels: Tensor, names: tuple[str, ...], in_box: Tensor, middle: tuple[float, float], distance: float
) -> tuple[float, float] | None:
    """The direction (y, x) from the eyes to what is below them in an upright face; None if the map shows nothing of that."""
    for group in BELOW_EYES:
        numbers = torch.tensor([n for n, name in enumerate(names) if name in group], dtype=labels.dtype, device=labels.device)
        points = torch.nonzero(torch.isin(labels, numbers) & in_box).double()
        near = points[(points - points.new_tensor(middle)).norm(dim=1) < 4 * distance]
        if len(near):
            y, x = _centre(near)
            return y - middle[0], x - middle[1]
    return None


def _share(points: Tensor, area: Tensor) -> float:
    return float(area[points[:, 0], points[:, 1]].float().mean())


def _centre(points: Tensor) -> tuple[float, float]:
    y, x = points.T.double()
    return float(y.mean()), float(x.mean())


def _length(points: Tensor) -> int:
    return int((points.amax(dim=0) - points.amin(dim=0)).max()) + 1
