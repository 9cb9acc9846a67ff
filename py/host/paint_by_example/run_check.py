"""Checks of conditions and MODEL before a run.

Prepare's conditioning brings its check to every run in which it is used. A MODEL from an ordinary loader ignores the source image without an
error, so only the conditioning can notice, and the host lets hooks in a CONDITIONING add wrappers to a run. The wrapper checks the run, repeats
the source images in the order of repeated latents, and removes itself, so that the host never switches hooks because of it.
"""

from __future__ import annotations

from typing import Any

import comfy.hooks
import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .. import hooks, notices

NODE, LOADER = "Paint by Example Prepare", "Load Paint by Example"
#: The input channels of Paint by Example's UNet after the noise, in this order: the masked image, and 1 where it is kept.
CONCAT_KEYS = ("masked_image", "mask_inverted")
KEY = "exemplary_pbe_check"
IMAGE, MASK = "concat_latent_image", "concat_mask"


def check_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: check the conditions of this run, then sample."""
    guider = executor.class_obj
    noise = args[0] if args else kwargs["noise"]
    conditions = [c for group in (guider.conds or {}).values() for c in group or ()]
    _remove_check(conditions)
    sources = [c for c in conditions if IMAGE in c]
    if sources:
        _check_model(guider.model_patcher, sources)
        for condition in sources:
            _repeat_source(condition, len(noise))
        _check_windows(guider.model_options, sources, noise)
    return executor(*args, **kwargs)


_CHECK = comfy.hooks.TransformerOptionsHook({"wrappers": {WrappersMP.OUTER_SAMPLE: {KEY: [check_run]}}})


def add_run_check(conditioning: list) -> list:
    """The same CONDITIONING with the check. The given one is not changed."""
    group = comfy.hooks.HookGroup()
    group.add(_CHECK)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, group, append_hooks=True)


def check_conditions(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Check the conditions with which Paint by Example's MODEL is sampled. Raises ValueError for a text prompt as positive."""
    for name, group in conds.items():
        for condition in group or ():
            context = condition.get("cross_attn")
            if context is not None and context.ndim == 3 and context.shape[1] != 1:
                text = f"{LOADER}: its MODEL is sampled with a text prompt as {name} ({context.shape[1]} tokens); it uses one exemplar token. "
                text += f"Connect {name} of Exemplar Conditioning, through Paint by Example Prepare."
                if name == "positive":
                    raise ValueError(text)
                notices.warn_user(text)
            elif name == "positive" and IMAGE not in condition:
                notices.warn_user(
                    f"{LOADER}: its MODEL is sampled without a source image. Connect positive and negative of Paint by Example Prepare."
                )
                return


def _remove_check(conditions: list[dict[str, Any]]) -> None:
    """Remove the check's hook. Conditions with the same other hooks share one group again, as the host batches by group."""
    groups: dict[tuple, Any] = {}
    for condition in conditions:
        group = condition.get("hooks")
        if group is None or not group.contains(_CHECK):
            continue
        rest = [hook for hook in group.hooks if hook != _CHECK]
        if not rest:
            del condition["hooks"]
            continue
        key = tuple(id(hook.hook_ref) for hook in rest)
        if key not in groups:
            groups[key] = comfy.hooks.HookGroup()
            for hook in rest:
                groups[key].add(hook)
        condition["hooks"] = groups[key]


def _check_model(patcher: Any, conditions: list[dict[str, Any]]) -> None:
    keys = tuple(getattr(patcher.model, "concat_keys", None) or ())
    if keys == CONCAT_KEYS:
        return
    name = hooks.model_name(patcher)
    is_exemplar = any(getattr(c.get("cross_attn"), "ndim", 0) == 3 and c["cross_attn"].shape[1] == 1 for c in conditions)
    if is_exemplar:
        raise ValueError(
            f"{NODE}: its conditioning is sampled with a MODEL ({name}) that is not Paint by Example's, which cannot use exemplars. "
            "Connect the MODEL of Load Paint by Example to the sampler."
        )
    # Inpainting, fill and edit models have their own ways to use the source, and Prepare and Stitch are useful with them.
    is_plain = type(patcher.model).concat_cond is BaseModel.concat_cond and not keys
    if is_plain and not any("reference_latents" in c for c in conditions):
        notices.warn_user(
            f"{NODE}: its conditioning is sampled with a MODEL ({name}) that ignores the source image. "
            "Connect the MODEL of Load Paint by Example to the sampler."
        )


def _repeat_source(condition: dict[str, Any], latents: int) -> None:
    """Repeat the source images A, B, A, B, as Repeat Latent Batch, Stitch and the host's tokens do. The host itself would repeat A, A, B, B."""
    for key in (IMAGE, MASK):
        source: Tensor | None = condition.get(key)
        if source is None or len(source) in (1, latents):
            continue
        if latents % len(source):
            raise ValueError(
                f"{NODE}: it prepared {len(source)} source images, but {latents} latents are sampled. "
                f"Sample its latent, or repeat it to a multiple of {len(source)}."
            )
        condition[key] = source[[index % len(source) for index in range(latents)]]


def _check_windows(model_options: dict, conditions: list[dict[str, Any]], noise: Tensor) -> None:
    """Some hosts divide the latents among context windows and not the source images."""
    handler = model_options.get("context_handler")
    if handler is None or getattr(handler, "dim", 0) != 0 or len(noise) <= getattr(handler, "context_length", len(noise)):
        return
    differs = any(len(c[IMAGE]) > 1 and not torch.equal(c[IMAGE], c[IMAGE][:1].expand_as(c[IMAGE])) for c in conditions)
    if differs and not _windows_source(handler, noise):
        raise ValueError(
            f"{NODE}: {len(noise)} different source images are sampled with context windows of {handler.context_length}, and this version of "
            "ComfyUI does not divide the source images among the windows. Remove the context windows node, or sample fewer images at once."
        )


def _windows_source(handler: Any, noise: Tensor) -> bool:
    """Try whether the host's windows divide `c_concat`."""
    from comfy.conds import CONDNoiseShape
    from comfy.context_windows import IndexListContextWindow

    probe = {"model_conds": {"c_concat": CONDNoiseShape(torch.zeros(len(noise), 1, 1, 1))}}
    try:
        found = handler.get_resized_cond([probe], noise, IndexListContextWindow([0], dim=0), device=noise.device)
        return len(found[0]["model_conds"]["c_concat"].cond) == 1
    except Exception:  # another handler's own rules; what it does with the source is not known
        return False
