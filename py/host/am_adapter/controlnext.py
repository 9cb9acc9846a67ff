"""ControlNeXt's room: a map's colours, or any hint, added once to the features of the host's UNet (`py/am_adapter/model.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample
from einops import rearrange
from torch import Tensor

from ...am_adapter.checkpoint import read_controlnext
from ...am_adapter.model import ControlNeXt, ControlNeXtLayout, inject
from ...semantic.semantic_map import SemanticMap
from .. import folders, grids, hooks, networks
from ..run import SamplingRun, current_run
from ..schedule import PercentRange

LOAD = "Load ControlNeXt"
NODE = "Apply ControlNeXt"
LINK = "https://huggingface.co/Pbihao/ControlNeXt, or train one"
PATCH = "input_block_patch_after_skip"
EXEMPLAR_MAP = "exemplary_exemplar_map"  # in the options of a call that reads exemplars: their maps' colours, [n, 3, h, w]
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
    """Read a ControlNeXt from the model folder am_adapter. Raises ValueError naming the file and what it is not."""
    path = folders.path("am_adapter", file, LOAD, LINK)
    try:
        layout, weights = read_controlnext(comfy.utils.load_torch_file(path, safe_load=True))
    except ValueError as error:
        raise ValueError(f"{LOAD}: {file!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"{LOAD}: {file!r} cannot be read ({error}). Download it again from {LINK}.") from error
    unet = None
    if unet_file != NO_UNET:
        path = folders.path("am_adapter", unet_file, LOAD, LINK)
        read = comfy.utils.load_torch_file(path, safe_load=True)
        # Not every device takes tensors of eight bits.
        unet = {key: weight.half() if weight.dtype.itemsize == 1 else weight for key, weight in read.items()}
    return LoadedControlNeXt(networks.load(ControlNeXt, weights, layout), layout, file, unet, unet_kind)


@dataclass(frozen=True, eq=False)
class ControlNeXtPatch:
    """Host patch (`input_block_patch_after_skip`): the features of one block, with the control in their own mean and deviation.

    Args:
        hint: [b, 3, h, w], 0..1. shows_classes: it is a semantic map, so exemplars are read with theirs.
        block: number of the input block after which it is added, the first that halves the size.
    """

    control: LoadedControlNeXt
    hint: Tensor
    shows_classes: bool
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
        """What the features of an exemplar depend on here; None while it does not act."""
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
            run.warn_once(f"{NODE}: another node rearranges the rows of a call; the hint is not applied there.")
            return h
        parts = []
        for chunk, first, last, _ in found:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(
                    f"{NODE}: the model is given a part of the picture (a tiled sampler?), whose place is unknown; the hint is not applied."
                )
                return h
            control = self._seen(run, options, view, h)
            if control.shape[0] > 1:
                control = control[list(grids.frame_indices(options, last - first))]
            parts.append(inject(h[first:last], control, self.strength))
        return torch.cat(parts)

    def _seen(self, run: SamplingRun, options: dict, view: grids.View, h: Tensor) -> Tensor:
        """The control of a view of the hint, made once per noise level."""
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
    """The ControlNeXts of a call that can show an exemplar's map as well."""
    for patch in options.get("patches", {}).get(PATCH, ()):
        if isinstance(patch, ControlNeXtPatch) and patch.shows_classes:
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
    """A MODEL that follows the hint. The given one is not changed; with nothing to do it is returned as it is.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    if not 0.0 <= strength <= 10.0:  # also refuses NaN
        raise ValueError(f"{NODE}: strength is {strength}; it must be a number from 0 to 10.")
    if (semantic_map is None) == (image is None):
        both = "both are" if image is not None else "none is"
        raise ValueError(f"{NODE}: connect semantic_map or image, one of them; {both} connected.")
    block, channels = _place(model)
    if channels != control.layout.out_channels:
        raise ValueError(
            f"{NODE}: {control.file!r} adds {control.layout.out_channels} channels, but this MODEL ({hooks.model_name(model)}) has "
            f"{channels} there. Files with 320 are for Stable Diffusion 1.5; load the checkpoint that the file was trained for."
        )
    if strength == 0.0 or percent.empty:
        return model
    drawn = _checked(image) if image is not None else semantic_map.to_image()  # type: ignore[union-attr]
    hint = rearrange(drawn, "b h w c -> b c h w")
    patch = ControlNeXtPatch(control, hint, semantic_map is not None, strength, percent, block)
    clone = hooks.install_list_patch(model, PATCH, patch)
    networks.serve(clone, "exemplary_controlnext", [control.patcher])
    if control.unet is not None:
        _change_unet(clone, control, strength)
    return clone


def _checked(image: Tensor) -> Tensor:
    """[b, h, w, 3] in 0..1 of any IMAGE."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{NODE}: the image holds values that are no numbers (NaN or infinity). Look at the node it comes from.")
    return (image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]).detach().float().clamp(0, 1)


def first_halving(unet: Any) -> tuple[int, int] | None:
    """(number of the first input block that halves the size, its channels): there a control is added. None if the network is no UNet."""
    for number, block in enumerate(getattr(unet, "input_blocks", ())):
        for layer in block:
            if isinstance(layer, Downsample):
                return number, int(layer.out_channels)
    return None


def _place(model: Any) -> tuple[int, int]:
    found = first_halving(model.get_model_object("diffusion_model"))
    if found is None:
        raise ValueError(
            f"{NODE}: this MODEL is {hooks.model_name(model)}, which has no UNet. Load a Stable Diffusion 1.5 checkpoint, or "
            "use a ControlNet that was made for this model."
        )
    return found


def _change_unet(clone: Any, control: LoadedControlNeXt, strength: float) -> None:
    """Patch the weights that were trained with a ControlNeXt, given by diffusers' names or the host's."""
    names = comfy.utils.unet_to_diffusers(clone.model.model_config.unet_config)
    own = set(clone.model_state_dict())
    patches = {}
    for name, weight in (control.unet or {}).items():
        key = f"diffusion_model.{names.get(name, name.removeprefix('model.diffusion_model.'))}"
        if key in own:
            patches[key] = ("diff" if control.unet_kind == UNET_KINDS[0] else "set", (weight,))
    if not patches:
        raise ValueError(
            f"{NODE}: the UNet file of {control.file!r} fits no weight of this MODEL ({hooks.model_name(clone)}). "
            "Load the checkpoint that it was trained for, or choose none."
        )
    clone.add_patches(patches, strength)
