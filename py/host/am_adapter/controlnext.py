"""ControlNeXt on a UNet: a map's colours, or any hint image, added once to the features of the UNet (`py/am_adapter/model.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import comfy.hooks
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from ...am_adapter.checkpoint import parse_controlnext
from ...am_adapter.model import ControlNeXt, ControlNeXtLayout, inject
from ...semantic.semantic_map import SemanticMap
from ...weight_files import read_weights
from .. import folders, grids, hooks, inputs, networks
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from . import files

LOAD = files.LOAD_CONTROLNEXT
NODE = "Apply ControlNeXt"
PATCH = "input_block_patch_after_skip"
EXEMPLAR_MAP = "exemplary_exemplar_map"  # in the options of a pass over exemplars: their maps' colours, [n, 3, h, w]
WEIGHTS_KEY = "exemplary_controlnext"  # of the wrappers that schedule UNet weights
NO_UNET = "none"
UNET_KINDS = ("increments", "replacement")


@dataclass(frozen=True, eq=False)
class LoadedControlNeXt:
    """A ControlNeXt and, where it was trained together with it, what changes in the UNet."""

    patcher: Any  # ModelPatcher
    layout: ControlNeXtLayout
    file: str
    unet: dict[str, Tensor] | None = None
    unet_kind: str = UNET_KINDS[0]
    token: str = field(default_factory=lambda: uuid4().hex)


def load(file: str, unet_file: str = NO_UNET, unet_kind: str = UNET_KINDS[0]) -> LoadedControlNeXt:
    """Load a ControlNeXt from the model folder am_adapter. Raises ValueError naming the file, what it is and what to do."""
    inputs.check_choice(unet_kind, LOAD, "unet_weights", UNET_KINDS)
    layout, weights = files.load(file, LOAD, lambda tensors, metadata: parse_controlnext(tensors))
    unet = None if unet_file == NO_UNET else _load_unet(unet_file)
    return LoadedControlNeXt(networks.load(ControlNeXt, weights, layout), layout, file, unet, unet_kind)


def _load_unet(file: str) -> dict[str, Tensor]:
    """The UNet weights that were trained with a ControlNeXt, under the names in their file."""
    path = folders.path(files.FOLDER, file, LOAD, files.LINKS[LOAD])
    try:
        read = read_weights(path).tensors
    except ValueError as error:
        raise ValueError(f"{LOAD}: unet_file: {error}") from error
    odd = [name for name, weight in read.items() if not weight.is_floating_point()]
    if odd or not read:
        found = f"{inputs.list_names(odd)} are not floating point numbers" if odd else "it contains no tensors"
        raise ValueError(
            f"{LOAD}: unet_file {file!r} is not a file of UNet weights: {found}. Choose the UNet file of this ControlNeXt, or none."
        )
    # Not every device supports tensors of eight bits.
    return {name: weight.half() if weight.dtype.itemsize == 1 else weight for name, weight in read.items()}


@dataclass(frozen=True, eq=False)
class ControlNeXtPatch:
    """Host patch (`input_block_patch_after_skip`): adds the control to the features of one block, in their own mean and deviation.

    Args:
        hint: [b, 3, h, w], 0..1. is_semantic_map: the pass over exemplars then gets their own maps.
        block: number of the input block after which it is added, the first that halves the size.
    """

    control: LoadedControlNeXt
    hint: Tensor
    is_semantic_map: bool
    strength: float
    percent: PercentRange
    block: int

    def __deepcopy__(self, memo: dict) -> ControlNeXtPatch:
        return self

    def before_run(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        if self.hint.shape[0] not in (1, latents):
            raise grids.batch_error(NODE, "the hint", self.hint.shape[0], latents)

    def token(self, options: dict) -> tuple | None:
        """What the features of an exemplar depend on in this patch; None while it does not act."""
        run = current_run(options)
        if run is None or not run.inside(self.percent, options):
            return None
        return self.control.token, self.strength, self.block

    def __call__(self, h: Tensor, options: dict) -> Tensor:
        run = current_run(options)
        if run is None or tuple(options["block"][:2]) != ("input", self.block) or not run.inside(self.percent, options):
            return h
        if EXEMPLAR_MAP in options:
            hint = options[EXEMPLAR_MAP]
            return inject(h, self._control(run, options, hint, h), self.strength)
        found = grids.chunks(options, h.shape[0])
        if found is None:
            run.warn_once(f"{NODE}: another node multiplies the rows of a call; the hint is not applied there.")
            return h
        parts = []
        for chunk, first, last, _ in found:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(
                    f"{NODE}: a model call processes a part of the image (a tiled sampler?) whose position is unknown; the hint is not "
                    "applied there."
                )
                return h
            control = self._control_of_view(run, options, view, h)
            if control.shape[0] > 1:
                control = control[list(grids.frame_indices(options, last - first))]
            parts.append(inject(h[first:last], control, self.strength))
        return torch.cat(parts)

    def _control_of_view(self, run: SamplingRun, options: dict, view: grids.View, h: Tensor) -> Tensor:
        """The control of a view of the hint, computed once per noise level."""
        latest: dict = run.get_or_make((self, "control"), dict)
        key = (run.sigma(options), view, h.dtype, tuple(options["original_shape"][-2:]))
        if key not in latest:
            if latest and next(iter(latest))[0] != key[0]:
                latest.clear()
            latest[key] = self._control(run, options, grids.part_of(self.hint, view), h)
        return latest[key]

    def _control(self, run: SamplingRun, options: dict, hint: Tensor, h: Tensor) -> Tensor:
        height, width = options["original_shape"][-2:]
        # As the host scales hints, so that flat colours stay flat.
        hint = F.interpolate(hint.float(), (height * 8, width * 8), mode="nearest-exact").to(h)
        sampling = run.patcher.get_model_object("model_sampling")
        time = sampling.timestep(options["sigmas"].flatten()[:1].to(h.device)).float()
        return self.control.patcher.model(hint, time)


def controls_of(options: dict) -> Iterator[ControlNeXtPatch]:
    """The ControlNeXts of a call whose hint is a semantic map, so that exemplars can be processed with their own."""
    for patch in options.get("patches", {}).get(PATCH, ()):
        if isinstance(patch, ControlNeXtPatch) and patch.is_semantic_map:
            yield patch


def apply(
    model: Any,
    control: LoadedControlNeXt,
    semantic_map: SemanticMap | None = None,
    image: Tensor | None = None,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Any:
    """A MODEL that follows the hint. The given one is not changed; it is returned if nothing would act.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    inputs.check_number(strength, NODE, "strength", 0.0, 10.0)
    if (semantic_map is None) == (image is None):
        both = "both are" if image is not None else "neither is"
        raise ValueError(f"{NODE}: {both} connected; connect either semantic_map or image.")
    block, channels = _injection_point(model)
    if channels != control.layout.out_channels:
        raise ValueError(
            f"{NODE}: {control.file!r} adds {control.layout.out_channels} channels, but this MODEL ({hooks.model_name(model)}) has "
            f"{channels} in this layer. Files with 320 are for Stable Diffusion 1.5; load the checkpoint that the file was trained for."
        )
    if strength == 0.0 or percent.empty:
        return model
    drawn = inputs.check_image(image, NODE, "image") if image is not None else semantic_map.to_image()  # type: ignore[union-attr]
    hint = rearrange(drawn, "b h w c -> b c h w")
    patch = ControlNeXtPatch(control, hint, semantic_map is not None, strength, percent, block)
    clone = hooks.install_list_patch(model, PATCH, patch)
    networks.serve(clone, "exemplary_controlnext", [control.patcher])
    if control.unet is not None:
        _patch_unet(clone, control, strength, percent)
    return clone


