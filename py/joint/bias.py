"""Who attends to whom in a joint attention: an addition to the logits, kept as a product of few channels.

    B = A K^T,   A [l, c] of the queries, K [m, c] of the keys

One column of A and K per text, region, reference or class. The product is used in two ways that give the same numbers: as an additive
table (cheap for short sequences), or as extra channels of q and k (no l x m table; any attention kernel computes it). Only q, k and v
of a layer are ever touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout, Span

#: A logit that no softmax can see. Infinities make NaN in some fused kernels, and half precision ends at 65504.
NEVER = -1e4
#: Channels are padded to a multiple of this; kernels are slow for other head widths.
WIDTH_STEP = 8


def log_weights(weights: Tensor) -> Tensor:
    """The logits that weights w >= 0 add, finite."""
    return weights.float().log().clamp_min(NEVER)


@dataclass(frozen=True, eq=False)
class Separation:
    """How much image cells of different regions attend to each other.

    Args:
        owner: [n] which region each cell belongs to, 0 to k - 1.
        between: [k, k] what is added to the logits, 0 on the diagonal; NEVER keeps two regions apart.
    """

    owner: Tensor
    between: Tensor


@dataclass(frozen=True, eq=False)
class ExtraKeys:
    """Further keys that image cells attend to, beside their own: the tokens of one exemplar.

    Args:
        count: m, the number of its tokens.
        logits: [n] what is added for every cell, such as log rho + log(N / N_x); NEVER where a cell does not use it.
        cells, keys: [n, c] and [m, c]; cells keys^T is added too (class agreement). c may be 0.
    """

    count: int
    logits: Tensor
    cells: Tensor
    keys: Tensor


@dataclass(frozen=True, eq=False)
class Bias:
    """The bias of a whole sequence for some rows of a batch.

    Args:
        queries: A, [r, L, c] float32. keys: K, [r, L + x, c] for x extra keys. r is 1 or the number of rows.
        tokens: L.
    """

    queries: Tensor
    keys: Tensor
    tokens: int

    @property
    def extra(self) -> int:
        return self.keys.shape[1] - self.tokens

    def cut(self, queries: Span, keys: Span, with_extra: bool) -> Bias:
        """The part that one attention call holds."""
        own = self.keys[:, keys.start : keys.stop]
        chosen = torch.cat([own, self.keys[:, self.tokens :]], dim=1) if with_extra and self.extra else own
        return Bias(self.queries[:, queries.slice], chosen, len(keys))

    def without_extra(self) -> Bias:
        """The same without the columns of extra keys."""
        return Bias(self.queries, self.keys[:, : self.tokens], self.tokens)

    def pruned(self) -> Bias:
        """The same without channels that add nothing."""
        used = (self.queries.abs().amax(dim=(0, 1)) > 0) & (self.keys.abs().amax(dim=(0, 1)) > 0)
        return Bias(self.queries[..., used], self.keys[..., used], self.tokens)

    def rows(self, rows: Sequence[int] | Tensor) -> Bias:
        """Some rows of the batch; one that serves all stays."""
        if self.queries.shape[0] == 1:
            return self
        return Bias(self.queries[rows], self.keys[rows], self.tokens)

    def table(self, dtype: torch.dtype) -> Tensor:
        """[r, 1, l, m], to add to the logits."""
        return (self.queries @ self.keys.mT).clamp_min(NEVER).to(dtype)[:, None]

    def widen(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [b, n, l, d], k, v [b, n', m, d] with the bias in extra channels, for an attention that divides by the root of the new width.

            [q sqrt(W / d), A W^(1/4)] . [k, K W^(1/4)] / sqrt(W) = q . k / sqrt(d) + A K^T

        The result's first d channels are the attention's.
        """
        d, c = q.shape[-1], self.queries.shape[-1]
        width = -(-(d + c) // WIDTH_STEP) * WIDTH_STEP
        scale = width**0.25

        def joined(x: Tensor, channels: Tensor, factor: float = 1.0) -> Tensor:
            wide = x.new_zeros(*x.shape[:-1], width)  # one copy; sequences are long here
            wide[..., :d] = x if factor == 1.0 else x * factor
            wide[..., d : d + c] = (channels * scale).to(x.dtype)[:, None]
            return wide

        return joined(q, self.queries, math.sqrt(width / d)), joined(k, self.keys), F.pad(v, (0, width - d))


def sequence_bias(
    layout: Layout,
    weights: Tensor,
    *,
    references: Mapping[int, Tensor] | None = None,
    separations: Sequence[Separation] = (),
    own: Tensor | None = None,
    extras: Sequence[ExtraKeys] = (),
) -> Bias:
    """The bias of one row of a batch.

        cell p, token of text r      log w_r(p), in both directions
        text r, text r'              0 if r = r', else NEVER
        cell p, reference j          log w_j(p)
        reference j                  attends only to itself, and no text attends to it
        cell p, cell p'              the sum of the separations, and own(p)
        cell p, extra key            see `ExtraKeys`; nothing else attends to extra keys

    References without weights, and padding, are image tokens without a position: they count as the mean cell, or, where cells are
    kept apart, as a cell of the largest region, so that nothing passes from one region to another through them.

    Args:
        weights: w_r, [t, n] for the texts of the layout and its n cells, 0 or more.
        references: w_j [n] by the index j of a reference of the layout; those that are not named are left to the model.
        own: [n] what a cell adds to the logits of all cells, such as log(1 - rho).

    Returns:
        A bias with r = 1, on the weights' device.
    """
    builder = _Builder(layout, weights.device, sum(extra.count for extra in extras))
    tokens = layout.reference_tokens()
    weighted = {index: w for index, w in (references or {}).items() if index < len(tokens)}
    regional = [tokens[index] for index in weighted]
    largest = _largest_region(separations)
    if weights.shape[0] > 1 or regional or bool((weights != 1).any()):
        rest = weights.mean(dim=1) if largest is None else weights[:, largest].mean(dim=1)
        builder.add_texts(log_weights(weights), log_weights(rest), regional)
    if regional:
        builder.add_references(log_weights(torch.stack(list(weighted.values()))), regional)
    for separation in separations:
        builder.add_separation(separation)
    if own is not None:
        builder.add_own(own)
    builder.add_extras(extras)
    return builder.bias()


def stack(biases: Sequence[Bias]) -> Bias:
    """Biases of one structure as rows of one, without the channels that add nothing."""
    queries, keys = (torch.cat([getattr(bias, name) for bias in biases]) for name in ("queries", "keys"))
    return Bias(queries, keys, biases[0].tokens).pruned()


def _largest_region(separations: Sequence[Separation]) -> Tensor | None:
    """[n] which cells are in the region with the most cells."""
    if not separations:
        return None
    owner = separations[0].owner
    return owner == owner.mode().values


class _Builder:
    """Collects channels: pairs of columns of A and K."""

    def __init__(self, layout: Layout, device: torch.device, extra: int):
        self.layout, self.device, self.extra = layout, device, extra
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []

    def bias(self) -> Bias:
        total = self.layout.total
        none = [torch.zeros(total, 0, device=self.device)], [torch.zeros(total + self.extra, 0, device=self.device)]
        queries, keys = self._queries or none[0], self._keys or none[1]
        return Bias(torch.cat(queries, dim=1)[None], torch.cat(keys, dim=1)[None], total)

    def _channels(self, count: int) -> tuple[Tensor, Tensor]:
        queries = torch.zeros(self.layout.total, count, device=self.device)
        keys = torch.zeros(self.layout.total + self.extra, count, device=self.device)
        self._queries.append(queries)
        self._keys.append(keys)
        return queries, keys

    def add_texts(self, logits: Tensor, rest: Tensor, regional: Sequence[slice | list[int]]) -> None:
        """logits [t, n], rest [t] of image tokens that are not latent cells."""
        layout, count = self.layout, len(self.layout.texts)
        lengths = torch.tensor(layout.texts, device=self.device)
        is_of = F.one_hot(torch.arange(count, device=self.device).repeat_interleave(lengths), count).float()
        text, cells, image = layout.text.slice, layout.cells.slice, layout.image.slice
        for_image = torch.zeros(layout.total, count, device=self.device)
        for_image[image] = rest
        for_image[cells] = logits.T
        for tokens in regional:
            for_image[tokens] = NEVER
        queries, keys = self._channels(count)  # who attends to texts
        queries[:] = for_image
        queries[text] = NEVER * (1 - is_of)
        keys[text] = is_of
        queries, keys = self._channels(count)  # what texts attend to in the image
        queries[text] = is_of
        keys[: layout.total] = for_image

    def add_references(self, logits: Tensor, regional: Sequence[slice | list[int]]) -> None:
        """logits [k, n]."""
        queries, keys = self._channels(len(regional) + 1)
        image, cells = self.layout.image.slice, self.layout.cells.slice
        queries[image, :-1] = NEVER
        queries[cells, :-1] = logits.T
        keys[image, -1] = 1.0  # the image without the regional references, to which those do not attend
        for index, tokens in enumerate(regional):
            queries[tokens, index], queries[tokens, -1] = 0.0, NEVER
            keys[tokens, index], keys[tokens, -1] = 1.0, 0.0

    def add_separation(self, separation: Separation) -> None:
        count = separation.between.shape[0]
        queries, keys = self._channels(count)
        is_of = F.one_hot(separation.owner, count).float()
        cells, padding = self.layout.cells.slice, self.layout.padding_span.slice
        for target, values in ((queries, is_of @ separation.between.float()), (keys, is_of)):
            target[cells] = values
            target[padding] = values[separation.owner == separation.owner.mode().values][:1]

    def add_own(self, own: Tensor) -> None:
        queries, keys = self._channels(1)
        cells = self.layout.cells.slice
        queries[cells, 0], keys[cells, 0] = own.float(), 1.0

    def add_extras(self, extras: Sequence[ExtraKeys]) -> None:
        start = self.layout.total
        for extra in extras:
            stop, cells = start + extra.count, self.layout.cells.slice
            queries, keys = self._channels(1 + extra.keys.shape[1])
            queries[:, 0] = NEVER
            queries[cells, 0], queries[cells, 1:] = extra.logits.float(), extra.cells.float()
            keys[start:stop, 0], keys[start:stop, 1:] = 1.0, extra.keys.float()
            start = stop
