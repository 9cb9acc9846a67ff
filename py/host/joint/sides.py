"""The answers of all contributions, joined for every row of a model call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...joint.bias import NEVER, Bias, ExtraKeys, Separation, log_weights, sequence_bias, stack
from ...joint.layout import Layout
from ..grids import Rows
from .attention import FULL, OFF, WITHOUT_EXEMPLARS, BiasCache, ExtraTokens
from .call import AddedText, ModelCall
from .contribution import Contribution, Exemplar, overrides


@dataclass(frozen=True, eq=False)
class Sides:
    """The answers of all contributions for all rows of a call."""

    call: ModelCall
    layout: Layout
    contributions: tuple[Contribution, ...]
    added: tuple[AddedText, ...]
    chunks: list[tuple[Rows, bool]]
    exemplars: list[list[Exemplar]]

    @property
    def device(self) -> torch.device:
        return self.call.latent.device

    @property
    def cells(self) -> int:
        return len(self.layout.cells)

    def biases(self) -> tuple[dict[str, Bias], BiasCache]:
        """Of all rows, by the names in `attention`, and what is made of them. Kept for the run; where `text_gains` change, the last ones."""
        run = self.call.run
        has_gain = any(overrides(c, "gain") for c in self.contributions)
        names = [FULL, OFF] if has_gain else [FULL]
        if any(self.exemplars):
            names += [name + WITHOUT_EXEMPLARS for name in names]
        kept = run.get_or_make(("biases", *self._key()), dict)
        if self._gains not in kept:
            kept.clear()
            kept[self._gains] = {name: self._bias(name) for name in names}, BiasCache()
        return kept[self._gains]

    @cached_property
    def _gains(self) -> tuple[tuple[float, ...] | None, ...]:
        return tuple(c.text_gains(self.call.run, self.call.sigma) for c in self.contributions)

    def _key(self) -> tuple:
        """Everything that the biases depend on, except the noise level."""
        rows = tuple((part.view, part.frames, part.rows.start, part.rows.stop, conditional) for part, conditional in self.chunks)
        counts = tuple(tuple(e.count for e in exemplars) for exemplars in self.exemplars)
        owners = tuple((text.owner, text.region) for text in self.added)
        return self.contributions, owners, self.layout, rows, counts, self.device

    def _bias(self, name: str) -> Bias:
        rows = [self._row(*row, name) for row in self._rows()]
        first = rows[0]
        if all(torch.equal(row.queries, first.queries) and torch.equal(row.keys, first.keys) for row in rows):
            rows = [first]
        return stack(rows)

    def _rows(self) -> list[tuple[Rows | None, int, int | None]]:
        """(part, frame of the part, number of the conditional chunk or None) of every row; without a part nothing acts on it."""
        rows: list[tuple[Rows | None, int, int | None]] = [(None, 0, None)] * self.call.rows
        number = 0
        for part, conditional in self.chunks:
            for frame in range(len(part.frames)):
                rows[part.rows.start + frame] = (part, frame, number if conditional else None)
            number += conditional
        return rows

    def main_texts(self) -> list[int]:
        """For every row the text that most of the image attends to."""

        def make() -> list[int]:
            return [int(self._weights(*row, FULL).mean(dim=1).argmax()) for row in self._rows()]

        return self.call.run.get_or_make(("main texts", *self._key(), self._gains), make)

    def _weights(self, part: Rows | None, frame: int, number: int | None, name: str) -> Tensor:
        """How much the cells of one row attend to every text, [t, n]."""
        weights = torch.ones(1, self.cells, device=self.device)
        own_texts: dict[Contribution, Tensor] = {}
        for contribution, gains in zip(self.contributions, self._gains):
            if part is None or number is None or (name.startswith(OFF) and overrides(contribution, "gain")):
                continue
            answer = contribution.region_weights(self.call.run, part)
            if answer is not None:
                found = self._frame(answer, part, frame)
                weights = weights * found[:1]
                own_texts = {owner: given * found[:1] for owner, given in own_texts.items()}
                own_texts[contribution] = found[1:] if gains is None else found[1:] * found.new_tensor(gains)[:, None]
        none = torch.zeros(self.cells, device=self.device)
        rows = [weights[0]]
        for text in self.added:
            given = own_texts.get(text.owner) if text.owner is not None else None
            rows.append(none if given is None else given[text.region])
        return torch.stack(rows)

    def _row(self, part: Rows | None, frame: int, number: int | None, name: str) -> Bias:
        separations: list[Separation] = []
        references: dict[int, Tensor] = {}
        for contribution in self.contributions:
            separations += self._separations(contribution, None if number is None else part, frame)
            if part is None or not self.layout.references:
                continue
            found = contribution.reference_weights(self.call.run, part)
            if found is not None:
                first, weights = found
                for index, values in enumerate(self._frame(weights, part, frame), start=first):
                    references[index] = references[index] * values if index in references else values
        with_exemplars = not name.endswith(WITHOUT_EXEMPLARS)
        own, extras = self._extras(number, frame) if with_exemplars else (None, [])
        return sequence_bias(
            self.layout,
            self._weights(part, frame, number, name),
            references=references,
            separations=separations,
            own=own,
            extras=extras,
        )

    def _frame(self, batch: Tensor, part: Rows, frame: int) -> Tensor:
        """The answer [f, k, h, w] for one row, [k, n]."""
        chosen = batch[0] if batch.shape[0] == 1 else batch[part.frames[frame]]
        return chosen.flatten(1).float().to(self.device)

    def _separations(self, contribution: Contribution, part: Rows | None, frame: int) -> list[Separation]:
        if not overrides(contribution, "separation"):
            return []
        found = contribution.separation(self.call.run, self.chunks[0][0] if part is None else part)
        if found is None:
            return []
        owner, between = found
        if part is None:  # of one structure with the other rows, but without effect
            return [
                Separation(
                    torch.zeros(self.cells, dtype=torch.long, device=self.device), torch.zeros_like(between).to(self.device)
                )
            ]
        chosen = owner[0] if owner.shape[0] == 1 else owner[part.frames[frame]]
        return [Separation(chosen.flatten().to(self.device), between.to(self.device))]

    def _extras(self, number: int | None, frame: int) -> tuple[Tensor | None, list[ExtraKeys]]:
        """Logits of a cell's own image and the columns of exemplars: complementary, so that the text keeps its share."""
        found = self.exemplars[number] if number is not None else next((e for e in self.exemplars if e), [])
        if not found:
            return None, []
        if number is None:
            never = torch.full((self.cells,), NEVER, device=self.device)
            return torch.zeros_like(never), [
                ExtraKeys(e.count, never, e.cells[0].to(self.device) * 0, e.keys.to(self.device)) for e in found
            ]

        def of_row(batch: Tensor) -> Tensor:
            return (batch[0] if batch.shape[0] == 1 else batch[frame]).float().to(self.device)

        own = torch.ones(self.cells, device=self.device)
        for exemplar in found:
            own = own if exemplar.own is None else own * of_row(exemplar.own)
        shares = [of_row(exemplar.share) for exemplar in found]
        total = own + torch.stack(shares).sum(dim=0)
        extras = []
        for exemplar, share in zip(found, shares):
            per_key = torch.tensor(self.cells / exemplar.count).log()
            extras.append(
                ExtraKeys(
                    exemplar.count,
                    (log_weights(share / total) + per_key).clamp_min(NEVER),
                    of_row(exemplar.cells),
                    exemplar.keys.float().to(self.device),
                )
            )
        return log_weights(own / total), extras

    def gain(self) -> Tensor | None:
        """[b, n] of all rows; None if it is 1 everywhere."""
        gain = torch.ones(self.call.rows, self.cells, device=self.device)
        for part, conditional in self.chunks:
            if not conditional:
                continue
            for contribution in self.contributions:
                found = contribution.gain(self.call.run, part, self.call.sigma)
                if found is None:
                    continue
                values = torch.as_tensor(found, dtype=torch.float32, device=self.device)
                if values.ndim == 3:
                    values = part.of(values).flatten(1)
                gain[part.rows] = torch.maximum(gain[part.rows], values)
        return gain if bool((gain != 1).any()) else None

    def extra_tokens(self) -> tuple[tuple[ExtraTokens, ...], ...]:
        conditional = [part for part, is_conditional in self.chunks if is_conditional]
        columns = max((len(e) for e in self.exemplars), default=0)
        return tuple(
            tuple(
                ExtraTokens(part.rows, exemplars[column].layers, exemplars[column].count)
                for part, exemplars in zip(conditional, self.exemplars)
                if exemplars
            )
            for column in range(columns)
        )
