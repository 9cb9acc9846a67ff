"""The attention override of one model call: adds the bias and the exemplar keys to every call of attention that holds image or text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...joint.bias import NEVER, Bias
from ...joint.layout import Call, Layout, Span
from ...joint.rotation import Rotation

OVERRIDE = "optimized_attention_override"
#: Parameters of the host's attention functions, in order.
PARAMETERS = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
#: Up to so many keys the bias is an additive table; above, extra channels of q and k, so that memory stays linear.
TABLE_TOKENS = 2048
#: Names of the biases of a plan.
FULL, OFF, WITHOUT_EXEMPLARS = "full", "off", " without exemplars"


class TokensChangedError(Exception):
    """An attention call holds another number of tokens than the layout says: somebody else appends or removes tokens."""

    def __init__(self, found: int, expected: int):
        super().__init__(f"{found} tokens instead of {expected}")
        self.found, self.expected = found, expected


@dataclass(frozen=True, eq=False)
class ExtraTokens:
    """Exemplar keys of some rows: by name of the attention call, keys and values [1 or rows, heads, m, d]; `count` is m."""

    rows: slice
    layers: Any
    count: int


class BiasCache:
    """Parts and tables of one set of biases, made once per kind of attention call and kept as long as the biases are."""

    def __init__(self) -> None:
        self._parts: dict[Hashable, Bias | None] = {}
        self._tables: dict[Hashable, Tensor] = {}

    def part(self, key: Hashable, make: Callable[[], Bias]) -> Bias | None:
        """A bias without the channels that add nothing; None if none is left."""
        if key not in self._parts:
            bias = make().pruned()
            self._parts[key] = bias if bias.queries.shape[-1] else None
        return self._parts[key]

    def table(self, key: Hashable, bias: Bias, dtype: torch.dtype) -> Tensor:
        if (key, dtype) not in self._tables:
            self._tables[key, dtype] = bias.table(dtype)
        return self._tables[key, dtype]


@dataclass(frozen=True, eq=False)
class CallPlan:
    """Everything that is added to one model call, the same for all its layers.

    Args:
        layout: of the whole sequence. inserted: the text tokens that were appended to the `prompt` first ones of the sampler's prompt.
        rows: b, the rows of the call.
        biases: of all rows. "full" has the exemplars' columns last; "without exemplars" is for attention calls that were not recorded.
            "off" and "off without exemplars" are the attention that `gain` leads away from.
        rotations: of tokens that would have other positions in the joint sequence.
        gain: [b, n] or None.
        extras: exemplar keys, in the order of the columns; each is a list over the chunks of the call.
        cache: of the biases; calls with the same biases share it.
    """

    layout: Layout
    rows: int
    prompt: int
    inserted: int
    biases: Mapping[str, Bias]
    rotations: tuple[Rotation, ...] = ()
    gain: Tensor | None = None
    extras: tuple[tuple[ExtraTokens, ...], ...] = ()
    cache: BiasCache = field(default_factory=BiasCache)


class CallNames:
    """Names the attention calls of one model call: by the host's block where it says it, and by their order."""

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()

    def next(self, options: dict) -> Hashable:
        block = options.get("block_type"), options.get("block_index")
        self._seen[block] += 1
        return (*block, self._seen[block])


