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
from ...ifadapter.attention import FUSIONS, InstanceRegions, KeysValues, compute_injection, project_tokens
from ...ifadapter.instances import Instance, Instances, format_value
from ...ifadapter.model import SDXL, Config, IFAdapter, Layer
from ...ifadapter.regional import crop_box_to_view, crop_mask_to_view
from .. import folders, grids, hooks, inputs, networks, notices
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import attention_of_own_rows
from .inputs import FOLDER, LINK, LOADER, MOST_INSTANCES, NODE, check_mask_batches
from .text import Phrases, encode_for_adapter

KEY = "exemplary_ifadapter"  # names the network among the additional models of a MODEL
REARRANGED = f"{NODE}: another node rearranges the tokens of an attention layer; the boxes are not applied there."
TILED = f"{NODE}: the model is given a part of the image (a tiled sampler?) whose position is unknown; the boxes are not applied."


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """The EXEMPLARY_IF_ADAPTER value: a loaded network, its configuration, and the file's name for messages."""

    patcher: Any  # ModelPatcher
    config: Config
    name: str

    def __deepcopy__(self, memo: dict) -> LoadedAdapter:
        return self


@dataclass(frozen=True)
class Variant:
    """Choices where the paper and the published code differ.

    Args:
        fusion: one of `ifadapter.attention.FUSIONS`.
        whole_phrase: every layer of the resampler attends to all words; see `ifadapter.model.visible_words`.
    """

    fusion: str = "published code"
    whole_phrase: bool = False

    def check(self) -> None:
        """Raise a ValueError for an unknown choice."""
        inputs.check_choice(self.fusion, NODE, "fusion", FUSIONS)


PUBLISHED = Variant()


def load(file: str) -> LoadedAdapter:
    """Load a file of the model folder `ifadapter`. Raises ValueError naming the file and what is wrong or where it must be put."""
    path = folders.path(FOLDER, file, LOADER, LINK)
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{LOADER}: {error} The published file is at {LINK}.") from None


def read(path: str | Path) -> LoadedAdapter:
    """The adapter in a file, in half precision where the device computes in it."""
    config, state = checkpoint.read(path)
    if comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device()):
        state = {name: weight.half() for name, weight in state.items()}
    return LoadedAdapter(networks.load(IFAdapter, state, config), config, Path(path).name)


def check_base(model: Any, adapter: LoadedAdapter) -> None:
    """Raise a ValueError naming both unless this MODEL has the layers that the adapter was trained for."""
    blocks = hooks.attention_blocks(model.get_model_object("diffusion_model"))
    for layer in adapter.config.layers:
        attention = getattr(blocks.get(layer.place), "attn2", None)
        if attention is None or (attention.heads, attention.heads * attention.dim_head) != (layer.heads, layer.channels):
            where = f"{layer.place[0]} block {layer.place[1]}, transformer {layer.place[2]}"
            kind = "SDXL" if adapter.config.layers == SDXL.layers else "another base model"
            raise ValueError(
                f"{NODE}: {adapter.name} was trained for {kind} (text attention of {layer.channels} channels in {where}), but this MODEL is "
                f"{hooks.model_name(model)}, which has no such layer there. Load a checkpoint of the adapter's base model, choose another file "
                f"in {LOADER}, or disconnect the adapter to use the weight-free method."
            )


def check_phrases(instances: Sequence[Instance]) -> None:
    """Raise a ValueError for an instance without a phrase; warn of conditionings, which an adapter cannot use."""
    for instance in instances:
        if not instance.phrase:
            raise ValueError(
                f"{NODE}: the instance in box {format_value(instance.box)} has a conditioning but no phrase. An adapter encodes phrases itself: "
                "write one, or disconnect the adapter to use the weight-free method."
            )
    if any(instance.conditioning is not None for instance in instances):
        notices.warn_user(f"{NODE}: conditionings of instances are for the weight-free method; the adapter uses the phrases.")


def apply(
    model: Any, clip: Any, instances: Instances, strength: float, percent: PercentRange, adapter: LoadedAdapter, variant: Variant
) -> Any:
    """A MODEL with the adapter; the given one is not changed. Strength, range and variant are checked already. Raises ValueError."""
    shown = tuple(instance for instance in instances if instance.strength > 0.0)
    if len(shown) > MOST_INSTANCES:
        raise ValueError(
            f"{NODE}: there are {len(shown)} instances; with an adapter at most {MOST_INSTANCES} can be drawn. Remove some, or disconnect "
            "the adapter."
        )
    if not shown:
        return model
    check_phrases(shown)
    if len(shown) > adapter.config.slots:
        notices.warn_user(
            f"{NODE}: there are {len(shown)} instances, but {adapter.name} was trained with {adapter.config.slots} at most; "
            "with more of them each has less effect."
        )
    phrases = encode_for_adapter(clip, [instance.phrase for instance in shown], adapter.config, NODE)
    technique = TrainedTextAttention(adapter, shown, phrases, strength, percent, variant)
    patched = hooks.install(model, {"attn2": technique}, [layer.place for layer in adapter.config.layers])
    networks.serve(patched, KEY, [adapter.patcher])
    return patched


