"""Several MODELs in one sampling run: which of them fit together, which of them share weights, and who may run now."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_sampling

from ..hooks import model_name

#: What a model predicts, by the class that its sampling is built on; the more special ones first, since they inherit from others.
PREDICTIONS = {"CONST": "flow", "EDM": "EDM", "V_PREDICTION": "v", "X0": "x0", "EPS": "epsilon"}


def prediction_of(patcher: Any) -> str:
    """What this MODEL predicts, in one word, patches of its sampling included."""
    sampling = patcher.get_model_object("model_sampling")
    for kind, name in PREDICTIONS.items():
        if isinstance(sampling, getattr(comfy.model_sampling, kind)):
            return name
    return type(sampling).__name__


def check_pair(scene: Any, subject: Any, node: str) -> None:
    """Raises ValueError unless both MODELs denoise the same latents in the same way."""
    names = f"the scene is {model_name(scene)}, the subject {model_name(subject)}"
    formats = [patcher.get_model_object("latent_format") for patcher in (scene, subject)]
    if type(formats[0]) is not type(formats[1]) or formats[0].latent_channels != formats[1].latent_channels:
        spaces = " and ".join(type(f).__name__ for f in formats)
        raise ValueError(
            f"{node}: the two models have different latent spaces ({spaces}): {names}. "
            "Take two checkpoints of one family, such as two of Stable Diffusion 1.5 or two of SDXL."
        )
    kinds = [prediction_of(patcher) for patcher in (scene, subject)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{node}: the two models predict different things ({kinds[0]} and {kinds[1]}): {names}. "
            "Take two checkpoints of one kind; if a ModelSampling node is on one of them, put the same on the other."
        )
    ends = [float(patcher.get_model_object("model_sampling").sigma_max) for patcher in (scene, subject)]
    if max(ends) > 1.05 * min(ends):
        raise ValueError(
            f"{node}: the two models have different noise schedules (they begin at sigma {ends[0]:.4g} and {ends[1]:.4g}): {names}. "
            "Put the same ModelSampling node on both."
        )


def same_weights(a: Any, b: Any) -> bool:
    """Are these clones of one checkpoint with the same LoRAs and replaced parts, so that one copy of the weights serves both?"""
    if not a.is_clone(b) or a.patches_uuid != b.patches_uuid:
        return False
    parts = ("object_patches", "weight_wrapper_patches", "injections")
    return all(getattr(a, part, {}) == getattr(b, part, {}) for part in parts)


def has_hooks(conditions: dict[str, list[dict]]) -> bool:
    """Do these conditions bring hooks (LoRAs on a schedule), which swap weights while sampling?"""
    return any(
        condition.get("hooks") is not None or ("control" in condition and condition["control"].get_extra_hooks())
        for group in conditions.values()
        for condition in group
    )


def with_own_weights(patcher: Any) -> Any:
    """A MODEL like this one whose weights are a copy: two LoRA stacks on one checkpoint cannot be in one set of weights at once."""
    if getattr(patcher, "is_dynamic", lambda: False)():
        return patcher.clone(force_deepcopy=True)  # such models are views of a file, which the host opens a second time
    patcher.detach()  # what may be merged into the shared weights now must not be copied
    separate = patcher.clone()
    config = getattr(patcher.model, "model_config", None)
    # The host's config answers every question, copying's too, with None; it is never changed, so both models may have it.
    separate.model = copy.deepcopy(patcher.model, {id(config): config})
    for kept in ("backup", "backup_buffers", "object_patches_backup", "hook_backup"):
        setattr(separate, kept, {})
    separate.pinned = set()
    separate.parent = None
    return separate


@contextmanager
def running(patcher: Any) -> Iterator[None]:
    """Make this MODEL the one that the host's batching asks for hooks and state; another one may share its weights."""
    before = getattr(patcher.model, "current_patcher", None)
    patcher.model.current_patcher = patcher
    try:
        yield
    finally:
        patcher.model.current_patcher = before


def distinct(patchers: Sequence[Any], known: Sequence[Any] = ()) -> list[Any]:
    """Those of `patchers` that have other weights than `known` and than each other."""
    found: list[Any] = []
    for patcher in patchers:
        if not any(patcher is other or getattr(patcher, "model", 0) is getattr(other, "model", 1) for other in (*known, *found)):
            found.append(patcher)
    return found
