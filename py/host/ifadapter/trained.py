"""IFAdapter with its trained weights, inside the host's text attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...ifadapter import checkpoint
from ...ifadapter.attention import InstanceRegions, KeysValues, compute_injection, project_tokens
from ...ifadapter.instances import Instance, Instances, short
from ...ifadapter.model import SDXL, Config, IFAdapter, Layer
from ...ifadapter.regional import crop_box_to_view, crop_mask_to_view
from .. import folders, grids, hooks, networks, notices
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import attention_of_own_rows
from . import text as ifadapter_text

NODE = "Apply IFAdapter"
LOADER = "Load IFAdapter"
FOLDER = "ifadapter"
LINK = "https://huggingface.co/WuYW/IFAdapter"
KEY = "exemplary_ifadapter"  # names our network among the additional models of a MODEL
MOST = 50
REARRANGED = f"{NODE}: another node rearranges the regions of an attention layer; the boxes are not applied there."
TILED = f"{NODE}: the model is given a part of the picture (a tiled sampler?), whose place is unknown; the boxes are not applied."


@dataclass(frozen=True, eq=False)
class Adapter:
    """The EXEMPLARY_IF_ADAPTER value: a loaded network, what it is for, and the file's name for messages."""

    patcher: Any  # ModelPatcher
    config: Config
    name: str

    def __deepcopy__(self, memo: dict) -> Adapter:
        return self


@dataclass(frozen=True)
class Variant:
    """Where the paper and the published code differ.

    Args:
        fusion: of the fusion, one of `ifadapter.injection.FUSIONS`.
        whole_phrase: the resampler sees all words in every layer; see `ifadapter.model.visible_words`.
    """

    fusion: str = "published code"
    whole_phrase: bool = False


UPSTREAM = Variant()


def load(file: str) -> Adapter:
    """Load a file of the model folder `ifadapter`. Raises ValueError naming the file and what is wrong with it or where it belongs."""
    path = folders.path(FOLDER, file, LOADER, LINK)
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{LOADER}: {error} The published file is at {LINK}.") from None


def read(path: str | Path) -> Adapter:
    """The adapter of a file, as half-precision floats where the device computes with them."""
    config, state = checkpoint.read(path)
    if comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device()):
        state = {name: weight.half() for name, weight in state.items()}
    return Adapter(networks.load(IFAdapter, state, config), config, Path(path).name)


def check_base(model: Any, adapter: Adapter) -> None:
    """Raise a ValueError, naming both, unless this MODEL has the layers that the adapter was trained for."""
    blocks = hooks.attention_blocks(model.get_model_object("diffusion_model"))
    for layer in adapter.config.layers:
        attention = getattr(blocks.get(layer.place), "attn2", None)
        if attention is None or (attention.heads, attention.heads * attention.dim_head) != (layer.heads, layer.channels):
            where = f"{layer.place[0]} block {layer.place[1]}, transformer {layer.place[2]}"
            kind = "SDXL" if adapter.config.layers == SDXL.layers else "another base model"
            raise ValueError(
                f"{NODE}: {adapter.name} was trained for {kind} (text attention of {layer.channels} channels in {where}), but this MODEL is "
                f"{hooks.model_name(model)}, which has none like it there. Load a checkpoint of the adapter's base model, choose another file "
                f"in {LOADER}, or disconnect the adapter to use the weight-free method."
            )


def check_masks(instances: Sequence[Instance] | Instances, run: SamplingRun) -> None:
    """Raise a ValueError if a batch of masks is neither 1 nor as long as the latents."""
    latents = run.latent_shape[0]
    for instance in instances:
        if instance.mask is not None and instance.mask.shape[0] not in (1, latents):
            raise grids.batch_error(NODE, f"the mask of instance {short(instance.phrase)}", instance.mask.shape[0], latents)


def apply(
    model: Any, clip: Any, instances: Instances, strength: float, percent: PercentRange, adapter: Adapter, variant: Variant
) -> Any:
    """A MODEL with the adapter; the given one is not changed. Strength and range are checked already. Raises ValueError."""
    shown = tuple(instance for instance in instances if instance.strength > 0.0)
    if len(shown) > MOST:
        raise ValueError(
            f"{NODE}: there are {len(shown)} instances; with an adapter at most {MOST} can be drawn. Remove some, or disconnect the adapter."
        )
    if not shown:
        return model
    if len(shown) > adapter.config.slots:
        notices.warn_user(
            f"{NODE}: there are {len(shown)} instances, but {adapter.name} was trained with {adapter.config.slots} at most; "
            "more of them weaken each other."
        )
    phrases = ifadapter_text.encode(clip, [instance.phrase for instance in shown], adapter.config, NODE)
    technique = TrainedText(adapter, shown, phrases, strength, percent, variant)
    patched = hooks.install(model, {"attn2": technique}, [layer.place for layer in adapter.config.layers])
    networks.serve(patched, KEY, [adapter.patcher])
    return patched