@dataclass(frozen=True, eq=False)
class _VisibleInstances:
    """The instances in a part of the image: their indices, boxes in it, and tokens for unconditional and conditional rows [2, i, m, c]."""

    indices: tuple[int, ...]
    boxes: Tensor
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class TrainedTextAttention:
    """attn2: the instance semantic map is added to every row; for unconditional rows it is that of empty phrases in the same boxes."""

    adapter: LoadedAdapter
    instances: tuple[Instance, ...]
    phrases: Phrases
    strength: float
    percent: PercentRange
    variant: Variant

    def __deepcopy__(self, memo: dict) -> TrainedTextAttention:
        return self

    def before_run(self, run: SamplingRun) -> None:
        check_mask_batches(self.instances, run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and run.inside(self.percent, options)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # not None where `active` is True
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
        """What to add to the rows of these chunks, one after the other; None if no instance is in them."""
        rows = sum(last - first for first, last, _ in parts)
        frames = grids.frame_indices(options, parts[0][1] - parts[0][0]) if self._frames > 1 else ()
        visible = run.get_or_make((self, "visible", view, q.device), partial(self._find_visible, view, q.device))
        make = partial(self._regions, visible, grid, view, frames, q.device)
        regions, present = run.get_or_make((self, "regions", grid, view, frames, q.device), make)
        if not present:
            return None
        layer = self._find_layer(options)
        network = self.adapter.patcher.model.adapter_modules[layer.key]
        # The adapter's own layers: no LoRA of the base changes them.
        key = (self, "projected", layer.key, view, q.device, q.dtype)
        projected = run.get_or_make(key, partial(self._projected, network, visible, q))
        return compute_injection(
            network,
            q if rows == len(q) else torch.cat([q[first:last] for first, last, _ in parts]),
            projected
            if len(present) == len(visible.indices)
            else KeysValues(projected.keys[:, present], projected.values[:, present]),
            [int(conditional) for first, last, conditional in parts for _ in range(last - first)],
            # Masks that differ between latents: repeated for the rows of every chunk.
            regions if not frames else _repeat_regions(regions, len(parts)),
            strength=self.strength,
            strengths=[self.instances[visible.indices[number]].strength for number in present],
            slots=self.adapter.config.slots,
            fusion=self.variant.fusion,
            attention=attention_of_own_rows(options),
        )

    @property
    def _frames(self) -> int:
        return max((i.mask.shape[0] for i in self.instances if i.mask is not None), default=1)

    def _find_layer(self, options: dict) -> Layer:
        key = hooks.layer_key(options)
        return next(layer for layer in self.adapter.config.layers if layer.place == key)

    @torch.no_grad()
    def _find_visible(self, view: grids.View, device: torch.device) -> _VisibleInstances:
        """Computed in float32 whatever the base computes in: once per run, and errors of the resampler's layers would add up."""
        boxes = [crop_box_to_view(instance.box, view) for instance in self.instances]
        indices = tuple(i for i, box in enumerate(boxes) if box is not None)
        inside = torch.tensor([boxes[i] for i in indices], dtype=torch.float32).view(-1, 4)
        if not indices:
            return _VisibleInstances(indices, inside, torch.zeros(2, 0, 1, self.adapter.config.width))
        chosen = list(indices)
        hidden, eot, counts = (part[chosen].to(device) for part in (self.phrases.hidden, self.phrases.eot, self.phrases.counts))
        network = self.adapter.patcher.model
        return _VisibleInstances(
            indices,
            inside,
            network.conditional_and_unconditional_tokens(hidden, eot, counts, inside.to(device), self.variant.whole_phrase),
        )

    def _regions(
        self, visible: _VisibleInstances, grid: grids.Grid, view: grids.View, frames: tuple[int, ...], device: torch.device
    ) -> tuple[InstanceRegions, list[int]]:
        """Their regions, and which of the visible ones have any: a mask may be empty in these frames or in this part."""
        masks: dict[int, Tensor | None] = {}
        for number, i in enumerate(visible.indices):
            mask = self.instances[i].mask
            if mask is not None:
                mask = crop_mask_to_view(mask, *grid, view)
                mask = mask if mask.shape[0] == 1 else mask[list(frames)]
                if not bool((mask > 0).any()):
                    continue
            masks[number] = mask
        present = list(masks)
        return InstanceRegions.from_boxes(visible.boxes[present].to(device), *grid, list(masks.values())), present

    @torch.no_grad()
    def _projected(self, network: Any, visible: _VisibleInstances, q: Tensor) -> KeysValues:
        return project_tokens(network, grids.to_like(visible.tokens, q))


def _repeat_regions(regions: InstanceRegions, times: int) -> InstanceRegions:
    """The regions repeated for several chunks of the same latents."""
    masks = tuple(m if m is None or m.shape[0] == 1 else m.repeat(times, 1, 1) for m in regions.masks)
    ratio, summed = (r if r.shape[0] == 1 else r.repeat(times, 1) for r in (regions.area_ratio, regions.summed_area_ratio))
    return replace(regions, masks=masks, area_ratio=ratio, summed_area_ratio=summed)
