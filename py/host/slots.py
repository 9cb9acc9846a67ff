"""Attention replace slots: one object per layer of one MODEL, in which several techniques and foreign packs coexist.

The host has a single replace slot per attention layer. Three habits meet there:

* packs that install a callable and expect to be the only one;
* packs that find an occupant and call `occupant.add(callback, **kwargs)` on it, expecting that from then on the occupant's result
  includes `callback(out, q, k, v, extra_options, **kwargs)` as a summand, inside `kwargs["sigma_start"] .. kwargs["sigma_end"]`;
* Exemplary's techniques, which return what they want to add to the text attention.

An `AttentionSlot` supports all three. It keeps the callable that was there and calls it for the base result; it offers `add`; and several
techniques share one slot.

Keys. The host looks for a layer's replacement under (block, number, transformer) first and under (block, number) only if there is none.
Slots use the exact key, which hides the other; so a replacement for a whole block that a pack adds after us is adopted as the occupant
when a run opens (`table_of_run`), and one that is made for a single model call replaces the slots of its block in this call
(`table_of_call`), as it would replace anything else.

Clones. `add` changes the object it is called on, so an object must never be in two MODELs. Hosts up to 0.8 deep-copy the options when
they clone, newer ones copy lists and dicts and share the rest; `separate_clones`, an ON_CLONE callback, gives each clone its own slots
under both. A slot owns no tensors, so that costs nothing. What cannot be repaired from here: an occupant of another pack that is shared
between two clones by a newer host and then changed by its own `add`, before our node; a pack that overwrites a slot without looking.
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
    """Checks its inputs before a run; patches of the list kind may do so too."""

    def before_run(self, run: Any) -> None:
        """Called once before sampling: raise ValueError here if an input cannot work with this run."""
        ...


class AttentionPatch(RunAware, Protocol):
    """The part of a technique that a slot calls. Frozen, without tensors, the same object in every layer and every clone."""

    def active(self, options: dict) -> bool:
        """Whether it acts in this model call; if no technique does, the layer computes exactly what it would without the slot."""
        ...

    # Optional: idle(run) -> bool. True if it will not act in this run; a layer whose techniques are all idle runs without its slot.

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        """What to add to this layer's attention [b, l, c], before to_out. `text` is the attention so far, without foreign additions."""
        ...


class AttentionSlot:
    """The callable under one attention replace key of one MODEL.

    Args:
        occupant: another pack's replacement, which gives the base result; None for the host's attention.
        techniques: Exemplary's. added: callbacks of packs that use `add`.
        is_of_block: the occupant was under the key of the whole block, where its pack will look for it again.
    """

    def __init__(
        self,
        occupant: Callable | None,
        techniques: tuple[AttentionPatch, ...] = (),
        added: tuple[tuple[Callable, dict], ...] = (),
        is_of_block: bool = False,
    ):
        self.occupant = occupant
        self.techniques = techniques
        self.added = added
        self.is_of_block = is_of_block

    def copy(self) -> AttentionSlot:
        return AttentionSlot(self.occupant, self.techniques, self.added, self.is_of_block)

    def __deepcopy__(self, memo: dict) -> AttentionSlot:
        return self.copy()  # techniques are frozen, and the occupant's tensors must not multiply with every clone

    def with_technique(self, technique: AttentionPatch, instead_of: AttentionPatch | None = None) -> AttentionSlot:
        kept = tuple(other for other in self.techniques if other is not instead_of)
        return AttentionSlot(self.occupant, (*kept, technique), self.added, self.is_of_block)

    def with_occupant_of_block(self, occupant: Callable) -> AttentionSlot:
        """The slot with the replacement of its whole block, unless it is occupied itself: the host would prefer that occupant too."""
        if self.occupant is not None and not self.is_of_block:
            return self
        return AttentionSlot(occupant, self.techniques, self.added, True)

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """The de-facto protocol of other packs. Replaces the tuple, so that no copy of this slot changes."""
        self.added = (*self.added, (callback, kwargs))

    def to(self, target: Any) -> AttentionSlot:
        """The host moves patches by calling `to` and stores the result; the occupant, which it would have called, is in here now."""
        if self.occupant is None or not hasattr(self.occupant, "to"):
            return self
        return AttentionSlot(self.occupant.to(target), self.techniques, self.added, self.is_of_block)

    def models(self) -> list:
        """The models that the host must load beside the base model for the occupant and the techniques."""
        parts: tuple[Any, ...] = (self.occupant, *self.techniques)
        return [model for part in parts if hasattr(part, "models") for model in part.models()]

    def idle(self, run: Any) -> bool:
        """Whether nothing in this slot acts in this run."""
        is_exclusive = self.occupant is None and not self.added
        return is_exclusive and all(hasattr(technique, "idle") and technique.idle(run) for technique in self.techniques)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        active = [technique for technique in self.techniques if technique.active(extra_options)]
        text: Any = plain_attention(q, k, v, extra_options) if self.occupant is None or active else None
        out: Any = text if self.occupant is None else self.occupant(q, k, v, extra_options)
        for number, technique in enumerate(active, start=1):
            change = technique(q, k, v, extra_options, text)
            if change is not None:
                out = out + change
                # The next technique gets the text attention with this one's change, so the later of two wins where both act on a token.
                text = text + change if number < len(active) else text
        for callback, kwargs in self.added:
            if _in_its_sigmas(kwargs, extra_options):
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out.to(q.dtype)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """[b, l, c] -> [b, l, c]: exactly what the host's layer computes without a replacement."""
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options.get("attn_precision"), transformer_options=options
    )