@dataclass(frozen=True, eq=False)
class _Seen:
    """The instances that a part of the picture shows: which they are, and their tokens for uncond and cond rows, [2, i, m, c]."""

    which: tuple[int, ...]
    boxes: Tensor
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class TrainedText:
    """attn2: every row gains the instance semantic map, uncond rows that of empty phrases in the same boxes."""

    adapter: Adapter
    instances: tuple[Instance, ...]
    phrases: ifadapter_text.Phrases
    strength: float
    percent: PercentRange
    variant: Variant

    def __deepcopy__(self, memo: dict) -> TrainedText:
        return self

    def before_run(self, run: SamplingRun) -> None:
        check_masks(self.instances, run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and run.inside(self.percent, options)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has asked
        grid, chunks = grids.layer_grid(options, q.shape[1]), grids.chunks(options, q.shape[0])
        if grid is None or chunks is None:
            run.warn_once(REARRANGED)
            return None
        views: dict[grids.View, list[tuple[int, int, bool]]] = {}
        for chunk, first, last, conditional in chunks:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(TILED)
            else:
                views.setdefault(view, []).append((first, last, conditional))
        change = None
        for view, parts in views.items():
            found = self._change(run, grid, view, parts, q, options)
            if found is None:
                continue
            if len(found) == len(q):
                return found
            change = torch.zeros_like(text) if change is None else change
            for (first, last, _), rows in zip(parts, found.split([last - first for first, last, _ in parts])):
                change[first:last] = rows
        return change

    def _change(
        self,
        run: SamplingRun,
        grid: grids.Grid,
        view: grids.View,
        parts: list[tuple[int, int, bool]],
        q: Tensor,
        options: dict,
    ) -> Tensor | None:
        """The change of the rows of these chunks, one after the other; None if they show no instance."""
        rows = sum(last - first for first, last, _ in parts)
        frames = grids.frame_indices(options, parts[0][1] - parts[0][0]) if self._frames > 1 else ()
        seen = run.get_or_make((self, "seen", view, q.device), partial(self._seen, view, q.device))
        make = partial(self._regions, seen, grid, view, frames, q.device)
        regions, there = run.get_or_make((self, "places", grid, view, frames, q.device), make)
        if not there:
            return None
        layer = self._layer(options)
        network = self.adapter.patcher.model.adapter_modules[layer.key]
        projected = run.get_or_make(
            (self, "known", layer.key, view, q.device, q.dtype), partial(self._projected, network, seen, q)
        )
        return compute_injection(
            network,
            q if rows == len(q) else torch.cat([q[first:last] for first, last, _ in parts]),
            projected if len(there) == len(seen.which) else KeysValues(projected.keys[:, there], projected.values[:, there]),
            [int(conditional) for first, last, conditional in parts for _ in range(last - first)],
            # Masks of one picture each: once for the rows of every chunk.
            regions if not frames else _repeat_regions(regions, len(parts)),
            strength=self.strength,
            strengths=[self.instances[i].strength for i in (seen.which[place] for place in there)],
            slots=self.adapter.config.slots,
            fusion=self.variant.fusion,
            attention=attention_of_own_rows(options),
        )

    @property
    def _frames(self) -> int:
        return max((i.mask.shape[0] for i in self.instances if i.mask is not None), default=1)

    def _layer(self, options: dict) -> Layer:
        place = hooks.layer_key(options)
        return next(layer for layer in self.adapter.config.layers if layer.place == place)

    @torch.no_grad()
    def _seen(self, view: grids.View, device: torch.device) -> _Seen:
        """Computed in float32, whatever the base's type: once a run, and a resampler of four layers adds up."""
        boxes = [crop_box_to_view(instance.box, view) for instance in self.instances]
        which = tuple(i for i, box in enumerate(boxes) if box is not None)
        inside = torch.tensor([boxes[i] for i in which], dtype=torch.float32).view(-1, 4)
        if not which:
            return _Seen(which, inside, torch.zeros(2, 0, 1, self.adapter.config.width))
        index = list(which)
        hidden, eot, counts = (part[index].to(device) for part in (self.phrases.hidden, self.phrases.eot, self.phrases.counts))
        network = self.adapter.patcher.model
        return _Seen(
            which,
            inside,
            network.conditional_and_unconditional_tokens(hidden, eot, counts, inside.to(device), self.variant.whole_phrase),
        )

    def _regions(
        self, seen: _Seen, grid: grids.Grid, view: grids.View, frames: tuple[int, ...], device: torch.device
    ) -> tuple[InstanceRegions, list[int]]:
        """Where they are, and which of the seen ones are there: a mask may be empty in these pictures or this part."""
        masks: dict[int, Tensor | None] = {}
        for place, i in enumerate(seen.which):
            mask = self.instances[i].mask
            if mask is not None:
                mask = crop_mask_to_view(mask, *grid, view)
                mask = mask if mask.shape[0] == 1 else mask[list(frames)]
                if not bool((mask > 0).any()):
                    continue
            masks[place] = mask
        there = list(masks)
        return InstanceRegions.from_boxes(seen.boxes[there].to(device), *grid, list(masks.values())), there

    @torch.no_grad()
    def _projected(self, network: Any, seen: _Seen, q: Tensor) -> KeysValues:
        return project_tokens(network, grids.to_like(seen.tokens, q))


def _repeat_regions(regions: InstanceRegions, times: int) -> InstanceRegions:
    """The regions of so many chunks of the same pictures."""
    masks = tuple(m if m is None or m.shape[0] == 1 else m.repeat(times, 1, 1) for m in regions.masks)
    ratio, summed = (r if r.shape[0] == 1 else r.repeat(times, 1) for r in (regions.area_ratio, regions.summed_area_ratio))
    return replace(regions, masks=masks, area_ratio=ratio, summed_area_ratio=summed)