@dataclass(frozen=True, eq=False)
class HostCall:
    """The arguments of one call of the host's attention, heads split: q [b, n, l, d], k and v [b, n', m, d]."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    keeps_heads: bool  # the result is [b, n, l, d] instead of [b, l, n d]
    more: dict[str, Any]

    @classmethod
    def parse(cls, args: tuple, kwargs: dict[str, Any]) -> HostCall:
        named = {**dict(zip(PARAMETERS, args)), **kwargs}
        q, k, v, heads = (named.pop(name) for name in PARAMETERS[:4])
        is_split = named.pop("skip_reshape", False)
        if not is_split:
            d = q.shape[-1] // heads
            # Stable Diffusion 3 hands over values whose heads are split already, as [b, m, n, d].
            q, k, v = (x.flatten(2).unflatten(-1, (-1, d)).transpose(1, 2) for x in (q, k, v))
        return cls(q, k, v, heads, named.pop("mask", None), bool(named.pop("skip_output_reshape", False)), named)

    @property
    def options(self) -> dict:
        return self.more.get("transformer_options") or {}


class JointAttention:
    """`optimized_attention_override` of one model call, around the override that was there before.

    `record`, if given, receives the keys and values of the image cells of every call by its name.
    """

    def __init__(self, plan: CallPlan, before: Callable | None, record: dict | None = None):
        self.plan, self.before, self.record = plan, before, record
        self.names = CallNames()
        self.matched = 0

    def __deepcopy__(self, memo: dict) -> JointAttention:
        return self

    def __call__(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        inner = func if self.before is None else _bind(self.before, func)
        host = HostCall.parse(args, kwargs)
        call = self._find(host)
        if call is None:
            return inner(*args, **kwargs)
        self.matched += 1
        layout, q, k, v = self.plan.layout, host.q, host.k, host.v
        has_cells = call.queries.stop == call.keys.stop == layout.total
        name = self.names.next(host.options) if has_cells else None
        if has_cells:
            for rotation in self.plan.rotations:
                q, k = rotation(q, call.queries), rotation(k, call.keys)
        if self.record is not None and name is not None:
            start = layout.cells.start - call.keys.start
            cells = slice(start, start + len(layout.cells))
            self.record[name] = k[:, :, cells].clone(), v[:, :, cells].clone()
        extra = self._extra_tokens(name, k) if name is not None and self.plan.extras else None
        if extra is not None:
            k, v = torch.cat([k, extra[0]], dim=2), torch.cat([v, extra[1]], dim=2)
        variant = "" if extra is not None or not self.plan.extras else WITHOUT_EXEMPLARS
        key = (FULL + variant, call)
        bias = self._bias(key, call.queries)
        if bias is None and host.mask is None and k is host.k and q is host.q:
            return inner(*args, **kwargs)
        mask = self._fit_mask(host.mask, call, k.shape[2], q.dtype)
        out = self._attend(inner, host, q, k, v, mask, bias, key)
        if self.plan.gain is not None and len(call.keys) != len(layout.image) and call.queries.stop == layout.total:
            out = self._amplify(inner, host, call, (q, k, v), mask, out, OFF + variant)
        return out

    def _find(self, host: HostCall) -> Call | None:
        queries, keys = host.q.shape[2], host.k.shape[2]
        if host.q.shape[0] != self.plan.rows:
            return None
        call = self.plan.layout.find_call(queries, keys)
        if call is None and queries == keys:
            raise TokensChangedError(queries, self.plan.layout.total)
        return call

    def _extra_tokens(self, name: Hashable, k: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values [b, n', x, d] of all exemplars for one call; None if one of them was not recorded there."""
        columns = []
        for chunks in self.plan.extras:
            keys = k.new_zeros(k.shape[0], k.shape[1], chunks[0].count, k.shape[3])
            values = torch.zeros_like(keys)
            for chunk in chunks:
                found = chunk.layers.get(name)
                if found is None:
                    return None
                keys[chunk.rows], values[chunk.rows] = (t.to(k) for t in found)
            columns.append((keys, values))
        return torch.cat([c[0] for c in columns], dim=2), torch.cat([c[1] for c in columns], dim=2)

    def _bias(self, key: tuple[Any, ...], queries: Span, rows: Sequence[int] | None = None) -> Bias | None:
        """The bias of a call, without the channels that are idle there; None for nothing. `key`: (name of the bias, call, ...)."""
        variant, call = key[:2]

        def make() -> Bias:
            with_extra = call.queries.stop == call.keys.stop == self.plan.layout.total
            bias = self.plan.biases[variant].cut(queries, call.keys, with_extra)
            return bias if rows is None else bias.rows(rows)

        return self.plan.cache.part(key, make)

    def _attend(
        self,
        inner: Callable,
        host: HostCall,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Bias | None,
        key: Hashable,
        options: dict | None = None,
    ) -> Tensor:
        more = dict(host.more)
        if options is not None:
            more["transformer_options"] = options
        d, width = q.shape[-1], v.shape[-1]
        if bias is not None and k.shape[2] <= TABLE_TOKENS:
            table = self.plan.cache.table(key, bias, q.dtype)
            mask = table if mask is None else mask + table
        elif bias is not None:
            q, k, v = bias.widen(q, k, v)
        out = inner(q, k, v, host.heads, mask=mask, skip_reshape=True, skip_output_reshape=host.keeps_heads, **more)
        if q.shape[-1] == d:
            return out
        if host.keeps_heads:
            return out[..., :width]
        return out.unflatten(-1, (host.heads, -1))[..., :width].flatten(-2)

    def _amplify(
        self,
        inner: Callable,
        host: HostCall,
        call: Call,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        out: Tensor,
        variant: str,
    ) -> Tensor:
        """out + (gain - 1) (out - o), o the attention of image cells without the texts of regions."""
        gain: Any = self.plan.gain
        rows = (gain != 1).any(dim=1).nonzero().flatten().tolist()
        asked = self.plan.layout.cells
        cells = slice(asked.start - call.queries.start, asked.stop - call.queries.start)
        key = (variant, call, tuple(rows))
        bias = self._bias(key, asked, rows)
        q, k, v = (x[rows] for x in qkv)
        if mask is not None:
            mask = mask if mask.shape[0] == 1 else mask[rows]
            mask = mask if mask.shape[2] == 1 else mask[:, :, cells]
        options = {**host.options, "cond_or_uncond": [0]}
        off = self._attend(inner, host, q[:, :, cells], k, v, mask, bias, key, options)
        more, out = (gain[rows] - 1).to(out.dtype), out.clone()
        by_cell = out.transpose(1, 2) if host.keeps_heads else out.unflatten(-1, (host.heads, -1))  # [b, l, n, d], shares memory
        off = off.transpose(1, 2) if host.keeps_heads else off.unflatten(-1, (host.heads, -1))
        on = by_cell[rows, cells]
        by_cell[rows, cells] = on + more[..., None, None] * (on - off)
        return out

    def _fit_mask(self, mask: Tensor | None, call: Call, keys: int, dtype: torch.dtype) -> Tensor | None:
        """The host's own mask for the appended texts and keys, additive, [b or 1, 1 or n, l or 1, m]."""
        if mask is None:
            return None
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
        if not torch.is_floating_point(mask):
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, NEVER)
        for axis, span in ((-1, call.keys), (-2, call.queries)):
            missing = len(span) - mask.shape[axis]
            if missing == self.plan.inserted and missing and (axis == -1 or mask.shape[axis] > 1):
                first, rest = mask.split([self.plan.prompt, mask.shape[axis] - self.plan.prompt], dim=axis)
                shape = list(mask.shape)
                shape[axis] = missing
                mask = torch.cat([first, mask.new_zeros(shape), rest], dim=axis)
        mask = mask.to(dtype)
        return F.pad(mask, (0, keys - mask.shape[-1])) if 1 < mask.shape[-1] < keys else mask


def _bind(before: Callable, func: Callable) -> Callable:
    def bound(*args: Any, **kwargs: Any) -> Tensor:
        return before(func, *args, **kwargs)

    return bound
