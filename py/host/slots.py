"""Attention replace slots: one object per layer of one MODEL, in which several techniques and foreign packs live together.

The host has a single replace slot per attention layer. Three habits meet there:

* packs that install a callable and expect to be alone;
* packs that find an occupant and call `occupant.add(callback, **kwargs)` on it, expecting that from then on the occupant's result
  includes `callback(out, q, k, v, extra_options, **kwargs)` as a summand, inside `kwargs["sigma_start"] .. kwargs["sigma_end"]`;
* our own techniques, which return what they want to add to the text attention.

An `AttentionSlot` is polite to all three. It keeps whatever was there and calls it for the base result; it offers `add`; and several
techniques of ours share one slot.

Clones. `add` changes the object it is called on, so an object must never be in two MODELs. Hosts up to 0.8 deep-copy the options when
they clone, newer ones copy lists and dicts and share the rest; `separate_clones`, an ON_CLONE callback, gives each clone its own slots
under both. A slot owns no tensors, so that costs nothing. What cannot be repaired from here: an occupant of another pack that is shared
between two clones by a newer host and then changed by its own `add`, before we came; a pack that overwrites our slot without looking; a
pack that fills the two-part key `(block, number)` after us, which the host never reads where a three-part key exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

REPLACED = ("attn1", "attn2")


@runtime_checkable
class RunAware(Protocol):
    """What checks its inputs before a run; patches of the list kind may do so too."""

    def before_run(self, run: Any) -> None:
        """Called once before sampling: raise ValueError here if an input cannot work with this run."""
        ...


class AttentionPatch(RunAware, Protocol):
    """What a technique puts into a slot. Frozen, no tensors of its own, the same object in every layer and every clone."""

    def active(self, options: dict) -> bool:
        """Whether it acts in this model call; if no technique does, the layer computes exactly what it did without us."""
        ...

    # Optional: idle(run) -> bool. True if it will act nowhere in this run; layers of which nobody wants anything are then not entered.

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        """What to add to this layer's attention [b, l, c], before to_out. `text` is the attention so far, without foreign additions."""
        ...


class AttentionSlot:
    """The occupant of one attention replace key of one MODEL."""

    def __init__(
        self,
        occupant: Callable | None,
        techniques: tuple[AttentionPatch, ...] = (),
        added: tuple[tuple[Callable, dict], ...] = (),
    ):
        self.occupant = occupant
        self.techniques = techniques
        self.added = added

    def copy(self) -> AttentionSlot:
        return AttentionSlot(self.occupant, self.techniques, self.added)

    def __deepcopy__(self, memo: dict) -> AttentionSlot:
        return self.copy()  # techniques are frozen, and the occupant's tensors must not multiply with every clone

    def with_technique(self, technique: AttentionPatch, instead_of: AttentionPatch | None = None) -> AttentionSlot:
        kept = tuple(other for other in self.techniques if other is not instead_of)
        return AttentionSlot(self.occupant, (*kept, technique), self.added)

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """The de-facto protocol of other packs. Replaces our tuple, so that no copy of this slot sees it."""
        self.added = (*self.added, (callback, kwargs))

    def to(self, target: Any) -> AttentionSlot:
        """The host moves patches by calling `to` and stores the result; what it would have called is inside us now."""
        if self.occupant is None or not hasattr(self.occupant, "to"):
            return self
        return AttentionSlot(self.occupant.to(target), self.techniques, self.added)

    def models(self) -> list:
        """Asked by the host before sampling: what our occupant and techniques need loaded beside the base model."""
        parts: tuple[Any, ...] = (self.occupant, *self.techniques)
        return [model for part in parts if hasattr(part, "models") for model in part.models()]

    def idle(self, run: Any) -> bool:
        """Whether nobody in this slot does anything in this run."""
        alone = self.occupant is None and not self.added
        return alone and all(hasattr(technique, "idle") and technique.idle(run) for technique in self.techniques)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        active = [technique for technique in self.techniques if technique.active(extra_options)]
        text: Any = plain_attention(q, k, v, extra_options) if self.occupant is None or active else None
        out: Any = text if self.occupant is None else self.occupant(q, k, v, extra_options)
        for place, technique in enumerate(active, start=1):
            change = technique(q, k, v, extra_options, text)
            if change is not None:
                out = out + change
                # The next technique sees the text attention as this one left it, so the later of two wins where both cover a place.
                text = text + change if place < len(active) else text
        for callback, kwargs in self.added:
            if _in_its_sigmas(kwargs, extra_options):
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out.to(q.dtype)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """[b, l, c] -> [b, l, c]: exactly what the host's layer computes when nobody has replaced it."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options.get("attn_precision"), transformer_options=options
    )


def as_conditional_rows(options: dict) -> dict:
    """Options for the host's attention over rows of our own making: all of them conditional, whatever the whole call holds."""
    return {**options, "cond_or_uncond": [0]}


def attention_of_own_rows(options: dict) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`plain_attention` for rows of our own making."""
    ours = as_conditional_rows(options)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain_attention(q, k, v, ours)

    return attend


def replace_attention(
    model: Any, name: str, technique: AttentionPatch, keys: list[tuple[str, int, int]], instead_of: AttentionPatch | None = None
) -> None:
    """Put a technique into the replace slot `name` ("attn1" or "attn2") of these layers. `model` must be our own clone."""
    table = model.model_options["transformer_options"].get("patches_replace", {}).get(name, {})
    for key in keys:
        occupant = table.get(key, table.get(key[:2]))
        slot = occupant if isinstance(occupant, AttentionSlot) else AttentionSlot(occupant)
        model.set_model_patch_replace(slot.with_technique(technique, instead_of), name, *key)


def without_idle(replaced: dict[str, dict], run: Any) -> dict[str, dict]:
    """The host's replace table of one run, without slots that stay idle in it: those layers run as if they had never been replaced."""
    return {
        name: {key: patch for key, patch in table.items() if not (isinstance(patch, AttentionSlot) and patch.idle(run))}
        for name, table in replaced.items()
    }


def separate_clones(old: Any, new: Any) -> None:
    """ON_CLONE callback: no slot is in two MODELs."""
    replaced = new.model_options.get("transformer_options", {}).get("patches_replace", {})
    for name in REPLACED:
        table = replaced.get(name, {})
        for key, patch in table.items():
            if isinstance(patch, AttentionSlot):
                table[key] = patch.copy()


def techniques(options: dict) -> Iterator[RunAware]:
    """Everything of ours in these transformer_options that wants to know of a run, each once however many layers it is in."""
    seen = set()
    for patches in options.get("patches", {}).values():
        for patch in patches:
            if isinstance(patch, RunAware) and id(patch) not in seen:
                seen.add(id(patch))
                yield patch
    for name in REPLACED:
        for slot in options.get("patches_replace", {}).get(name, {}).values():
            for technique in slot.techniques if isinstance(slot, AttentionSlot) else ():
                if id(technique) not in seen:
                    seen.add(id(technique))
                    yield technique


def _in_its_sigmas(kwargs: dict, options: dict) -> bool:
    if "sigma_start" not in kwargs and "sigma_end" not in kwargs:
        return True
    sigma = float(torch.as_tensor(options["sigmas"]).flatten()[0])
    return kwargs.get("sigma_end", 0.0) <= sigma <= kwargs.get("sigma_start", float("inf"))
