"""The categorical matching cost C of AM-Adapter (arXiv 2412.03150): which exemplar tokens share a target token's class.

    C[i, j] = sum_k p^Y[i, k] p^X[j, k]        p: share of class k in a token's cell of the layer's grid, so C is within 0..1

C is kept as its two factors. A block of rows is one small matrix product, and the matrix of all pairs never exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Grid = tuple[int, int]  # rows, columns

#: Side of the maps that the published code compares, and of the largest grid it matches on.
PUBLISHED_SIDE = 32


@dataclass(frozen=True)
class Behaviour:
    """Where the published code is followed although it departs from the paper's formulas.

    Args:
        transposed: rows of C are exemplar tokens, columns target tokens, although the logits are the other way round.
        flat: matrices over tokens are resized as if they were images. Square grids of 8, 16, 32 or 64 cells a side only.
        joint_peak: one peak for all rows of a call, the unconditional ones included, instead of one per row.
        part_encoder: each part of the UNet uses the encoder that was made for it; otherwise all use the first.
    """

    transposed: bool
    flat: bool
    joint_peak: bool
    part_encoder: bool


PUBLISHED_CODE = Behaviour(transposed=True, flat=True, joint_peak=True, part_encoder=False)
PAPER_FORMULAS = Behaviour(transposed=False, flat=False, joint_peak=False, part_encoder=True)


@dataclass(frozen=True, eq=False)
class ClassAgreement:
    """C for one pair of grids, as factors.

    Args:
        rows: [b, l, k] class shares of each query token.
        keys: [b, m, k] class shares of each key token. Same classes in the same order.
    """

    rows: Tensor
    keys: Tensor

    def block(self, rows: slice = slice(None)) -> Tensor:
        """C for some rows: [b, r, m], 0..1."""
        return self.rows[:, rows] @ rearrange(self.keys, "b m k -> b k m")

    def harden(self) -> ClassAgreement:
        """The same with only the largest class of each cell, so that C is 0 or 1. A void cell still matches nothing."""
        return ClassAgreement(_largest(self.rows), _largest(self.keys))

    def size_correction(self) -> Tensor:
        """-log(n_c / n_mean) of each exemplar token's class: [b, m]. Added to the logits, it weighs each class of the exemplar equally.

        n_c is the number of cells of class c. Cells without a class get 0, mixed cells the mean of their classes.
        """
        count = self.keys.sum(dim=1)
        present = count > 0
        mean = count.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
        offset = torch.where(present, -(count / mean.clamp(min=1e-12)).clamp(min=1e-12).log(), 0.0)
        return torch.einsum("b m k, b k -> b m", self.keys, offset)

    def select(self, rows: list[int]) -> ClassAgreement:
        """Some images of the batch. A batch of one is returned unchanged, since it serves all."""
        return ClassAgreement(*(side if side.shape[0] == 1 else side[rows] for side in (self.rows, self.keys)))

    def to(self, device: torch.device, dtype: torch.dtype) -> ClassAgreement:
        """The same on another device, in another number format. Half precision is enough for shares."""
        return ClassAgreement(self.rows.to(device, dtype), self.keys.to(device, dtype))


def compare_classes(
    target: Tensor,
    exemplar: Tensor,
    target_grid: Grid,
    exemplar_grid: Grid,
    *,
    behaviour: Behaviour = PAPER_FORMULAS,
    void: int | None = None,
) -> ClassAgreement:
    """Compare two label maps on the grids of one layer.

    Args:
        target, exemplar: [b, h, w] class labels of one palette, any sizes; batches equal or 1.
        target_grid, exemplar_grid: rows and columns of the tokens (of the matching grids for the matcher).
        behaviour: `flat` samples the maps as the published code does, from a 32x32 version in flat order.
        void: a label that matches nothing, not even itself. None if every label is a class.

    Returns:
        C of the two as factors, float32, on the maps' device. With `transposed`, the exemplar is on the rows.

    Raises:
        ValueError: `transposed` with different grids, or `flat` with grids that the published code does not support.
    """
    if behaviour.transposed and target_grid[0] * target_grid[1] != exemplar_grid[0] * exemplar_grid[1]:
        raise ValueError(
            f"AM-Adapter: the published code needs target and exemplar of one size, but their grids are {_format(target_grid)} "
            f"and {_format(exemplar_grid)}. Make both images the same size, or choose the behaviour corrected (paper formulas)."
        )
    classes = _classes(target, exemplar, void)
    shares = _flat_shares if behaviour.flat else class_shares
    rows, keys = shares(target, target_grid, classes), shares(exemplar, exemplar_grid, classes)
    return ClassAgreement(keys, rows) if behaviour.transposed else ClassAgreement(rows, keys)


def class_shares(labels: Tensor, grid: Grid, classes: list[int]) -> Tensor:
    """How much of each cell belongs to each class: [b, h, w] -> [b, l, k], float32, 0..1. Other labels add to no share.

    A map coarser than the grid along an axis is repeated along it first, so that every cell has pixels.
    """
    repeats = [-(-cells // size) for cells, size in zip(grid, labels.shape[-2:])]
    for axis, count in enumerate(repeats, start=1):
        labels = labels.repeat_interleave(count, dim=axis) if count > 1 else labels
    # One class at a time: a one-hot map of 255 classes at full size would be huge.
    shares = [F.adaptive_avg_pool2d((labels == label).float(), grid) for label in classes]
    if not shares:
        return torch.zeros(labels.shape[0], grid[0] * grid[1], 0, device=labels.device)
    return rearrange(torch.stack(shares, dim=-1), "b h w k -> b (h w) k")


def _flat_shares(labels: Tensor, grid: Grid, classes: list[int]) -> Tensor:
    """[b, l, k], as in the published code: of the 32x32 map, flattened, every (1024 / l)-th cell is taken."""
    tokens = grid[0] * grid[1]
    if grid[0] != grid[1] or tokens > PUBLISHED_SIDE**2 or PUBLISHED_SIDE**2 % tokens:
        raise ValueError(
            f"AM-Adapter: the published code supports square grids of 8, 16 or 32 cells a side, not {_format(grid)}. "
            "Use images of 512x512, or choose the behaviour corrected (paper formulas)."
        )
    small = F.interpolate(rearrange(labels, "b h w -> b 1 h w").float(), (PUBLISHED_SIDE, PUBLISHED_SIDE), mode="nearest")
    line = rearrange(small, "b 1 h w -> b (h w) 1")[:, :: PUBLISHED_SIDE**2 // tokens]
    return (line == torch.tensor(classes, device=line.device, dtype=line.dtype)).float()


def _classes(target: Tensor, exemplar: Tensor, void: int | None) -> list[int]:
    """Every label of both maps. Those of only one map agree with nothing, but they decide which class is a cell's largest."""
    return sorted((set(target.unique().tolist()) | set(exemplar.unique().tolist())) - {void})


def _largest(shares: Tensor) -> Tensor:
    """[b, l, k] -> 1 for the class with the largest share, 0 elsewhere and in cells that are mostly void."""
    if shares.shape[-1] == 0:
        return shares
    top, label = shares.max(dim=-1, keepdim=True)
    nothing = 1.0 - shares.sum(dim=-1, keepdim=True)
    # 1e-3: shares that sum to 1 but for rounding, also in half precision, are not void.
    return torch.zeros_like(shares).scatter_(-1, label, ((top > 0) & (top >= nothing - 1e-3)).to(shares.dtype))


def _format(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
