"""Several MODELs in one sampling run: which of them can be combined, which share weights, and the units of their predictions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor

from ..hooks import model_name
from ..notices import warn_user

#: What a model predicts, by the base class of its sampling; derived classes come before the classes that they inherit from.
PREDICTIONS = {
    "CONST": "flow",
    "COSMOS_RFLOW": "Cosmos flow",
    "EDM": "EDM",
    "V_PREDICTION": "v",
    "X0": "x0",
    "EPS": "epsilon",
}
#: Copies of weights above this size are announced on the node.
LARGE_BYTES = 4 << 30
#: The host's names for the width of the text embeddings that a network takes.
TEXT_WIDTHS = ("context_dim", "context_in_dim", "context_size", "cap_feat_dim", "joint_attention_dim", "text_dim")
#: Where a node of AnimateDiff-Evolved leaves its keys on a MODEL, all beginning with "ADE".
MARKED = ("attachments", "additional_models", "injections")


def prediction_of(patcher: Any) -> str:
    """What this MODEL predicts, in one word. Nodes that replace its sampling are taken into account."""
    sampling = patcher.get_model_object("model_sampling")
    for kind, name in PREDICTIONS.items():
        if hasattr(comfy.model_sampling, kind) and isinstance(sampling, getattr(comfy.model_sampling, kind)):
            return name
    return type(sampling).__name__


def x0_per_epsilon(sampling: Any, sigma: Tensor) -> Tensor:
    """How large a difference of x0 is for a difference of 1 in epsilon: sigma, or sigma / (1 - sigma) for rectified flow.

    Args:
        sampling: the MODEL's `model_sampling`.
        sigma: [b].
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return sigma / (1.0 - sigma).clamp(min=0.0)
    return sigma


def check_pair(scene: Any, subject: Any, node: str) -> None:
    """Raise a ValueError unless both MODELs denoise the same latents with the same kind of prediction and the same range of sigmas.

    The classes of the models may differ: each converts the common sigma to its own timesteps.
    """
    names = f"the scene model is {model_name(scene)}, the subject model {model_name(subject)}"
    formats = [patcher.get_model_object("latent_format") for patcher in (scene, subject)]
    if type(formats[0]) is not type(formats[1]) or formats[0].latent_channels != formats[1].latent_channels:
        spaces = " and ".join(type(f).__name__ for f in formats)
        raise ValueError(
            f"{node}: the two models have different latent spaces ({spaces}): {names}. "
            "Use two checkpoints of one family, such as two of Stable Diffusion 1.5 or two of SDXL, or models that share a VAE, such "
            "as Flux.1, Chroma and Z-Image."
        )
    kinds = [prediction_of(patcher) for patcher in (scene, subject)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{node}: the two models have different prediction types ({kinds[0]} and {kinds[1]}): {names}. "
            "Use two checkpoints of one kind; if a ModelSampling node is on one of them, put the same on the other."
        )
    ends = [float(patcher.get_model_object("model_sampling").sigma_max) for patcher in (scene, subject)]
    if max(ends) > 1.05 * min(ends):
        raise ValueError(
            f"{node}: the two models have different noise schedules (they begin at sigma {ends[0]:.4g} and {ends[1]:.4g}): {names}. "
            "Put the same ModelSampling node on both."
        )
    animated = [_has_animatediff(patcher) for patcher in (scene, subject)]
    if animated[0] != animated[1]:
        raise ValueError(
            f"{node}: AnimateDiff is on the {'scene' if animated[0] else 'subject'} model only, and its changes would reach the other "
            "model too. Connect AnimateDiff to both models, or to none."
        )


def _has_animatediff(patcher: Any) -> bool:
    keys = [key for part in MARKED for key in getattr(patcher, part, {})]
    keys += [key for wrappers in getattr(patcher, "wrappers", {}).values() for key in wrappers]
    return any(str(key).startswith("ADE") for key in keys)


