"""The categorical matching cost C of AM-Adapter (arXiv 2412.03150): which exemplar places share a target place's class.

    C[i, j] = sum_k p^Y[i, k] p^X[j, k]        p: share of class k in a cell of the layer's grid, so C is within 0..1

C is kept as its two factors. A block of rows is one small matrix product, and the matrix of all pairs never exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Grid = tuple[int, int]  # rows, columns

#: Side of the maps that upstream compares, and of the largest grid it matches on.
UPSTREAM_SIDE = 32


@dataclass(frozen=True)
class Behaviour:
    """In which points the published code is followed where it departs from the formulas.

    Args:
        transposed: rows of C are exemplar places, columns target places, although the logits are the other way round.
        flat: matrices over tokens are resized as if they were pictures. Square grids of 8, 16, 32 or 64 cells a side only.
        joint_peak: one peak for all rows of a call instead of one a row.
        part_encoder: each part of the network has the encoder that was made for it; otherwise all use the first.
    """

    transposed: bool
    flat: bool
    joint_peak: bool
    part_encoder: bool


UPSTREAM = Behaviour(transposed=True, flat=True, joint_peak=True, part_encoder=False)
CORRECTED = Behaviour(transposed=False, flat=False, joint_peak=False, part_encoder=True)


@dataclass(frozen=True, eq=False)
class Agreement:
    """C for one pair of grids, as factors.

    Args:
        rows: [b, l, k] class shares of each place that asks.
        keys: [b, m, k] class shares of each place that is asked. Same classes in the same order.
    """

    rows: Tensor
    keys: Tensor

    def block(self, rows: slice = slice(None)) -> Tensor:
        """C for some rows: [b, r, m], 0..1."""
        return self.rows[:, rows] @ rearrange(self.keys, "b m k -> b k m")

    def hard(self) -> Agreement:
        """The same with each cell's largest class alone, so that C is 0 or 1. A void cell still matches nothing."""
        return Agreement(_largest(self.rows), _largest(self.keys))

    def balance(self) -> Tensor:
        """-log(n_c / n_mean) of each exemplar place's class: [b, m]. Added to the logits, it gives each class of the exemplar the same say.

        n_c is the number of cells of class c. Cells without a class get 0, mixed cells the mean of their classes.
        """
        count = self.keys.sum(dim=1)
        present = count > 0
        mean = count.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(min=1)
        offset = torch.where(present, -(count / mean.clamp(min=1e-12)).clamp(min=1e-12).log(), 0.0)
        return torch.einsum("b m k, b k -> b m", self.keys, offset)

    def select(self, rows: list[int]) -> Agreement:
        """Some pictures of the batch. A batch of one stays as it is, since it serves all."""
        return Agreement(*(side if side.shape[0] == 1 else side[rows] for side in (self.rows, self.keys)))

    def to(self, device: torch.device, dtype: torch.dtype) -> Agreement:
        """The same elsewhere. Half precision is enough for shares."""
        return Agreement(self.rows.to(device, dtype), self.keys.to(device, dtype))


def agreement(
    target: Tensor,
    exemplar: Tensor,
    target_grid: Grid,
    exemplar_grid: Grid,
    *,
    behaviour: Behaviour = CORRECTED,
    void: int | None = None,
) -> Agreement:
    """Compare two label maps on the grids of one layer.

    Args:
        target, exemplar: [b, h, w] whole numbers of one alphabet, any sizes; batches equal or 1.
        target_grid, exemplar_grid: rows and columns of the tokens (of the matching grids for the matcher).
        behaviour: `flat` reads the maps as upstream does, from a 32x32 version in flat order.
        void: a label that matches nothing, not even itself. None if there is no such label.

    Returns:
        C of the two as factors, float32, on the maps' device. With `transposed`, the exemplar is on the rows.

    Raises:
        ValueError: `transposed` with different grids, or `flat` with grids that upstream does not have.
    """
    if behaviour.transposed and target_grid[0] * target_grid[1] != exemplar_grid[0] * exemplar_grid[1]:
        raise ValueError(
            f"AM-Adapter: the published orientation needs target and exemplar of one size, but their grids are {_named(target_grid)} "
            f"and {_named(exemplar_grid)}. Make both pictures the same size, or choose the corrected behaviour."
        )
    classes = _classes(target, exemplar, void)
    shares = _flat_shares if behaviour.flat else class_shares
    rows, keys = shares(target, target_grid, classes), shares(exemplar, exemplar_grid, classes)
    return Agreement(keys, rows) if behaviour.transposed else Agreement(rows, keys)


def class_shares(labels: Tensor, grid: Grid, classes: list[int]) -> Tensor:
    """How much of each cell belongs to each class: [b, h, w] -> [b, l, k], float32, 0..1. What is in no class is in no share.

    A map coarser than the grid in an axis is repeated along it first, so that every cell has its pixels.
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
    """[b, l, k], as upstream: the 32x32 map read as one line, of which every (1024 / l)-th cell is taken."""
    tokens = grid[0] * grid[1]
    if grid[0] != grid[1] or tokens > UPSTREAM_SIDE**2 or UPSTREAM_SIDE**2 % tokens:
        raise ValueError(
            f"AM-Adapter: the published behaviour knows square grids of 8, 16 or 32 cells a side, not {_named(grid)}. "
            "Use pictures of 512x512, or choose the corrected behaviour."
        )
    small = F.interpolate(rearrange(labels, "b h w -> b 1 h w").float(), (UPSTREAM_SIDE, UPSTREAM_SIDE), mode="nearest")
    line = rearrange(small, "b 1 h w -> b (h w) 1")[:, :: UPSTREAM_SIDE**2 // tokens]
    return (line == torch.tensor(classes, device=line.device, dtype=line.dtype)).float()


def _classes(target: Tensor, exemplar: Tensor, void: int | None) -> list[int]:
    """Every label of both maps. Those of one map alone agree with nothing, but they decide which class is a cell's largest."""
    return sorted((set(target.unique().tolist()) | set(exemplar.unique().tolist())) - {void})


def _largest(shares: Tensor) -> Tensor:
    """[b, l, k] -> 1 for the class with the largest share, 0 elsewhere and in cells that are void for the most part."""
    if shares.shape[-1] == 0:
        return shares
    top, place = shares.max(dim=-1, keepdim=True)
    nothing = 1.0 - shares.sum(dim=-1, keepdim=True)
    # 1e-3: shares that sum to 1 but for rounding, also in half precision, are not void.
    return torch.zeros_like(shares).scatter_(-1, place, ((top > 0) & (top >= nothing - 1e-3)).to(shares.dtype))


def _named(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
