"""One sampling run: owns everything that is computed while sampling and must be gone afterwards.

A patch that is installed on a MODEL is frozen and owns no tensors; what it captures, projects or resizes goes into the
`SamplingRun` that `open_run` creates around the host's `outer_sample` and drops in `finally`, so an error, an interrupt or a retry
never leaves anything behind for the next run. The run travels in the host's own `transformer_options`, which every attention
hook receives, and which belong to this run only (the guider copies its options before it starts).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from comfy.model_sampling import CONST
from comfy.patcher_extension import CallbacksMP, WrappersMP

from . import parts, slots
from .schedule import PercentRange

KEY = "exemplary"  # names our wrappers and callbacks among those of other packs
RUN = "exemplary_run"
NETWORK = "exemplary_network"

log = logging.getLogger("exemplary")


class SamplingRun:
    """State of one sampling run. Values are kept by key and made at most once; `close` forgets them all.

    Args:
        guider: of the host, which samples. latent_shape: [b, c, h, w] of the latents that are sampled.

    Attributes:
        step_latent: [b, c, h, w], the noisy latents of the running step; model_input: [rows, c, h, w], what the running call of the UNet
            gets. None between steps and calls.
    """

    def __init__(self, guider: Any, latent_shape: tuple[int, ...]):
        self.guider = guider
        self.latent_shape = latent_shape
        self.step_latent: torch.Tensor | None = None
        self.model_input: torch.Tensor | None = None
        self._kept: dict[Hashable, Any] = {}
        self._kept_for_call: dict[Hashable, Any] = {}
        self._sigma: tuple[torch.Tensor | None, int, float] = (None, 0, 0.0)

    def __deepcopy__(self, memo: dict) -> SamplingRun:
        return self  # some packs deep-copy the options in the middle of a run; the run stays one

    @property
    def patcher(self) -> Any:
        """The MODEL that is being sampled, with every patch that was added after Exemplary's."""
        return self.guider.model_patcher

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of this key in this run, made by `make` the first time it is needed."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def get_or_make_for_call(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The same for the running call of the UNet only."""
        if key not in self._kept_for_call:
            self._kept_for_call[key] = make()
        return self._kept_for_call[key]

    def begin_call(self, model_input: torch.Tensor | None) -> None:
        """A call of the UNet begins, or with None is over."""
        self.model_input = model_input
        self._kept_for_call.clear()

    def sigma(self, options: dict) -> float:
        """Noise level of the running model call. Read from the device once per call, not once per layer."""
        sigmas = options["sigmas"]
        seen, version, value = self._sigma
        # Tensors made in inference mode count no versions; the host makes a new tensor for every call anyway.
        current = 0 if sigmas.is_inference() else sigmas._version
        if seen is not sigmas or version != current:
            value = float(sigmas.flatten()[0])
            self._sigma = (sigmas, current, value)
        return value

    def inside(self, percent: PercentRange, options: dict) -> bool:
        """Whether the running model call is inside this part of the schedule.

        The bounds are computed while sampling, so a node that changes the schedule (ModelSamplingDiscrete and similar) may come before
        or after Exemplary's.
        """
        sampling = self.patcher.get_model_object("model_sampling")
        first, last = self.get_or_make((percent, "sigmas"), lambda: percent.sigmas(sampling))
        return last <= self.sigma(options) <= first

    def is_flow(self) -> bool:
        """Whether sigma is the share of noise in (1 - sigma) image + sigma noise (rectified flow), not the noise on top of the image."""
        return isinstance(self.patcher.get_model_object("model_sampling"), CONST)

    def weights_may_change(self) -> bool:
        """Scheduled LoRA hooks swap the base model's weights between calls: nothing projected by them may be kept."""
        return getattr(self.patcher, "current_hooks", None) is not None

    def warn_once(self, message: str) -> None:
        """Log a warning once per run, not once per layer and step."""
        self.get_or_make(("warned", message), lambda: log.warning(message))

    def close(self) -> None:
        self._kept.clear()
        self.begin_call(None)
        self.step_latent = None
        self._sigma = (None, 0, 0.0)
        self.guider = None


def current_run(options: dict) -> SamplingRun | None:
    """The run that these `transformer_options` belong to; None if the model is called outside of any sampler."""
    return options.get(RUN)


def running_network(options: dict) -> Any:
    """The UNet that is running: the one whose layers may be called. None outside of a model call."""
    return options.get(NETWORK)


def install_run(model: Any) -> None:
    """Make every sampling of this MODEL (already a clone) a `SamplingRun`. Harmless to repeat; keeps what others installed."""
    wrappers = (
        (WrappersMP.OUTER_SAMPLE, open_run),
        (WrappersMP.CALC_COND_BATCH, remember_step_latent),
        (WrappersMP.DIFFUSION_MODEL, begin_call),
    )
    for kind, wrapper in wrappers:
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)
    if not model.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, slots.separate_clones)


def open_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: create the run, let every technique check its inputs, sample, drop the run."""
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    if RUN in options:  # hooks can bring the same wrapper a second time
        return executor(*args, **kwargs)
    noise = args[0] if args else kwargs["noise"]
    run = options[RUN] = SamplingRun(executor.class_obj, tuple(noise.shape))
    replaced = options.get("patches_replace", {})
    try:
        for technique in slots.techniques(options):
            technique.before_run(run)
        parts.warn_of_crops()
        options["patches_replace"] = slots.table_of_run(replaced, run)
        return executor(*args, **kwargs)
    finally:
        options["patches_replace"] = replaced
        options.pop(RUN, None)
        run.close()


def remember_step_latent(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """CALC_COND_BATCH wrapper: keep the latents of this step, in which the tiles of a tiled sampler can be found."""
    run = current_run(args[4].get("transformer_options", {}))  # model, conditions, latents, timestep, model options
    if run is None:
        return executor(*args, **kwargs)
    before, run.step_latent = run.step_latent, args[2]
    try:
        return executor(*args, **kwargs)
    finally:
        run.step_latent = before


def begin_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """DIFFUSION_MODEL wrapper: let the hooks know which UNet runs and on what, and honour replacements that were made for this call.

    A hook must not remember the UNet it saw when it was installed: copies for several GPUs and for dynamic VRAM are other objects.
    """
    options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[5]
    run, replaced = current_run(options), options.get("patches_replace")
    options[NETWORK] = executor.class_obj
    if run is not None:
        run.begin_call(args[0] if args else kwargs["x"])
    if replaced:
        options["patches_replace"] = slots.table_of_call(replaced)
    try:
        return executor(*args, **kwargs)
    finally:
        options.pop(NETWORK, None)
        if replaced:
            options["patches_replace"] = replaced
        if run is not None:
            run.begin_call(None)
