"""Augmented self-attention of AM-Adapter (arXiv 2412.03150): a layer that reads its own tokens and those of exemplars.

    A   = [q k^T ; q k_X^T] / sqrt(d)                         own tokens first, then each exemplar's, one softmax over all
    A'  = [A_self + a ; A_ref + log w + balance + g]          out = softmax(A') [v ; v_X]

    concat_only   g = 0
    class_bias    g = b (C - 1/4)                             the learned form with P = b C
    hard_mask     g = 0 where C = 1, else -inf                places whose class the exemplar lacks read themselves alone
    masactrl      as hard_mask, and a = log(1 - w) where the class is shared: the exemplar in place of oneself
    matcher       g = P - peak / 4,  P = phi(A_ref, C)        the exemplar keys that phi leaves alone are demoted

    w = strength * the exemplar's weight * the effect's mask at the target place. It scales the exemplar's part of the attention
    exactly, before normalisation: w = 0 is plain self-attention, w = 1 the paper's.

Everything runs over chunks of target places: no matrix of all pairs is built, save P, on grids of at most 1024 places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .agreement import CORRECTED, UPSTREAM_SIDE, Agreement, Behaviour, Grid
from .model import Encoder, slices
from .pair_store import PairStore

#: q, k, v [b, n, l, d] and a mask that is added to the logits ([b, 1 or n, l, m] or None) -> [b, n, l, d].
Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

MODES = ("matcher", "class_bias", "hard_mask", "concat_only", "masactrl")

#: The largest grid that is matched as it is; larger ones are matched on averages.
MATCHING_PLACES = 1024
MATCHING_CHUNK = 1 << 19  # numbers in a chunk on a processor, whose caches are small

#: Stands for minus infinity in a mask: no attention, in half precision too. Fused kernels that see a run of keys with true infinities
#: before the first finite one may give NaN.
_NEVER = -3e4


@dataclass(frozen=True)
class Settings:
    """What a user chooses about the attention.

    Args:
        mode: one of MODES.
        strength: w above, for all exemplars; 0 is the model without them.
        class_strength: b of class_bias, in logits.
        balance: 0..1, how much the classes of the exemplar are put on one footing whatever their size.
        chunk: how many numbers the mask of a chunk may have; it bounds the memory.

    Raises:
        ValueError: an unknown mode, or numbers that mean nothing.
    """

    mode: str = "class_bias"
    strength: float = 1.0
    class_strength: float = 2.0
    balance: float = 0.0
    chunk: int = 1 << 20

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"AM-Adapter: there is no mode {self.mode!r}. Choose one of {', '.join(MODES)}.")
        if not (math.isfinite(self.strength) and self.strength >= 0.0):
            raise ValueError(f"AM-Adapter: the strength is {self.strength}. Give 0 or more.")
        if self.chunk < 1:
            raise ValueError(f"AM-Adapter: a chunk of {self.chunk} numbers. Give 1 or more.")


@dataclass(frozen=True, eq=False)
class Exemplar:
    """What one exemplar is to one layer.

    Args:
        keys, values: [b or 1, m, c], the layer's own projections of the exemplar's tokens; rows as the conditional rows of the call.
        agreement: C between target and exemplar on the layer's grids. Not needed for concat_only and matcher (without balance).
        match: for matcher.
        weight: of this exemplar among others, 0 or more.
        settings: its own, where exemplars are read in different ways by one layer; None takes the layer's.
        where: [rows or 1, l], 0..1, its own effect mask; None takes the layer's.
    """

    keys: Tensor
    values: Tensor
    agreement: Agreement | None = None
    match: Match | None = None
    weight: float = 1.0
    settings: Settings | None = None
    where: Tensor | None = None

    def resolved(self, settings: Settings, where: Tensor | None) -> Exemplar:
        """The same with settings and mask for sure."""
        return replace(
            self,
            settings=settings if self.settings is None else self.settings,
            where=where if self.where is None else self.where,
        )

    @property
    def chosen(self) -> Settings:
        return Settings() if self.settings is None else self.settings

    @property
    def share(self) -> float:
        """w without the mask."""
        return self.chosen.strength * self.weight


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as torch computes it: [b, n, l, d]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    conditional: Sequence[int],
    exemplars: Sequence[Exemplar],
    settings: Settings = Settings(),
    *,
    where: Tensor | None = None,
    attend: Attend = plain,
) -> Tensor:
    """All rows of a call: the conditional ones read the exemplars too, the others are as without them.

    Args:
        q, k, v: [b, l, c] the layer's projections of the target's tokens.
        conditional: which rows are conditional, in the order of the exemplars' rows. Nothing is assumed of their order or number.
        exemplars, settings: see there. where: [rows or 1, l], 0..1, how much each target place may be changed.

    Returns:
        [b, l, c], before the layer's output projection.
    """
    chosen = list(conditional)
    others = [row for row in range(q.shape[0]) if row not in chosen]
    if not chosen:
        return augmented_attention(q, k, v, heads, (), settings, attend=attend)
    changed = augmented_attention(q[chosen], k[chosen], v[chosen], heads, exemplars, settings, where=where, attend=attend)
    if not others:
        return changed[torch.tensor(chosen, device=q.device).argsort()]
    same = augmented_attention(q[others], k[others], v[others], heads, (), settings, attend=attend)
    return torch.cat([changed, same])[torch.tensor(chosen + others, device=q.device).argsort()]


def augmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    exemplars: Sequence[Exemplar],
    settings: Settings = Settings(),
    *,
    where: Tensor | None = None,
    attend: Attend = plain,
) -> Tensor:
    """Attention of conditional rows over their own tokens and those of the exemplars.

    Args:
        q, k, v: [b, l, c]. where: [b or 1, l], 0..1; None is 1 everywhere.

    Returns:
        [b, l, c]. Plain self-attention, to the bit, if the strength is 0 or no exemplar has a weight.

    Raises:
        ValueError: the mode needs an agreement or a match that an exemplar lacks, or theirs is of another grid.
    """
    b, l, _ = q.shape
    exemplars = [exemplar.resolved(settings, where) for exemplar in exemplars]
    exemplars = [exemplar for exemplar in exemplars if exemplar.share > 0.0]
    query = _split(q, heads)
    if not exemplars:
        return _joined(attend(query, _split(k, heads), _split(v, heads), None))
    for exemplar in exemplars:
        _check(exemplar, l)
    keys = _split(torch.cat([k, *(exemplar.keys.expand(b, -1, -1).to(k) for exemplar in exemplars)], dim=1), heads)
    values = _split(torch.cat([v, *(exemplar.values.expand(b, -1, -1).to(v) for exemplar in exemplars)], dim=1), heads)
    if all(_is_unbiased(exemplar) for exemplar in exemplars):
        return _joined(attend(query, keys, values, None))
    biases = [_bias(exemplar) for exemplar in exemplars]
    has_never = any(e.where is not None or e.chosen.mode in ("hard_mask", "masactrl") for e in exemplars)
    own, own_tokens = _own(exemplars), k.shape[1]  # another patch may have given the layer more keys than places
    width = heads if any(exemplar.chosen.mode == "matcher" for exemplar in exemplars) else 1
    out = []
    for rows in slices(l, settings.chunk // (b * width * keys.shape[2])):
        mask = q.new_empty(b, width, rows.stop - rows.start, keys.shape[2])
        mask[..., :own_tokens] = 0.0 if own is None else rearrange(own[:, rows], "b r -> b 1 r 1")
        end = own_tokens
        for exemplar, bias in zip(exemplars, biases):
            start, end = end, end + exemplar.keys.shape[1]
            mask[..., start:end] = bias(rows)
        if has_never:
            mask.clamp_(min=_NEVER)
        out.append(attend(query[:, :, rows], keys, values, mask))
    return _joined(torch.cat(out, dim=2))


def _is_unbiased(exemplar: Exemplar) -> bool:
    settings = exemplar.chosen
    return settings.mode == "concat_only" and exemplar.where is None and settings.balance == 0.0 and exemplar.share == 1.0


def _check(exemplar: Exemplar, tokens: int) -> None:
    settings, agreement = exemplar.chosen, exemplar.agreement
    if settings.mode == "matcher" and exemplar.match is None:
        raise ValueError("AM-Adapter: the mode matcher needs a match with the exemplar. Load a matcher, or choose class_bias.")
    needed = settings.balance != 0.0 or settings.mode in ("class_bias", "hard_mask", "masactrl")
    if needed and agreement is None:
        raise ValueError(
            f"AM-Adapter: the mode {settings.mode} compares classes, so it needs semantic maps of target and exemplar. "
            "Give both, or choose concat_only with a balance of 0."
        )
    places = (tokens, exemplar.keys.shape[1])
    if needed and agreement is not None and (agreement.rows.shape[1], agreement.keys.shape[1]) != places:
        raise ValueError(
            f"AM-Adapter: the classes are compared on {agreement.rows.shape[1]} target and {agreement.keys.shape[1]} exemplar "
            f"places, but the layer has {places[0]} and {places[1]}."
        )


def _bias(exemplar: Exemplar) -> Callable[[slice], Tensor]:
    """log w + balance + g of an exemplar, for a slice of target places: [b, 1 or n, r, m]. Minus infinity where w is 0."""
    settings, agreement = exemplar.chosen, exemplar.agreement
    if agreement is not None and settings.mode in ("hard_mask", "masactrl"):
        agreement = agreement.hard()
    balance = None
    if settings.balance != 0.0 and agreement is not None:
        balance = rearrange(settings.balance * agreement.balance().float(), "b m -> b 1 1 m")
    log_weight = math.log(exemplar.share)

    def block(rows: slice) -> Tensor:
        found = _g(exemplar, agreement, settings, rows)
        if log_weight != 0.0:
            found = found + log_weight
        if balance is not None:
            found = found + balance
        if exemplar.where is None:
            return found
        return found + rearrange(exemplar.where[:, rows].float().log(), "b r -> b 1 r 1").to(found.device)

    return block


def _g(exemplar: Exemplar, agreement: Agreement | None, settings: Settings, rows: slice) -> Tensor:
    """g of the mode: [b, 1 or n, r, m], float32."""
    if settings.mode == "matcher" and exemplar.match is not None:
        return exemplar.match.block(rows)
    if settings.mode == "concat_only" or agreement is None:
        return exemplar.keys.new_zeros(1, 1, 1, exemplar.keys.shape[1], dtype=torch.float32)
    c = rearrange(agreement.block(rows).float(), "b r m -> b 1 r m")
    if settings.mode == "class_bias":
        return settings.class_strength * (c - 0.25)
    return torch.where(c > 0.5, 0.0, -math.inf)


def _own(exemplars: Sequence[Exemplar]) -> Tensor | None:
    """a: what masactrl adds to the logits of a place's own tokens, [b or 1, l], float32; None if no exemplar has this mode."""
    shares = []
    for exemplar in exemplars:
        if exemplar.chosen.mode == "masactrl" and exemplar.agreement is not None:
            hard = exemplar.agreement.hard()
            # A place has one class; it is shared if any exemplar place has it. No need for the pairs.
            shared = hard.rows.float() @ rearrange(hard.keys.float().amax(dim=1), "b k -> b k 1")
            share = exemplar.share * shared.squeeze(-1)
            shares.append(share if exemplar.where is None else share * exemplar.where.to(share))
    if not shares:
        return None
    return torch.log1p(-torch.stack(torch.broadcast_tensors(*shares)).amax(dim=0).clamp(max=1.0))


