"""Features of exemplars that are kept between runs: bounded, in main memory, released when the host frees memory.

An entry belongs to a base model and is released with it. The host manages the store as a model with one parameter: when it unloads its
models (`/free`, another checkpoint, too little memory), the entries are released too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from .. import networks
from ..run import KEY

RESERVE = 1 << 30  # bytes of main memory that stay free


@dataclass(frozen=True, eq=False)
class Features:
    """What a model computes of exemplars at one noise level.

    Args:
        layers: the layer's key -> (keys, values), [n, m, c] both, of n exemplars, and their grid.
        latent: [n, c, h, w], the model's input, in the scale of its sigmas.
        slope: [n, c, h, w], d latent / d sigma, for the step to the next noise level.
    """

    layers: dict[Hashable, tuple[Tensor, Tensor, tuple[int, int]]]
    latent: Tensor
    slope: Tensor

    def to(self, device: torch.device) -> Features:
        moved = {key: (k.to(device), v.to(device), grid) for key, (k, v, grid) in self.layers.items()}
        return Features(moved, self.latent.to(device), self.slope.to(device))

    def size(self) -> int:
        """Bytes."""
        tensors = [self.latent, self.slope, *(t for k, v, _ in self.layers.values() for t in (k, v))]
        return sum(t.nelement() * t.element_size() for t in tensors)


@dataclass
class _Entry:
    features: Features
    size: int
    used: int


@dataclass
class FeatureStore:
    """Features by base model and key. During a run nothing that it uses is removed: a loop over more steps than fit then finds some of
    them every time, where removing the oldest would find none."""

    runs: int = 0
    _models: WeakKeyDictionary = field(default_factory=WeakKeyDictionary)

    def begin_run(self) -> None:
        self.runs += 1

    def get(self, model: Any, key: Hashable) -> Features | None:
        entry = self._models.get(model, {}).get(key)
        if entry is None:
            return None
        entry.used = self.runs
        return entry.features

    def put(self, model: Any, key: Hashable, features: Features, limit: int) -> bool:
        """Keep features if they fit into `limit` bytes together with what this run uses; older ones are removed, oldest first."""
        size = features.size()
        if comfy.model_management.get_free_memory(torch.device("cpu")) < RESERVE + size:
            self.clear()
            return False
        old = sorted(
            ((e.used, id(m), k) for m, entries in self._models.items() for k, e in entries.items() if e.used < self.runs),
            key=lambda e: e[0],
        )
        owners = {id(m): entries for m, entries in self._models.items()}
        if size > limit - self.size() + sum(owners[m][k].size for _, m, k in old):
            return False
        for _, owner, name in old:
            if self.size() + size <= limit:
                break
            del owners[owner][name]
        self._models.setdefault(model, {})[key] = _Entry(features.to(torch.device("cpu")), size, self.runs)
        return True

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entries in self._models.values() for entry in entries.values())

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._models.values())

    def clear(self) -> None:
        self._models.clear()


#: The one store of this process. Not behind functools.cache, which torch.compile ignores.
_store = FeatureStore()


def store() -> FeatureStore:
    """The one store of this process."""
    return _store


@cache
def _store_patcher() -> Any:
    """The store as a model that the host's memory management handles."""
    placeholder = torch.nn.Module()
    placeholder.register_parameter("kept", torch.nn.Parameter(torch.zeros(1), requires_grad=False))
    patcher = networks.as_patcher(placeholder)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _clear_store)
    return patcher


def _clear_store(patcher: Any, unpatch_all: bool = True) -> None:
    if unpatch_all:  # the host also takes a model off its list for a moment, to load it again
        store().clear()


def register_store(model: Any) -> None:
    """Let the host manage the store whenever this MODEL (already a clone) is sampled."""
    networks.serve(model, "exemplary_features", [_store_patcher()])


def digest(tensor: Tensor | None) -> str:
    """Equal for equal numbers."""
    if tensor is None:
        return ""
    data = tensor.detach().float().contiguous().cpu()
    return f"{tuple(data.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()}"


def lookup_or_make(model: Any, key: Hashable | None, limit: int, device: torch.device, make: Callable[[], Features]) -> Features:
    """The features of a key, on a device; made if they are not in the store. Without a key they are always made."""
    found = None if key is None or limit <= 0 else store().get(model, key)
    if found is not None:
        return found.to(device)
    made = make()
    if key is not None and limit > 0:
        store().put(model, key, made, limit)
    return made
