"""Moves rotary-encoded queries and keys by whole positions, so that a text keeps the positions it has when it is the only text.

    R(p + delta) x = R(delta) R(p) x           rotations of one plane add up

Pairs of neighbouring channels form the planes; axis a has `axes[a]` channels and the frequencies theta^(-2i / axes[a]).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Span


@dataclass(frozen=True)
class Rotary:
    """How a model encodes positions.

    Args:
        axes: number of channels of each axis; their sum is the width of a head.
        theta: base of the frequencies.
        text_axes: the axes along which the positions of text tokens count up.
        is_right_aligned: the last text token is next to the image on these axes (Lumina) instead of the first at a fixed position.
    """

    axes: tuple[int, ...]
    theta: float
    text_axes: tuple[int, ...] = ()
    is_right_aligned: bool = False

    def angles(self, delta: Tensor) -> Tensor:
        """Rotation angles of tokens that move by `delta` [l, axes] positions: [l, d / 2], float64."""
        parts = []
        for axis, channels in enumerate(self.axes):
            powers = torch.arange(0, channels, 2, dtype=torch.float64, device=delta.device) / channels
            parts.append(delta[:, axis, None].double() * self.theta**-powers)
        return torch.cat(parts, dim=1)

    def text_deltas(self, layout: Layout) -> Tensor | None:
        """By how many positions each text token has to move, [t, axes]; None if none has to."""
        if not self.text_axes or len(layout.texts) < 2:
            return None
        delta = torch.zeros(len(layout.text), len(self.axes))
        for span in layout.text_spans():
            moved = layout.text.stop - span.stop if self.is_right_aligned else -span.start
            for axis in self.text_axes:
                delta[span.slice, axis] = moved
        return delta if bool(delta.any()) else None

    def padding_deltas(self, layout: Layout, text: int) -> Tensor | None:
        """By how many positions image padding has to move, [p, axes], to be where it is beside this one text; None if not at all.

        Padding has position 0, and the image follows the text: the longer text moves the image away from it.
        """
        moved = layout.text.stop - layout.texts[text]
        if not (self.is_right_aligned and self.text_axes and layout.padding and moved):
            return None
        delta = torch.zeros(layout.padding, len(self.axes))
        for axis in self.text_axes:
            delta[:, axis] = moved
        return delta


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotates one span of a sequence: cosines and sines, [r, l, d / 2] float32, r 1 or the number of rows."""

    span: Span
    cos: Tensor
    sin: Tensor

    @classmethod
    def from_angles(cls, span: Span, angles: Tensor, device: torch.device) -> Rotation:
        """`angles` [r, l, d / 2]."""
        return cls(span, angles.cos().float().to(device), angles.sin().float().to(device))

    def __call__(self, x: Tensor, held: Span) -> Tensor:
        """x [b, n, l', d], the tokens `held` of the sequence; those in both spans rotated, the others unchanged."""
        start, stop = self.span.start - held.start, self.span.stop - held.start
        if start < 0 or stop > x.shape[2]:
            return x
        first, second = x[:, :, start:stop].float().unflatten(-1, (-1, 2)).unbind(dim=-1)
        cos, sin = self.cos[:, None], self.sin[:, None]
        turned = torch.stack([cos * first - sin * second, sin * first + cos * second], dim=-1).flatten(-2).to(x.dtype)
        return torch.cat([x[:, :, :start], turned, x[:, :, stop:]], dim=2)