@dataclass(frozen=True, eq=False)
class Match:
    """P of one layer, and how to read it at the layer's own size.

    Args:
        pairs: P on the matching grids, 0 or more: [b g, l', n / g, h', w'] for g `groups` of the layer's heads.
        peak: [b], what is subtracted is a quarter of it.
        target_grid, exemplar_grid: the layer's own. matching_target, matching_exemplar: those of P.
        flat: enlarge as upstream does, along the flat order of the tokens.
    """

    pairs: PairStore
    peak: Tensor
    target_grid: Grid
    exemplar_grid: Grid
    matching_target: Grid
    matching_exemplar: Grid
    groups: int = 1
    flat: bool = False

    def block(self, rows: slice = slice(None)) -> Tensor:
        """g = P - peak / 4 for some target places of the layer, enlarged linearly: [b, n, r, m], float32."""
        # Linear weights sum to 1, so the peak may be subtracted where the numbers are still few.
        p = self._for_targets(rows) - rearrange(self.peak.float() / 4, "b -> b 1 1 1")
        if self.matching_exemplar != self.exemplar_grid:
            count = p.shape[1]
            if self.flat:
                places = self.exemplar_grid[0] * self.exemplar_grid[1]
                p = F.interpolate(rearrange(p, "b r n m -> b (r n) m"), places, mode="linear")
                p = rearrange(p, "b (r n) m -> b r n m", r=count)
            else:
                # Two products: with few places a side they are several times faster than a bilinear resize.
                down, across = (_line_matrix(*sizes).to(p) for sizes in zip(self.matching_exemplar, self.exemplar_grid))
                picture = rearrange(p, "b r n (h w) -> b r n h w", h=self.matching_exemplar[0])
                p = rearrange(down @ (picture @ across.T), "b r n h w -> b r n (h w)")
        return rearrange(p, "b r n m -> b n r m")

    def select(self, rows: Sequence[int]) -> Match:
        """Some rows of the batch; the peaks stay what they were."""
        chosen = list(rows)
        in_groups = [row * self.groups + group for row in chosen for group in range(self.groups)]
        return replace(self, pairs=self.pairs.select(in_groups), peak=self.peak[chosen])

    @property
    def activation(self) -> Tensor:
        """P whole, [b, l', n, m']."""
        return self._activation(slice(None))

    def _activation(self, places: slice | Tensor) -> Tensor:
        return rearrange(self.pairs.read(places), "(b g) l n h w -> b l (g n) (h w)", g=self.groups)

    def _for_targets(self, rows: slice) -> Tensor:
        if self.matching_target == self.target_grid:
            return self._activation(rows).float()
        index, weight = _taps(self.matching_target, self.target_grid, self.flat)
        index, weight = index[rows].to(self.peak.device), weight[rows].to(self.peak.device)
        # A place lies between at most four places of P. Four gathers, since a matrix that does it would cost as much as the matching.
        parts = (rearrange(weight[:, i], "r -> r 1 1") * self._activation(index[:, i]).float() for i in range(index.shape[1]))
        return sum(parts, start=torch.zeros((), device=self.peak.device))


