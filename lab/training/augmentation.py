"""Small changes to images of objects that a model must know again, so that it learns the thing and not the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How often (shares of the images) and how far an exemplar is changed. The defaults are Paint by Example's published values."""

    flip: float = 0.5
    rotate: float = 0.5
    degrees: float = 20.0
    blur: float = 0.3
    blur_sigma: float = 0.012  # of the side, at most
    warp: float = 0.3
    warp_amount: float = 0.04  # of the side: the deviation of the displacement
    zoom: float = 0.0
    zoom_most: float = 2.0
    colour: float = 0.0
    colour_amount: float = 0.5  # brightness, contrast and saturation are multiplied by up to 1 +- this
    grey: float = 0.0

    def __call__(self, squares: Tensor, rng: torch.Generator) -> Tensor:
        """Exemplars [n, 3, s, s] in 0..1, each changed on its own."""
        n, side = len(squares), squares.shape[-1]

        def chosen(share: float) -> Tensor:
            return (torch.rand(n, generator=rng) < share).float()

        turn = chosen(self.rotate) * (torch.rand(n, generator=rng) * 2 - 1) * self.degrees * torch.pi / 180
        mirror = 1 - 2 * chosen(self.flip)
        cosine, sine, zero = turn.cos(), turn.sin(), torch.zeros(n)
        rows = torch.stack([torch.stack([mirror * cosine, -mirror * sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
        if self.zoom:
            factor = 1 + chosen(self.zoom) * torch.rand(n, generator=rng) * (self.zoom_most - 1)
            rows = rows / factor.view(-1, 1, 1)
        grid = F.affine_grid(rows, list(squares.shape), align_corners=False)
        coarse = torch.randn(n, 2, 5, 5, generator=rng) * 2 * self.warp_amount * chosen(self.warp).view(-1, 1, 1, 1)
        bend = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
        grid = grid + bend.movedim(1, -1)
        moved = F.grid_sample(squares, grid.to(squares), mode="bilinear", padding_mode="border", align_corners=False)
        if self.colour or self.grey:
            moved = self._tinted(moved, chosen(self.colour), chosen(self.grey), rng)
        sigma = chosen(self.blur) * torch.rand(n, generator=rng) * self.blur_sigma * side
        return torch.stack([_blurred(picture, float(s)) for picture, s in zip(moved, sigma)])

    def _tinted(self, squares: Tensor, coloured: Tensor, grey: Tensor, rng: torch.Generator) -> Tensor:
        spread = 1 + coloured[:, None] * (torch.rand(len(squares), 3, generator=rng) * 2 - 1) * self.colour_amount
        bright, contrast, saturation = spread.view(-1, 3, 1, 1, 1).unbind(1)
        squares = squares * bright
        middle = squares.mean(dim=(1, 2, 3), keepdim=True)
        squares = middle + (squares - middle) * contrast
        plain = squares.mean(dim=1, keepdim=True)
        return (plain + (squares - plain) * saturation * (1 - grey.view(-1, 1, 1, 1))).clamp(0, 1)


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
