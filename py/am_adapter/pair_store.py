"""Numbers for pairs of tokens in little memory: the matcher's results are the largest tensor of a matched layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Numbers from which on float32 ones are kept in 16 bits.
LARGE = 1 << 22
STEPS = 32767


class PairStore:
    """[b, l, c, h, w]: for each of l target tokens and c channels a map over the exemplar's grid. Encoded and decoded by target token.

    Large stores of float32 keep 16-bit integers and a scale for every map. The error of a number is at most 1.5e-5 of the largest one of its
    map, a thirtieth of that of half precision, at the same size.

    Args:
        like: any tensor [b, ?, ?, h, w] of the type and device of the numbers.
        tokens: l. channels: c, at most; `encode` may be given fewer, and `decode` takes how many.
        exact: never 16 bits.
    """

    def __init__(self, like: Tensor, tokens: int, channels: int, exact: bool = False) -> None:
        size = (like.shape[0], tokens, channels, *like.shape[-2:])
        self.scale: Tensor | None = None
        if not exact and like.dtype == torch.float32 and math.prod(size) > LARGE:
            self.numbers = like.new_empty(size, dtype=torch.int16)
            self.scale = like.new_zeros(*size[:3], 1, 1)
        else:
            self.numbers = like.new_empty(size)

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> PairStore:
        """A store of this tensor, which is not copied."""
        store = cls.__new__(cls)
        store.numbers, store.scale = numbers, None
        return store

    def decode(self, tokens: slice | Tensor = slice(None), channels: int | None = None) -> Tensor:
        """[b, r, channels, h, w] for some target tokens; a view if nothing has to be computed."""
        numbers = self.numbers[:, tokens, :channels]
        return numbers if self.scale is None else numbers * self.scale[:, tokens, :channels]

    def encode(self, tokens: slice, x: Tensor) -> None:
        """Keep x [b, r, c, h, w] for these target tokens."""
        channels = x.shape[2]
        if self.scale is None:
            self.numbers[:, tokens, :channels] = x
            return
        scale = torch.linalg.vector_norm(x, ord=math.inf, dim=(3, 4), keepdim=True) / STEPS
        self.scale[:, tokens, :channels] = scale
        self.numbers[:, tokens, :channels] = (x / scale.clamp(min=torch.finfo(x.dtype).tiny)).round_()

    def select_channels(self, channels: int) -> PairStore:
        """The first channels, in the same memory."""
        return self._part((slice(None), slice(None), slice(channels)))

    def select(self, rows: list[int]) -> PairStore:
        """Some rows of the batch, copied."""
        return self._part((rows,))

    def _part(self, which: tuple) -> PairStore:
        part = PairStore.from_tensor(self.numbers[which])
        part.scale = None if self.scale is None else self.scale[which]
        return part

    def largest(self) -> Tensor:
        """The largest number of each row, [b]; no number may be below 0."""
        return self.numbers.amax(dim=(1, 2, 3, 4)) if self.scale is None else self.scale.amax(dim=(1, 2, 3, 4)) * STEPS