def matching_grid(grid: Grid, behaviour: Behaviour = CORRECTED, limit: int = MATCHING_PLACES) -> Grid:
    """The grid that a layer's grid is matched on: itself, or divided by the smallest whole number that leaves `limit` places.

    Raises:
        ValueError: the behaviour is `flat` and upstream has no such grid.
    """
    h, w = grid
    if behaviour.flat:
        if h != w or h not in (8, 16, 32, 64):
            raise ValueError(
                f"AM-Adapter: the published behaviour knows square grids of 8, 16, 32 or 64 cells a side, not {h}x{w}. "
                "Use pictures of 512x512, or choose the corrected behaviour."
            )
        return (min(h, UPSTREAM_SIDE), min(w, UPSTREAM_SIDE))
    factor = max(1, math.isqrt(max(0, h * w - 1) // max(1, limit)))
    while -(-h // factor) * -(-w // factor) > max(1, limit):
        factor += 1
    return (-(-h // factor), -(-w // factor))


def match(
    encoder: Encoder,
    q: Tensor,
    exemplar_keys: Tensor,
    heads: int,
    agreement: Agreement,
    target_grid: Grid,
    exemplar_grid: Grid,
    *,
    behaviour: Behaviour = CORRECTED,
    limit: int = MATCHING_PLACES,
    chunk: int | None = None,
) -> Match:
    """P = phi(A_ref, C): what to read more.

    A product is linear in each side, so logits averaged over neighbouring places are the logits of averaged q and averaged k, and
    a layer of 4096 places is matched without its 4096 x 4096 logits.

    Args:
        encoder: of the layer's part. q: [b, l, c]. exemplar_keys: [b or 1, m, c]. Neither gets a gradient, as published.
        heads: of the layer, a multiple of the encoder's: groups of them are matched separately.
        agreement: C on the matching grids of both (see matching_grid), with the same behaviour.
        limit: largest number of places that are matched as they are. chunk: numbers in a chunk's widest volume; by default what suits the device.

    Returns:
        The match. With `joint_peak`, over all rows given: give the unconditional ones as well, then `select`.

    Raises:
        ValueError: numbers of heads or of places that do not fit.
    """
    if heads % encoder.heads:
        raise ValueError(
            f"AM-Adapter: this matcher was made for layers of {encoder.heads} attention heads (or multiples), but the layer has {heads}. "
            "Use the base model it was trained for, or the mode class_bias."
        )
    small_target, small_exemplar = (matching_grid(grid, behaviour, limit) for grid in (target_grid, exemplar_grid))
    q, k = q.detach(), exemplar_keys.detach().expand(q.shape[0], -1, -1)
    q = _averaged(q, target_grid, small_target, behaviour.flat)
    k = _averaged(k, exemplar_grid, small_exemplar, behaviour.flat).to(q)
    if (agreement.rows.shape[1], agreement.keys.shape[1]) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"AM-Adapter: the classes are compared on {agreement.rows.shape[1]} and {agreement.keys.shape[1]} places, but matched on "
            f"{q.shape[1]} and {k.shape[1]}."
        )
    scale = (q.shape[2] // heads) ** -0.5
    groups = heads // encoder.heads
    query, key = (rearrange(t, "b l (g n d) -> (b g) n l d", g=groups, n=encoder.heads) for t in (q * scale, k))
    key = rearrange(key, "b n m d -> b n d m")

    def volume(rows: slice) -> Tensor:
        logits = rearrange(query[:, :, rows] @ key, "b n r m -> b r n m")
        c = agreement.block(rows).to(logits).expand(q.shape[0], -1, -1).repeat_interleave(groups, dim=0)
        both = torch.cat([logits, rearrange(c, "b r m -> b r 1 m")], dim=2)
        return rearrange(both, "b r c (h w) -> b r c h w", h=small_exemplar[0])

    if torch.is_grad_enabled() and any(weight.requires_grad for weight in encoder.parameters()):
        pairs = PairStore.of(encoder(volume(slice(None))))
    else:
        widest = query.shape[0] * max(encoder.widths) * k.shape[1]
        chunk = chunk or (MATCHING_CHUNK if q.device.type == "cpu" else 8 * MATCHING_CHUNK)
        pairs = encoder.in_chunks(volume, q.shape[1], chunk // widest, exact=behaviour.flat)
    peak = rearrange(pairs.largest().float(), "(b g) -> b g", g=groups).amax(dim=1)
    if behaviour.joint_peak:
        peak = peak.amax().expand_as(peak)
    grids = (target_grid, exemplar_grid, small_target, small_exemplar)
    return Match(pairs, peak, *grids, groups=groups, flat=behaviour.flat)


def _averaged(tokens: Tensor, grid: Grid, small: Grid, flat: bool) -> Tensor:
    """[b, h w, c] on a smaller grid. Flat: the middle two of every four tokens, which is a linear resize by a quarter."""
    if small == grid:
        return tokens
    if flat:
        step = grid[0] * grid[1] // (small[0] * small[1])
        return (tokens[:, step // 2 - 1 :: step] + tokens[:, step // 2 :: step]) / 2
    picture = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0])
    return rearrange(F.adaptive_avg_pool2d(picture, small), "b c h w -> b (h w) c")


def _taps(small: Grid, grid: Grid, flat: bool) -> tuple[Tensor, Tensor]:
    """Between which places of the small grid each place of the grid lies, and how near to each: [l, 2 or 4] both."""
    if flat:
        return _line_taps(small[0] * small[1], grid[0] * grid[1])
    (y, y_weight), (x, x_weight) = (_line_taps(*sizes) for sizes in zip(small, grid))
    index = rearrange(y * small[1], "h i -> h 1 i 1") + rearrange(x, "w j -> 1 w 1 j")
    weight = rearrange(y_weight, "h i -> h 1 i 1") * rearrange(x_weight, "w j -> 1 w 1 j")
    return rearrange(index, "h w i j -> (h w) (i j)"), rearrange(weight, "h w i j -> (h w) (i j)")


def _line_taps(small: int, size: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of a line with half-pixel centres and clamped ends: [size, 2] indices and weights."""
    at = ((torch.arange(size, dtype=torch.float32) + 0.5) * (small / size) - 0.5).clamp(min=0.0)
    low = at.long().clamp(max=small - 1)
    part = (at - low).clamp(max=1.0)
    return torch.stack([low, (low + 1).clamp(max=small - 1)], dim=1), torch.stack([1.0 - part, part], dim=1)


def _line_matrix(small: int, size: int) -> Tensor:
    """The same as a matrix, [size, small]."""
    index, weight = _line_taps(small, size)
    return torch.zeros(size, small).scatter_add_(1, index, weight)


def _split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (n d) -> b n l d", n=heads)


def _joined(x: Tensor) -> Tensor:
    return rearrange(x, "b n l d -> b l (n d)")
