"""Augmented self-attention of AM-Adapter (arXiv 2412.03150): a layer that attends to its own tokens and those of exemplars.

    A   = [q k^T ; q k_X^T] / sqrt(d)                         own tokens first, then each exemplar's, one softmax over all
    A'  = [A_self + a ; A_ref + log w + balance + g]          out = softmax(A') [v ; v_X]

    concat_only   g = 0
    class_bias    g = b (C - 1/4)                             the learned form with P = b C
    hard_mask     g = 0 where C = 1, else -inf                tokens whose class the exemplar lacks attend only to their own image
    masactrl      as hard_mask, and a = log(1 - w) where the class is shared: the exemplar instead of the own image
    matcher       g = P - peak / 4,  P = phi(A_ref, C)        exemplar keys that phi does not raise are lowered

    w = strength * the exemplar's weight * the target mask at the query token. It scales the exemplar's part of the attention
    exactly, before normalisation: w = 0 is plain self-attention, w = 1 the paper's.

Everything runs over chunks of target tokens: no matrix of all pairs is built except P, on grids of at most 1024 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .agreement import PAPER_FORMULAS, PUBLISHED_SIDE, Behaviour, ClassAgreement, Grid
from .model import Encoder, split_range
from .pair_store import PairStore

#: q, k, v [b, n, l, d] and a bias that is added to the logits ([b, 1 or n, l, m] or None) -> [b, n, l, d].
Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

MODES = ("matcher", "class_bias", "hard_mask", "concat_only", "masactrl")

#: The largest grid that is matched unchanged; larger ones are matched on averages.
MATCHING_TOKENS = 1024
MATCHING_CHUNK = 1 << 19  # numbers in a chunk on a CPU, whose caches are small

#: Replaces minus infinity in a bias: no attention, in half precision too. Fused kernels that see a run of keys with true infinities
#: before the first finite one may give NaN.
_NEVER = -3e4


@dataclass(frozen=True)
class Settings:
    """How exemplars are attended to.

    Args:
        mode: one of MODES.
        strength: factor of w above, for all exemplars; 0 is the model without them.
        class_strength: b of class_bias, in logits.
        balance: 0..1, how much the size of a class in the exemplar is compensated.
        chunk: the most numbers in the bias of a chunk; it bounds the memory.

    Raises:
        ValueError: an unknown mode, or a number out of range.
    """

    mode: str = "class_bias"
    strength: float = 1.0
    class_strength: float = 2.0
    balance: float = 0.0
    chunk: int = 1 << 20

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"AM-Adapter: mode is {self.mode!r}. Choose one of {', '.join(MODES)}.")
        if not (math.isfinite(self.strength) and self.strength >= 0.0):
            raise ValueError(f"AM-Adapter: strength is {self.strength}; it must be a number of at least 0.")
        if self.chunk < 1:
            raise ValueError(f"AM-Adapter: chunk is {self.chunk}; it must be at least 1.")


@dataclass(frozen=True, eq=False)
class Exemplar:
    """The tokens of one exemplar in one layer, and how the target attends to them.

    Args:
        keys, values: [b or 1, m, c], the layer's own projections of the exemplar's tokens; rows as the conditional rows of the call.
        agreement: C between target and exemplar on the layer's grids. Not needed for concat_only and matcher (without balance).
        match: for matcher.
        weight: of this exemplar among others, 0 or more.
        settings: for this exemplar, if they differ from the layer's; None takes the layer's.
        target_mask: [rows or 1, l], 0..1, how much each target token may change through it; None takes the layer's.
    """

    keys: Tensor
    values: Tensor
    agreement: ClassAgreement | None = None
    match: Match | None = None
    weight: float = 1.0
    settings: Settings | None = None
    target_mask: Tensor | None = None

    def with_defaults(self, settings: Settings, target_mask: Tensor | None) -> Exemplar:
        """The exemplar with the layer's settings and mask if it has none."""
        return replace(
            self,
            settings=settings if self.settings is None else self.settings,
            target_mask=target_mask if self.target_mask is None else self.target_mask,
        )

    @property
    def selected(self) -> Settings:
        return Settings() if self.settings is None else self.settings

    @property
    def unmasked_weight(self) -> float:
        """w without the mask."""
        return self.selected.strength * self.weight


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as torch computes it: [b, n, l, d]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def augmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    exemplars: Sequence[Exemplar],
    settings: Settings = Settings(),
    *,
    target_mask: Tensor | None = None,
    attend: Attend = attend_plainly,
) -> Tensor:
    """Attention of conditional rows over their own tokens and those of the exemplars.

    Args:
        q, k, v: [b, l, c], the layer's projections of the target's tokens. target_mask: [b or 1, l], 0..1; None is 1 everywhere.

    Returns:
        [b, l, c], before the layer's output projection. Bit-identical to plain self-attention if the strength is 0 or no exemplar has
        a weight.

    Raises:
        ValueError: the mode needs an agreement or a match that an exemplar lacks, or it has another grid.
    """
    b, l, _ = q.shape
    exemplars = [exemplar.with_defaults(settings, target_mask) for exemplar in exemplars]
    exemplars = [exemplar for exemplar in exemplars if exemplar.unmasked_weight > 0.0]
    query = _split(q, heads)
    if not exemplars:
        return _join(attend(query, _split(k, heads), _split(v, heads), None))
    for exemplar in exemplars:
        _check(exemplar, l)
    keys = _split(torch.cat([k, *(exemplar.keys.expand(b, -1, -1).to(k) for exemplar in exemplars)], dim=1), heads)
    values = _split(torch.cat([v, *(exemplar.values.expand(b, -1, -1).to(v) for exemplar in exemplars)], dim=1), heads)
    if all(_is_unbiased(exemplar) for exemplar in exemplars):
        return _join(attend(query, keys, values, None))
    biases = [_bias_of(exemplar) for exemplar in exemplars]
    has_never = any(e.target_mask is not None or e.selected.mode in ("hard_mask", "masactrl") for e in exemplars)
    own, own_tokens = _own_bias(exemplars), k.shape[1]  # another patch may have given the layer more keys than queries
    width = heads if any(exemplar.selected.mode == "matcher" for exemplar in exemplars) else 1
    out = []
    for rows in split_range(l, settings.chunk // (b * width * keys.shape[2])):
        bias = q.new_empty(b, width, rows.stop - rows.start, keys.shape[2])
        bias[..., :own_tokens] = 0.0 if own is None else rearrange(own[:, rows], "b r -> b 1 r 1")
        end = own_tokens
        for exemplar, exemplar_bias in zip(exemplars, biases):
            start, end = end, end + exemplar.keys.shape[1]
            bias[..., start:end] = exemplar_bias(rows)
        if has_never:
            bias.clamp_(min=_NEVER)
        out.append(attend(query[:, :, rows], keys, values, bias))
    return _join(torch.cat(out, dim=2))


def _is_unbiased(exemplar: Exemplar) -> bool:
    settings = exemplar.selected
    is_whole = exemplar.target_mask is None and exemplar.unmasked_weight == 1.0
    return settings.mode == "concat_only" and is_whole and settings.balance == 0.0


def _check(exemplar: Exemplar, tokens: int) -> None:
    settings, agreement = exemplar.selected, exemplar.agreement
    if settings.mode == "matcher" and exemplar.match is None:
        raise ValueError("AM-Adapter: the mode matcher needs a match with the exemplar. Load a matcher, or choose class_bias.")
    needed = settings.balance != 0.0 or settings.mode in ("class_bias", "hard_mask", "masactrl")
    if needed and agreement is None:
        raise ValueError(
            f"AM-Adapter: the mode {settings.mode} compares classes, so it needs semantic maps of target and exemplar. "
            "Connect both, or choose concat_only with a balance of 0."
        )
    sizes = (tokens, exemplar.keys.shape[1])
    if needed and agreement is not None and (agreement.rows.shape[1], agreement.keys.shape[1]) != sizes:
        raise ValueError(
            f"AM-Adapter: the classes are compared on {agreement.rows.shape[1]} target and {agreement.keys.shape[1]} exemplar "
            f"tokens, but the layer has {sizes[0]} and {sizes[1]}."
        )


def _bias_of(exemplar: Exemplar) -> Callable[[slice], Tensor]:
    """log w + balance + g of an exemplar, for a slice of target tokens: [b, 1 or n, r, m]. Minus infinity where w is 0."""
    settings, agreement = exemplar.selected, exemplar.agreement
    if agreement is not None and settings.mode in ("hard_mask", "masactrl"):
        agreement = agreement.harden()
    balance = None
    if settings.balance != 0.0 and agreement is not None:
        balance = rearrange(settings.balance * agreement.size_correction().float(), "b m -> b 1 1 m")
    log_weight = math.log(exemplar.unmasked_weight)

    def block(rows: slice) -> Tensor:
        found = _g(exemplar, agreement, settings, rows)
        if log_weight != 0.0:
            found = found + log_weight
        if balance is not None:
            found = found + balance
        if exemplar.target_mask is None:
            return found
        return found + rearrange(exemplar.target_mask[:, rows].float().log(), "b r -> b 1 r 1").to(found.device)

    return block


def _g(exemplar: Exemplar, agreement: ClassAgreement | None, settings: Settings, rows: slice) -> Tensor:
    """g of the mode: [b, 1 or n, r, m], float32."""
    if settings.mode == "matcher" and exemplar.match is not None:
        return exemplar.match.block(rows)
    if settings.mode == "concat_only" or agreement is None:
        return exemplar.keys.new_zeros(1, 1, 1, exemplar.keys.shape[1], dtype=torch.float32)
    c = rearrange(agreement.block(rows).float(), "b r m -> b 1 r m")
    if settings.mode == "class_bias":
        return settings.class_strength * (c - 0.25)
    return torch.where(c > 0.5, 0.0, -math.inf)


def _own_bias(exemplars: Sequence[Exemplar]) -> Tensor | None:
    """a: what masactrl adds to the logits of the target's own tokens, [b or 1, l], float32; None if no exemplar has this mode."""
    weights = []
    for exemplar in exemplars:
        if exemplar.selected.mode == "masactrl" and exemplar.agreement is not None:
            hard = exemplar.agreement.harden()
            # A token has one class; it is shared if any exemplar token has it. No need for the pairs.
            shared = hard.rows.float() @ rearrange(hard.keys.float().amax(dim=1), "b k -> b k 1")
            weight = exemplar.unmasked_weight * shared.squeeze(-1)
            weights.append(weight if exemplar.target_mask is None else weight * exemplar.target_mask.to(weight))
    if not weights:
        return None
    return torch.log1p(-torch.stack(torch.broadcast_tensors(*weights)).amax(dim=0).clamp(max=1.0))


@dataclass(frozen=True, eq=False)
class Match:
    """P of one layer, and how to enlarge it to the layer's own size.

    Args:
        pairs: P on the matching grids, 0 or more: [b g, l', n / g, h', w'] for g `groups` of the layer's heads.
        peak: [b], a quarter of it is subtracted.
        target_grid, exemplar_grid: the layer's own. matching_target, matching_exemplar: those of P.
        groups: see pairs. flat: enlarge as the published code does, along the flat order of the tokens.
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
        """g = P - peak / 4 for some target tokens of the layer, enlarged linearly: [b, n, r, m], float32."""
        # Linear weights sum to 1, so the peak may be subtracted where the numbers are still few.
        p = self._interpolate(rows) - rearrange(self.peak.float() / 4, "b -> b 1 1 1")
        if self.matching_exemplar != self.exemplar_grid:
            count = p.shape[1]
            if self.flat:
                tokens = self.exemplar_grid[0] * self.exemplar_grid[1]
                p = F.interpolate(rearrange(p, "b r n m -> b (r n) m"), tokens, mode="linear")
                p = rearrange(p, "b (r n) m -> b r n m", r=count)
            else:
                # Two products: on small grids they are several times faster than a bilinear resize.
                down, across = (_line_matrix(*sizes).to(p) for sizes in zip(self.matching_exemplar, self.exemplar_grid))
                image = rearrange(p, "b r n (h w) -> b r n h w", h=self.matching_exemplar[0])
                p = rearrange(down @ (image @ across.T), "b r n h w -> b r n (h w)")
        return rearrange(p, "b r n m -> b n r m")

    def select(self, rows: Sequence[int]) -> Match:
        """Some rows of the batch; the peaks do not change."""
        selected = list(rows)
        in_groups = [row * self.groups + group for row in selected for group in range(self.groups)]
        return replace(self, pairs=self.pairs.select(in_groups), peak=self.peak[selected])

    def activation(self, tokens: slice | Tensor = slice(None)) -> Tensor:
        """P for some target tokens of the matching grid, [b, r, n, m']."""
        return rearrange(self.pairs.decode(tokens), "(b g) l n h w -> b l (g n) (h w)", g=self.groups)

    def _interpolate(self, rows: slice) -> Tensor:
        """P for some target tokens of the layer, [b, r, n, m'], float32."""
        if self.matching_target == self.target_grid:
            return self.activation(rows).float()
        index, weight = _taps(self.matching_target, self.target_grid, self.flat)
        index, weight = index[rows].to(self.peak.device), weight[rows].to(self.peak.device)
        # A token lies between at most four of P. Four gathers, because a matrix product would cost as much as the matching.
        parts = (rearrange(weight[:, i], "r -> r 1 1") * self.activation(index[:, i]).float() for i in range(index.shape[1]))
        return sum(parts, start=torch.zeros((), device=self.peak.device))


def matching_grid(grid: Grid, behaviour: Behaviour = PAPER_FORMULAS, limit: int = MATCHING_TOKENS) -> Grid:
    """The grid that a layer's grid is matched on: itself, or divided by the smallest whole number that leaves `limit` tokens.

    Raises:
        ValueError: the behaviour is `flat` and the published code does not support the grid.
    """
    h, w = grid
    if behaviour.flat:
        if h != w or h not in (8, 16, 32, 64):
            raise ValueError(
                f"AM-Adapter: the published code supports square grids of 8, 16, 32 or 64 cells a side, not {h}x{w}. "
                "Use images of 512x512, or choose the behaviour corrected (paper formulas)."
            )
        return (min(h, PUBLISHED_SIDE), min(w, PUBLISHED_SIDE))
    factor = max(1, math.isqrt(max(0, h * w - 1) // max(1, limit)))
    while -(-h // factor) * -(-w // factor) > max(1, limit):
        factor += 1
    return (-(-h // factor), -(-w // factor))


def match_tokens(
    encoder: Encoder,
    q: Tensor,
    exemplar_keys: Tensor,
    heads: int,
    agreement: ClassAgreement,
    target_grid: Grid,
    exemplar_grid: Grid,
    *,
    behaviour: Behaviour = PAPER_FORMULAS,
    limit: int = MATCHING_TOKENS,
    chunk: int | None = None,
) -> Match:
    """P = phi(A_ref, C): which exemplar tokens each target token should attend to more.

    A product is linear in each side, so logits averaged over neighbouring tokens are the logits of averaged q and averaged k, and
    a layer of 4096 tokens is matched without its 4096 x 4096 logits.

    Args:
        encoder: of the layer's part of the UNet. q: [b, l, c]. exemplar_keys: [b or 1, m, c]. Neither gets a gradient, as published.
        heads: of the layer, a multiple of the encoder's: groups of heads are matched separately.
        agreement: C on the matching grids of both (see matching_grid), with the same behaviour.
        limit: the most tokens that are matched unchanged. chunk: numbers in a chunk's widest volume; by default what suits the device.

    Returns:
        The match. With `joint_peak` the peak is over all rows given: give the unconditional ones as well, then `select`.

    Raises:
        ValueError: the numbers of heads or of tokens do not fit.
    """
    if heads % encoder.heads:
        raise ValueError(
            f"AM-Adapter: this matcher was made for layers of {encoder.heads} attention heads (or multiples), but the layer has {heads}. "
            "Use the base model it was trained for, or the mode class_bias."
        )
    small_target, small_exemplar = (matching_grid(grid, behaviour, limit) for grid in (target_grid, exemplar_grid))
    q, k = q.detach(), exemplar_keys.detach().expand(q.shape[0], -1, -1)
    q = _average(q, target_grid, small_target, behaviour.flat)
    k = _average(k, exemplar_grid, small_exemplar, behaviour.flat).to(q)
    if (agreement.rows.shape[1], agreement.keys.shape[1]) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"AM-Adapter: the classes are compared on {agreement.rows.shape[1]} and {agreement.keys.shape[1]} tokens, but matched on "
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
        pairs = PairStore.from_tensor(encoder(volume(slice(None))))
    else:
        widest = query.shape[0] * max(encoder.widths) * k.shape[1]
        chunk = chunk or (MATCHING_CHUNK if q.device.type == "cpu" else 8 * MATCHING_CHUNK)
        pairs = encoder.forward_in_chunks(volume, q.shape[1], chunk // widest, exact=behaviour.flat)
    peak = rearrange(pairs.largest().float(), "(b g) -> b g", g=groups).amax(dim=1)
    if behaviour.joint_peak:
        peak = peak.amax().expand_as(peak)
    grids = (target_grid, exemplar_grid, small_target, small_exemplar)
    return Match(pairs, peak, *grids, groups=groups, flat=behaviour.flat)


def _average(tokens: Tensor, grid: Grid, small: Grid, flat: bool) -> Tensor:
    """[b, h w, c] averaged on a smaller grid. Flat: the middle two of every four tokens, which is a linear resize to a quarter."""
    if small == grid:
        return tokens
    if flat:
        step = grid[0] * grid[1] // (small[0] * small[1])
        return (tokens[:, step // 2 - 1 :: step] + tokens[:, step // 2 :: step]) / 2
    image = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0])
    return rearrange(F.adaptive_avg_pool2d(image, small), "b c h w -> b (h w) c")


def _taps(small: Grid, grid: Grid, flat: bool) -> tuple[Tensor, Tensor]:
    """The tokens of the small grid around each token of the grid, and their weights in a linear interpolation: [l, 2 or 4] both."""
    if flat:
        return _line_taps(small[0] * small[1], grid[0] * grid[1])
    (y, y_weight), (x, x_weight) = (_line_taps(*sizes) for sizes in zip(small, grid))
    index = rearrange(y * small[1], "h i -> h 1 i 1") + rearrange(x, "w j -> 1 w 1 j")
    weight = rearrange(y_weight, "h i -> h 1 i 1") * rearrange(x_weight, "w j -> 1 w 1 j")
    return rearrange(index, "h w i j -> (h w) (i j)"), rearrange(weight, "h w i j -> (h w) (i j)")


def _line_taps(small: int, size: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of a line with half-pixel centres and clamped ends: [size, 2] indices and weights."""
    position = ((torch.arange(size, dtype=torch.float32) + 0.5) * (small / size) - 0.5).clamp(min=0.0)
    low = position.long().clamp(max=small - 1)
    part = (position - low).clamp(max=1.0)
    return torch.stack([low, (low + 1).clamp(max=small - 1)], dim=1), torch.stack([1.0 - part, part], dim=1)


def _line_matrix(small: int, size: int) -> Tensor:
    """The interpolation of `_line_taps` as a matrix, [size, small]."""
    index, weight = _line_taps(small, size)
    return torch.zeros(size, small).scatter_add_(1, index, weight)


def _split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (n d) -> b n l d", n=heads)


def _join(x: Tensor) -> Tensor:
    return rearrange(x, "b n l d -> b l (n d)")