def as_conditional_rows(options: dict) -> dict:
    """Options for the host's attention over rows that a technique made: all of them conditional, whatever the rows of the call are."""
    return {**options, "cond_or_uncond": [0]}


def attention_of_own_rows(options: dict) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`plain_attention` for rows that a technique made."""
    row_options = as_conditional_rows(options)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain_attention(q, k, v, row_options)

    return attend


def replace_attention(
    model: Any, name: str, technique: AttentionPatch, keys: list[tuple[str, int, int]], instead_of: AttentionPatch | None = None
) -> None:
    """Put a technique into the replace slot `name` ("attn1" or "attn2") of these layers. `model` must be our own clone."""
    table = model.model_options["transformer_options"].get("patches_replace", {}).get(name, {})
    for key in keys:
        occupant = table.get(key)
        slot = occupant if isinstance(occupant, AttentionSlot) else AttentionSlot(occupant)
        if key[:2] in table:
            slot = slot.with_occupant_of_block(table[key[:2]])
        model.set_model_patch_replace(slot.with_technique(technique, instead_of), name, *key)


class AdoptedOfBlock:
    """A replacement of a whole block that the slots of the block have adopted for a run, unlike one that a call adds."""

    def __init__(self, occupant: Callable):
        self.occupant = occupant

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.occupant(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "occupant":
            raise AttributeError(name)
        return getattr(self.occupant, name)


def table_of_run(replaced: dict[str, dict], run: Any) -> dict[str, dict]:
    """The host's replace table of one run.

    Slots adopt replacements of their whole block, and slots that stay idle are left out: those layers run as if they had never been
    replaced.
    """
    return {name: _adopted(table, run) if name in REPLACED else table for name, table in replaced.items()}


def _adopted(table: dict, run: Any) -> dict:
    found: dict = {}
    adopted = set()
    for key, patch in table.items():
        if isinstance(patch, AttentionSlot):
            block = table.get(key[:2]) if len(key) == 3 else None
            if block is not None:
                patch = patch.with_occupant_of_block(block)
                adopted.add(key[:2])
            if patch.idle(run):
                continue
        found[key] = patch
    return {key: AdoptedOfBlock(patch) if key in adopted else patch for key, patch in found.items()}


def table_of_call(replaced: dict[str, dict]) -> dict[str, dict]:
    """The host's replace table of one model call: a replacement that was added for a whole block hides the slots of its layers.

    Guidance by perturbed attention and its kind add one for a single call.
    """
    changed = {}
    for name in REPLACED:
        table = replaced.get(name, {})
        slotted = {key[:2] for key, patch in table.items() if isinstance(patch, AttentionSlot) and len(key) == 3}
        new = {key for key in slotted if key in table and not isinstance(table[key], AdoptedOfBlock)}
        if new:
            changed[name] = {
                key: patch for key, patch in table.items() if not (isinstance(patch, AttentionSlot) and key[:2] in new)
            }
    return {**replaced, **changed} if changed else replaced


def separate_clones(old: Any, new: Any) -> None:
    """ON_CLONE callback: no slot is in two MODELs."""
    replaced = new.model_options.get("transformer_options", {}).get("patches_replace", {})
    for name in REPLACED:
        table = replaced.get(name, {})
        for key, patch in table.items():
            if isinstance(patch, AttentionSlot):
                table[key] = patch.copy()


def techniques(options: dict) -> Iterator[RunAware]:
    """Everything of Exemplary in these transformer_options that checks its inputs before a run, each once however many layers it is in."""
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
