"""Training: exemplars that are not copies of what is to be painted, holes that do not show an outline, and the input of the UNet.

Paper section 3: the exemplar is cut out of the same image and flipped, rotated, blurred and warped; the hole is one of `shapes.py`; the
condition is replaced by the learned null token in a fifth of the cases; the tower is frozen, everything behind it is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import ExemplarMapper

PADDING = 10 / 512  # of the image: the largest margin around the exemplar's box
AREA = (0.02, 0.8)  # of the image: boxes that are used


def exemplar_box(box: tuple[float, float, float, float], side: int, rng: torch.Generator) -> tuple[int, int, int, int]:
    """A box x0 y0 x1 y1 in 0..1 as whole pixels of a square image, with a margin of up to `PADDING` on each side."""
    margins = (torch.rand(4, generator=rng) * PADDING * side).tolist()
    x0, y0 = (max(0, int(value * side - margin)) for value, margin in zip(box[:2], margins[:2]))
    x1, y1 = (min(side, round(value * side + margin)) for value, margin in zip(box[2:], margins[2:]))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def is_usable(box: tuple[float, float, float, float]) -> bool:
    """Whether the method trains with boxes of this size."""
    return AREA[0] <= (box[2] - box[0]) * (box[3] - box[1]) <= AREA[1]


def make_context(mapper: ExemplarMapper, pooled: Tensor, drop: float, rng: torch.Generator) -> Tensor:
    """Tokens [b, 1, c] of class tokens [b, width]; a share `drop` of them is replaced by the null token.

    The published code drops whole batches; here each sample is drawn separately, which has the same mean and less noise.
    """
    dropped = torch.rand(len(pooled), generator=rng) < drop
    tokens = mapper(pooled)
    return torch.where(dropped.view(-1, 1, 1).to(tokens.device), mapper.null.to(tokens.dtype), tokens)


def unet_input(noisy: Tensor, known: Tensor, hole: Tensor) -> Tensor:
    """[noisy latent | masked image | 1 - hole] along channels: [b, 4 + 4 + 1, h, w]. `hole` [b, 1, h, w], 1 where it is painted."""
    return torch.cat([noisy, known.to(noisy), 1 - hole.to(noisy)], dim=1)


def is_trained(name: str) -> bool:
    """Whether a parameter of the UNet is trained where not everything is: the first convolution and the transformers.

    With one token, text attention never uses its queries, its keys and the norm before them.
    """
    if any(part in name for part in (".attn2.to_q.", ".attn2.to_k.", ".norm2.")) and ".transformer_blocks." in name:
        return False
    return name.startswith("input_blocks.0.0.") or any(
        part in name for part in (".transformer_blocks.", ".proj_in.", ".proj_out.")
    )