def check_conditioning(patcher: Any, conditioning: Sequence, node: str, name: str) -> None:
    """Raise a ValueError for a CONDITIONING that is empty, not finite, or not as wide as this MODEL's text embeddings."""
    if not conditioning:
        raise ValueError(f"{node}: {name} is empty. Connect the output of a CLIP Text Encode node.")
    width = _text_width(patcher)
    for text, _ in conditioning:
        if not isinstance(text, Tensor):
            continue
        if not bool(torch.isfinite(text).all()):
            raise ValueError(f"{node}: {name} contains NaN or infinite values. Check the node that it comes from.")
        if width is not None and text.ndim == 3 and text.shape[-1] != width:
            raise ValueError(
                f"{node}: {name} has embeddings of width {text.shape[-1]}, but {model_name(patcher)} needs width {width}. "
                "Encode the prompt with the CLIP of that model."
            )


def _text_width(patcher: Any) -> int | None:
    """None where it is not known, or where another pack's network may convert the embeddings."""
    if not type(patcher.get_model_object("diffusion_model")).__module__.startswith("comfy.ldm."):
        return None
    config = getattr(patcher.model.model_config, "unet_config", {}) or {}
    return next((config[key] for key in TEXT_WIDTHS if isinstance(config.get(key), int)), None)


def shares_weights(a: Any, b: Any) -> bool:
    """Whether these are clones of one checkpoint with the same LoRAs and replaced objects, so that one copy of the weights serves both."""
    if not a.is_clone(b) or a.patches_uuid != b.patches_uuid:
        return False
    parts = ("object_patches", "weight_wrapper_patches", "injections")
    return all(getattr(a, part, {}) == getattr(b, part, {}) for part in parts)


def has_hooks(conditions: Mapping[str, list[dict]]) -> bool:
    """Whether these conditions bring hooks (scheduled LoRAs), which change weights while sampling."""
    return any(
        condition.get("hooks") is not None or ("control" in condition and condition["control"].get_extra_hooks())
        for group in conditions.values()
        for condition in group
    )


def copy_weights(patcher: Any, node: str) -> Any:
    """A MODEL like this one with its own copy of the weights: two sets of LoRAs on one checkpoint cannot be merged into one set of weights.

    Raises:
        ValueError: the copy would not fit into the free memory.
    """
    if getattr(patcher, "is_dynamic", lambda: False)():
        return patcher.clone(force_deepcopy=True)  # such models are views of a file, which the host opens a second time
    size, free = patcher.model_size(), comfy.model_management.get_free_memory(torch.device("cpu"))
    what = f"the scene and the subject model are one checkpoint with different LoRAs, which needs a copy of its weights ({size / 1e9:.1f} GB)"
    if size > free:
        raise ValueError(
            f"{node}: {what}, and {free / 1e9:.1f} GB of memory are free. Use the same LoRAs on both models, or two smaller files."
        )
    if size > LARGE_BYTES:
        warn_user(f"{node}: {what}. Use the same LoRAs on both models to save it.")
    patcher.detach()  # the weights that are copied must not have LoRAs merged into them
    separate = patcher.clone()
    config = getattr(patcher.model, "model_config", None)
    # The host's config answers None to every attribute, __deepcopy__ included; it is never changed, so both models may share it.
    separate.model = copy.deepcopy(patcher.model, {id(config): config})
    for kept in ("backup", "backup_buffers", "object_patches_backup", "hook_backup"):
        setattr(separate, kept, {})
    separate.pinned = set()
    separate.parent = None
    return separate


@contextmanager
def running(patcher: Any) -> Iterator[None]:
    """Make this MODEL the one that the host asks for hooks and state during an evaluation; another one may share its weights."""
    before = getattr(patcher.model, "current_patcher", None)
    patcher.model.current_patcher = patcher
    try:
        yield
    finally:
        patcher.model.current_patcher = before


def distinct(patchers: Sequence[Any], known: Sequence[Any] = ()) -> list[Any]:
    """Those of `patchers` whose weights are not those of `known` and not those of each other."""
    found: list[Any] = []
    for patcher in patchers:
        if not any(patcher is other or getattr(patcher, "model", 0) is getattr(other, "model", 1) for other in (*known, *found)):
            found.append(patcher)
    return found
