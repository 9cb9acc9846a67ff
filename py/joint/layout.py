"""Which tokens of a transformer's sequence are text, image, references and padding, and which of them an attention call holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Grid = tuple[int, int]  # rows, columns of image tokens


class Span(NamedTuple):
    """A part of the sequence, start inclusive, stop exclusive."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Call:
    """One call of attention: which part of the sequence asks (queries) and which is asked (keys)."""

    queries: Span
    keys: Span


@dataclass(frozen=True)
class Layout:
    """The sequence [texts | image cells | references | image padding] of one model call.

    Args:
        texts: number of tokens of every text, each with its own padding; the sampler's prompt comes first.
        grid: rows and columns of the image cells.
        references: number of tokens of each reference image that the model itself appends.
        reference_owners: the reference of each of those tokens where references lie side by side; () where they follow one another.
        padding: image tokens that the model adds to fill up a multiple.
    """

    texts: tuple[int, ...]
    grid: Grid
    references: tuple[int, ...] = ()
    padding: int = 0
    reference_owners: tuple[int, ...] = ()

    @property
    def text(self) -> Span:
        return Span(0, sum(self.texts))

    @property
    def cells(self) -> Span:
        start = self.text.stop
        return Span(start, start + self.grid[0] * self.grid[1])

    @property
    def image(self) -> Span:
        """Everything that is not text."""
        return Span(self.text.stop, self.cells.stop + sum(self.references) + self.padding)

    @property
    def total(self) -> int:
        return self.image.stop

    def text_spans(self) -> list[Span]:
        return _consecutive(0, self.texts)

    def reference_tokens(self) -> list[slice | list[int]]:
        """For each reference, the index of its tokens in the sequence."""
        start = self.cells.stop
        if not self.reference_owners:
            return [span.slice for span in _consecutive(start, self.references)]
        return [
            [start + token for token, owner in enumerate(self.reference_owners) if owner == reference]
            for reference in range(len(self.references))
        ]

    @property
    def padding_span(self) -> Span:
        return Span(self.total - self.padding, self.total)

    @property
    def is_ambiguous(self) -> bool:
        """Whether a call over the texts only cannot be distinguished from one over the image only by its number of tokens."""
        return len(self.text) == len(self.image)

    def find_call(self, queries: int, keys: int) -> Call | None:
        """The call with that many queries and keys: all tokens, the texts only, the image only, or image to texts. None for any other."""
        whole, text, image = Span(0, self.total), self.text, self.image
        for call in (Call(whole, whole), Call(text, text), Call(image, image), Call(image, text)):
            if (len(call.queries), len(call.keys)) == (queries, keys):
                return call
        return None


def _consecutive(start: int, lengths: tuple[int, ...]) -> list[Span]:
    spans = []
    for length in lengths:
        spans.append(Span(start, start + length))
        start += length
    return spans
