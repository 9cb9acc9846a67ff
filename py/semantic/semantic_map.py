"""The type that the nodes pass on: labels, class names, colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .palettes import VOID, Colour, Palette


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """Class labels of every pixel, with the names and colours of the classes.

    Args:
        labels: [b, h, w], whole numbers: the position of the class in the palette, or VOID (255) for no class. Kept as uint8 on the CPU
            and never written to afterwards.
        palette: names and colours of the labels.

    Raises:
        ValueError: labels of another shape, not whole numbers, without pixels, or outside the palette.
    """

    labels: Tensor
    palette: Palette

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.ndim != 3 or labels.numel() == 0:
            raise ValueError(
                f"semantic map: labels of shape {tuple(labels.shape)}; give [batch, height, width] with at least one pixel."
            )
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"semantic map: labels of type {labels.dtype}; give whole numbers.")
        if labels.dtype != torch.uint8:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > VOID:
                raise ValueError(f"semantic map: labels from {low} to {high}; classes are 0..254 and void is {VOID}.")
        labels = labels.detach().to("cpu", torch.uint8).contiguous()
        classes = len(self.palette.names)
        beyond = torch.bincount(labels.flatten(), minlength=256)[classes:VOID].nonzero()
        if len(beyond):
            raise ValueError(
                f"semantic map: label {classes + int(beyond[0])} is used, but the palette {self.palette.name!r} ends at {classes - 1}. "
                "Take the palette that the labels were made with."
            )
        object.__setattr__(self, "labels", labels)

    @property
    def names(self) -> tuple[str, ...]:
        return self.palette.names

    @property
    def colours(self) -> tuple[Colour, ...]:
        return self.palette.colours

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[1], self.labels.shape[2]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def counts(self) -> Tensor:
        """Pixels of every label, [b, 256] int64; column 255 is void."""
        return torch.stack([torch.bincount(labels.flatten(), minlength=256) for labels in self.labels])

    def shares(self) -> Tensor:
        """Part of the image that every label covers, [b, 256] float64 in 0..1."""
        return self.counts().double() / (self.labels.shape[1] * self.labels.shape[2])

    def to_image(self) -> Tensor:
        """The map drawn in its colours and nothing else, [b, h, w, 3] float32 in 0..1, as a ControlNet for segmentation expects it."""
        return torch.from_numpy(look_up(self.palette.colour_table().astype(np.float32) / 255.0, self.labels.numpy()))


def look_up(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """table[labels] for labels of any shape: `mode="clip"` skips the bounds check, and `take` is three times faster than indexing."""
    return np.take(table, labels, axis=0, mode="clip")


def broadcast_batch(count: int, other: int, what: str, other_what: str) -> int:
    """The batch of two inputs together: equal, or one of them 1.

    Raises:
        ValueError: any other pair; names both.
    """
    if count != other and 1 not in (count, other):
        raise ValueError(f"{what} holds {count} images, {other_what} {other}: give the same number, or 1 for all.")
    return max(count, other)
