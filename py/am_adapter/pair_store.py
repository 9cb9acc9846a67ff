"""Numbers of pairs of places, kept with little memory: the matcher's results are the largest thing that a matched layer holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Numbers from which on float32 ones are kept in 16 bits.
LARGE = 1 << 22
STEPS = 32767


class PairStore:
    """[b, l, c, h, w]: for each of l target places and c channels a picture over the exemplar's grid. Written and read by target place.

    Large stores of float32 keep 16-bit whole numbers and a scale for every picture. What a number loses is 1.5e-5 of the largest one of its
    picture at most, a thirtieth of what half precision would lose, at the same size.

    Args:
        like: any tensor [b, ?, ?, h, w] of the type and device of what is written.
        places: l. channels: c, at most; a write may have fewer, reads say how many they want.
        exact: never 16 bits.
    """

    def __init__(self, like: Tensor, places: int, channels: int, exact: bool = False) -> None:
        size = (like.shape[0], places, channels, *like.shape[-2:])
        self.scale: Tensor | None = None
        if not exact and like.dtype == torch.float32 and math.prod(size) > LARGE:
            self.numbers = like.new_empty(size, dtype=torch.int16)
            self.scale = like.new_zeros(*size[:3], 1, 1)
        else:
            self.numbers = like.new_empty(size)

    @classmethod
    def of(cls, numbers: Tensor) -> PairStore:
        """A store that is this tensor."""
        store = cls.__new__(cls)
        store.numbers, store.scale = numbers, None
        return store

    def read(self, places: slice | Tensor = slice(None), channels: int | None = None) -> Tensor:
        """[b, r, channels, h, w] for some places; a view where nothing has to be computed."""
        numbers = self.numbers[:, places, :channels]
        return numbers if self.scale is None else numbers * self.scale[:, places, :channels]

    def write(self, places: slice, x: Tensor) -> None:
        """Keep x [b, r, c, h, w] for these places."""
        channels = x.shape[2]
        if self.scale is None:
            self.numbers[:, places, :channels] = x
            return
        scale = torch.linalg.vector_norm(x, ord=math.inf, dim=(3, 4), keepdim=True) / STEPS
        self.scale[:, places, :channels] = scale
        self.numbers[:, places, :channels] = (x / scale.clamp(min=torch.finfo(x.dtype).tiny)).round_()

    def first(self, channels: int) -> PairStore:
        """The first channels, in the same memory."""
        return self._part((slice(None), slice(None), slice(channels)))

    def select(self, rows: list[int]) -> PairStore:
        """Some rows of the batch, in memory of their own."""
        return self._part((rows,))

    def _part(self, which: tuple) -> PairStore:
        part = PairStore.of(self.numbers[which])
        part.scale = None if self.scale is None else self.scale[which]
        return part

    def largest(self) -> Tensor:
        """The largest number of each row, [b], where none is below 0."""
        return self.numbers.amax(dim=(1, 2, 3, 4)) if self.scale is None else self.scale.amax(dim=(1, 2, 3, 4)) * STEPS
