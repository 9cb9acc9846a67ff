"""Which function computes which recorded case.

A technique registers itself in `tests/conformance/adapters/<technique>.py`; every file there is imported. An adapter is a
function from weights, inputs and the case's config to outputs, named as the recorded tensors without their `in.` and `out.`:

    from ..registry import register

    @register("am_adapter", "am_concat")
    def concat(weights, inputs, config):
        layer = Attention(...)
        layer.load_state_dict(weights)
        return {"pre_to_out": ..., "post_to_out": ..., "aug_uncond_pre": ...}

The first name is the file's `technique`, the second the kind of its `case`, that is the start of its name: `am_concat` serves
`am_concat_L256`; the longest kind that fits wins. Weights come filled by the rule. Files of part A do not list their keys, so
their adapters give the shapes, in the names of the original checkpoint: `@register("CA2-SIS", "style", shapes=checkpoint_shapes)`
with `checkpoint_shapes(config) -> {key: shape}`. Outputs are given whole; the runner takes the recorded tokens or channels of
them where `subsample` says "tokens stride 4 of axis 1" or the like. float16 inputs arrive as float32, everything else as stored.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Compute = Callable[[dict[str, Tensor], dict[str, Tensor], dict], Mapping[str, Tensor]]
Shapes = Callable[[dict], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Adapter:
    """How to compute one kind of case."""

    compute: Compute
    shapes: Shapes | None = None


_ADAPTERS: dict[tuple[str, str], Adapter] = {}


def register(technique: str, kind: str, *, shapes: Shapes | None = None) -> Callable[[Compute], Compute]:
    """Say that the decorated function computes the cases of `technique` whose names start with `kind`."""

    def keep(compute: Compute) -> Compute:
        if (technique, kind) in _ADAPTERS:
            raise ValueError(f"Two adapters are registered for {technique}, {kind}.")
        _ADAPTERS[technique, kind] = Adapter(compute, shapes)
        return compute

    return keep


def find(technique: str, case: str) -> Adapter | None:
    """The adapter of a case, or None while its technique is not built."""
    _import_adapters()
    kinds = [kind for known, kind in _ADAPTERS if known == technique and case.startswith(kind)]
    return _ADAPTERS[technique, max(kinds, key=len)] if kinds else None


def _import_adapters() -> None:
    from . import adapters

    for module in pkgutil.iter_modules(adapters.__path__):
        importlib.import_module(f"{adapters.__name__}.{module.name}")