def first_halving(unet: Any) -> tuple[int, int] | None:
    """(number of the first input block that halves the size, its channels): where a control is added. None if the network is not a UNet."""
    for number, block in enumerate(getattr(unet, "input_blocks", ())):
        for layer in block:
            if isinstance(layer, Downsample):
                return number, int(layer.out_channels)
    return None


def _injection_point(model: Any) -> tuple[int, int]:
    found = first_halving(model.get_model_object("diffusion_model"))
    if found is None:
        raise ValueError(
            f"{NODE}: this MODEL is {hooks.model_name(model)}, which has no UNet. Load a Stable Diffusion 1.5 checkpoint, or "
            "use a ControlNet that was made for this model."
        )
    return found


def _patch_unet(clone: Any, control: LoadedControlNeXt, strength: float, percent: PercentRange) -> None:
    """Patch the weights that were trained with a ControlNeXt, for the whole of sampling or for a part of it."""
    patches = _unet_patches(clone, control)
    if percent == PercentRange():
        clone.add_patches(patches, strength)
        return
    hook = comfy.hooks.WeightHook()
    clone.add_hook_patches(hook, patches, strength)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WEIGHTS_KEY, ScheduledWeights(hook, percent))


@dataclass(frozen=True, eq=False)
class ScheduledWeights:
    """CALC_COND_BATCH wrapper: inside a part of sampling all conditions get a hook, with which the host swaps the weights."""

    hook: Any
    percent: PercentRange

    def __deepcopy__(self, memo: dict) -> ScheduledWeights:
        return self

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        model, conds, x, timestep, model_options = args
        run = current_run(model_options.get("transformer_options", {}))
        if run is not None and run.inside(self.percent, {"sigmas": timestep}):
            conds = [None if found is None else [self._with_hook(run, condition) for condition in found] for found in conds]
        return executor(model, conds, x, timestep, model_options, **kwargs)

    def _with_hook(self, run: SamplingRun, condition: dict) -> dict:
        hooks_of_condition = condition.get("hooks")

        def make() -> Any:
            group = comfy.hooks.HookGroup()
            for hook in [] if hooks_of_condition is None else hooks_of_condition.hooks:
                group.add(hook)
            group.add(self.hook)
            return group

        # Conditions are only batched if they have the same group.
        return {**condition, "hooks": run.get_or_make((self, "hooks", hooks_of_condition), make)}


def _unet_patches(model: Any, control: LoadedControlNeXt) -> dict[str, tuple[str, tuple[Tensor]]]:
    """The host's patches of UNet weights under diffusers' names or the host's. Raises ValueError if they do not fit the model."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = model.model_state_dict()
    patches = {}
    for name, weight in (control.unet or {}).items():
        key = f"diffusion_model.{names.get(name, name.removeprefix('model.diffusion_model.'))}"
        if key in weights:
            if weights[key].shape != weight.shape:
                raise ValueError(
                    f"{NODE}: {name} of the UNet file of {control.file!r} has the shape {list(weight.shape)}, but this MODEL "
                    f"({hooks.model_name(model)}) needs {list(weights[key].shape)}. Load the checkpoint that it was trained for, or choose none."
                )
            patches[key] = ("diff" if control.unet_kind == UNET_KINDS[0] else "set", (weight,))
    if not patches:
        raise ValueError(
            f"{NODE}: the UNet file of {control.file!r} fits no weight of this MODEL ({hooks.model_name(model)}). "
            "Load the checkpoint that it was trained for, or choose none."
        )
    return patches
