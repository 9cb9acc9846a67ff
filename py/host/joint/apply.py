"""Installs contributions on a MODEL, and the wrapper that acts around every call of the host's model object."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..run import KEY as RUN_KEY
from ..run import SamplingRun, current_run, open_run
from . import families, texts
from .attention import OVERRIDE, JointAttention, TokensChangedError
from .call import IS_ACTING, ModelCall
from .contribution import Contribution
from .plan import filled_text, prepare

#: Name of the list of contributions among the patches of `transformer_options`.
PATCHES = "exemplary_joint"
KEY = "exemplary_joint"
PARAMETERS = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")


def install(model: Any, contribution: Contribution) -> Any:
    """A clone of this MODEL on which the contribution acts, together with those that are there already.

    Raises:
        ValueError: the MODEL's architecture is not supported; names it and those that are.
    """
    families.require_family(model, contribution.node)
    clone = model.clone()
    # Only what opens a run: the other wrapper tells hooks of a UNet which network runs.
    if not clone.get_wrappers(WrappersMP.OUTER_SAMPLE, RUN_KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RUN_KEY, open_run)
    clone.set_model_patch(contribution, PATCHES)
    if not clone.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, join)
    return clone


def installed(options: dict) -> list[Contribution]:
    """The contributions in these transformer_options, each once."""
    return list(dict.fromkeys(options.get("patches", {}).get(PATCHES, ())))


def join(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """APPLY_MODEL wrapper: append texts and set the override, for this call only. Does nothing where no contribution is active."""
    arguments = {**dict(zip(PARAMETERS, args)), **kwargs}
    options = arguments.get("transformer_options") or {}
    run = current_run(options)
    acting = [] if run is None or IS_ACTING in options else [c for c in installed(options) if run.inside(c.percent, options)]
    family = families.family_of(executor.class_obj.diffusion_model) if acting else None
    if not acting or family is None or run is None or arguments.get("c_crossattn") is None:
        return executor(*args, **kwargs)
    call = _model_call(run, executor.class_obj, family, arguments)
    kind: Hashable = ("tokens changed", tuple(call.latent.shape), call.prompt.shape[1])
    prepared = None if run.get_or_make(kind, list) else prepare(call, acting)
    if prepared is None:
        return executor(*args, **kwargs)
    attention = JointAttention(prepared.plan, options.get(OVERRIDE))
    inner = {**options, OVERRIDE: attention, IS_ACTING: True}
    first = (call.latent, arguments["t"], arguments.get("c_concat"), prepared.prompt, arguments.get("control"), inner)
    try:
        with filled_text(call, prepared):
            out = executor(*first, **{**call.conditions, **prepared.conditions})
    except TokensChangedError as error:
        run.get_or_make(kind, list).append(error)
        _warn(run, acting, f"another node changes the tokens of the attention layers ({error})")
        return executor(*args, **kwargs)
    if not attention.matched:
        _warn(run, acting, "the model's attention is not called through ComfyUI")
    return out


def _model_call(run: SamplingRun, model: Any, family: families.Family, arguments: dict[str, Any]) -> ModelCall:
    conditions = {name: value for name, value in arguments.items() if name not in PARAMETERS}
    if (
        conditions.get("t5xxl_ids") is not None
    ):  # with gradients the host adapts Anima's text in the network; here it is needed before
        ids, weights = conditions.pop("t5xxl_ids"), conditions.pop("t5xxl_weights", None)
        arguments = {**arguments, "c_crossattn": texts.adapt_text(model, arguments["c_crossattn"], ids, weights)}
    return ModelCall(run, model, family, arguments, conditions)


def _warn(run: SamplingRun, acting: list[Contribution], reason: str) -> None:
    for contribution in acting:
        run.warn_once(f"{contribution.node}: {reason}; it does not act in these calls.")
