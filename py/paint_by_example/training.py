"""Training: exemplars that are no copies of what is to be painted, holes that betray no outline, and the input of the UNet.

Paper section 3: the exemplar is cut out of the same picture and flipped, turned, blurred and warped; the hole is one of `shapes.py`; the
condition is replaced by the learned null token in a fifth of the cases; the tower is frozen, everything behind it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import ExemplarMapper

PADDING = 10 / 512  # of the picture: room around the exemplar's box, at most
AREA = (0.02, 0.8)  # of the picture: boxes that are used


@dataclass(frozen=True)
class Augmentation:
    """How often and how far an exemplar is changed. The published values."""

    flip: float = 0.5
    rotate: float = 0.5
    degrees: float = 20.0
    blur: float = 0.3
    blur_sigma: float = 0.012  # of the side, at most
    warp: float = 0.3
    warp_amount: float = 0.04  # of the side: the deviation of the displacement

    def __call__(self, squares: Tensor, rng: torch.Generator) -> Tensor:
        """Exemplars [n, 3, s, s] in 0..1, each changed on its own."""
        n, side = len(squares), squares.shape[-1]

        def chosen(share: float) -> Tensor:
            return (torch.rand(n, generator=rng) < share).float()

        turn = chosen(self.rotate) * (torch.rand(n, generator=rng) * 2 - 1) * self.degrees * torch.pi / 180
        mirror = 1 - 2 * chosen(self.flip)
        cosine, sine, zero = turn.cos(), turn.sin(), torch.zeros(n)
        rows = torch.stack([torch.stack([mirror * cosine, -mirror * sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
        grid = F.affine_grid(rows, list(squares.shape), align_corners=False)
        coarse = torch.randn(n, 2, 5, 5, generator=rng) * 2 * self.warp_amount * chosen(self.warp).view(-1, 1, 1, 1)
        bend = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
        grid = grid + bend.movedim(1, -1)
        moved = F.grid_sample(squares, grid.to(squares), mode="bilinear", padding_mode="border", align_corners=False)
        sigma = chosen(self.blur) * torch.rand(n, generator=rng) * self.blur_sigma * side
        return torch.stack([_blurred(picture, float(s)) for picture, s in zip(moved, sigma)])


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    if sigma < 0.3:
        return picture
    radius = int(3 * sigma + 0.5)
    t = torch.arange(-radius, radius + 1, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.pad(picture[None], (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[..., None, :], groups=3)
    return F.conv2d(x, kernel[..., :, None], groups=3)[0]


def exemplar_box(box: tuple[float, float, float, float], side: int, rng: torch.Generator) -> tuple[int, int, int, int]:
    """A box x0 y0 x1 y1 in 0..1 as whole pixels of a square picture, with up to `PADDING` of room on each side."""
    room = (torch.rand(4, generator=rng) * PADDING * side).tolist()
    x0, y0 = (max(0, int(value * side - more)) for value, more in zip(box[:2], room[:2]))
    x1, y1 = (min(side, round(value * side + more)) for value, more in zip(box[2:], room[2:]))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def usable(box: tuple[float, float, float, float]) -> bool:
    """Is this box of a size that the method trains with?"""
    return AREA[0] <= (box[2] - box[0]) * (box[3] - box[1]) <= AREA[1]


def context_of(mapper: ExemplarMapper, pooled: Tensor, drop: float, rng: torch.Generator) -> Tensor:
    """Tokens [b, 1, c] of class tokens [b, width]; a share `drop` of them is the null token instead.

    Upstream drops whole batches; here each sample is drawn for itself, which has the same mean and less noise.
    """
    dropped = torch.rand(len(pooled), generator=rng) < drop
    tokens = mapper(pooled)
    return torch.where(dropped.view(-1, 1, 1).to(tokens.device), mapper.null.to(tokens.dtype), tokens)


def unet_input(noisy: Tensor, known: Tensor, hole: Tensor) -> Tensor:
    """[noisy latent | masked picture | 1 - hole] along channels: [b, 4 + 4 + 1, h, w]. `hole` [b, 1, h, w], 1 where it is painted."""
    return torch.cat([noisy, known.to(noisy), 1 - hole.to(noisy)], dim=1)
