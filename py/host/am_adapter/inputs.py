"""The inputs of AM-Adapter's nodes, checked: exemplars with their maps, the target's map in the same palette, the mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...semantic.palettes import VOID
from ...semantic.remap import remap
from ...semantic.semantic_map import SemanticMap, broadcast_batch
from .. import grids, inputs, notices
from ..run import SamplingRun
from . import cache
from .exemplar import SOURCES, EncodedExemplars

LEAST_SIDE = 32  # pixels of an exemplar: four latent cells, since the UNet halves them three times
MOST_PIXELS = 1024 * 1024  # of an exemplar, unless the target's map is larger; attention grows with it in every layer and step
MOST_STRETCH = 1.1  # a larger difference between the aspect ratios of image and map is worth a notice
THUMBNAIL = 128  # pixels, for the preview
MOST_LISTED = 8


@dataclass(frozen=True, eq=False)
class Target:
    """The image to generate: labels [b, h, w], the names of the classes, and how much each pixel may change, [b, h, w] in 0..1 or None."""

    labels: Tensor
    names: tuple[str, ...]
    mask: Tensor | None

    def mask_on(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor | None:
        """The mask on a layer's tokens, [b, l], computed once per run."""
        mask = self.mask
        if mask is None:
            return None
        small = run.get_or_make((self, grid, view), lambda: F.adaptive_avg_pool2d(grids.part_of(mask, view), grid))
        return rearrange(small, "b h w -> b (h w)")

    def check_batches(self, run: SamplingRun, node: str) -> None:
        """Raises ValueError unless map and mask have one image, or one per latent."""
        for name, batch in (("target_map", self.labels), ("mask", self.mask)):
            if batch is not None and batch.shape[0] not in (1, run.latent_shape[0]):
                raise grids.batch_error(node, name, batch.shape[0], run.latent_shape[0])


def check_target(target_map: SemanticMap, mask: Tensor | None, node: str) -> Target:
    """The target of a node. Raises ValueError for a mask that is not one; warns of one that is 0 everywhere."""
    if mask is not None:
        mask = inputs.check_mask(mask, node, "mask")
        if not bool((mask > 0).any()):
            loaded = ""
            if tuple(mask.shape[-2:]) == (64, 64):
                loaded = " Load Image returns such a mask for an image without transparency."
            notices.warn_user(
                f"{node}: mask is 0 everywhere, so the exemplar has no effect.{loaded} Paint the mask, or disconnect it."
            )
    return Target(target_map.labels, target_map.names, mask)


def encode_exemplars(
    model: Any,
    vae: Any,
    image: Tensor,
    exemplar_map: SemanticMap,
    target_map: SemanticMap,
    prompt: Any,
    source: str,
    limit: int,
    node: str,
) -> EncodedExemplars:
    """Exemplars in a model's latents, with their classes numbered as in the target's palette. Warns of what will look wrong.

    Raises:
        ValueError: an image that is too small or contains NaN, batches or palettes that do not fit, the VAE of another model.
    """
    inputs.check_choice(source, node, "exemplar_features", SOURCES)
    inputs.check_connected(vae, node, "vae", "Connect the VAE of the checkpoint.")
    pixels = inputs.check_image(image, node, "exemplar", least_side=LEAST_SIDE)
    count = broadcast_batch(len(pixels), len(exemplar_map), f"{node}: exemplar", "exemplar_map")
    if prompt is not None and not len(prompt):
        raise ValueError(f"{node}: exemplar_prompt is empty. Connect a CONDITIONING with a prompt, or disconnect it.")
    _warn_of_stretch(pixels, exemplar_map, node)
    pixels, exemplar_map = _fit(pixels, exemplar_map, max(MOST_PIXELS, math.prod(target_map.size)), _cell(vae), node)
    labels = match_palette(exemplar_map, target_map, node)
    _warn_of_classes(labels, target_map, node)
    latents = vae.encode(pixels).detach()
    if latents.ndim == 5 and len(pixels) > 1:  # a video VAE takes a batch for the frames of one video
        latents = torch.cat([vae.encode(one[None]).detach() for one in pixels])
    wanted = model.get_model_object("latent_format").latent_channels
    if latents.ndim not in (4, 5) or latents.shape[1] != wanted or latents.shape[2:-2] not in ((), (1,)):
        raise ValueError(
            f"{node}: this VAE gives latents of shape {tuple(latents.shape)}, but the MODEL needs {wanted} channels. Connect the VAE of the "
            "same checkpoint."
        )
    latents = model.model.process_latent_in(latents.float()).expand(count, *latents.shape[1:]).cpu()
    colours = rearrange(exemplar_map.to_image(), "b h w c -> b c h w").expand(count, -1, -1, -1)
    token = " ".join((cache.digest(latents), cache.digest(exemplar_map.labels), exemplar_map.palette.name))
    h, w = (min(THUMBNAIL, side) for side in pixels.shape[1:3])
    small = F.adaptive_avg_pool2d(rearrange(pixels, "n h w c -> n c h w"), (h, w))
    thumbnails = rearrange(small, "n c h w -> n h w c").expand(count, -1, -1, -1)
    return EncodedExemplars(latents, labels, colours, thumbnails, prompt, source, limit, token)


def match_palette(exemplar_map: SemanticMap, target_map: SemanticMap, node: str) -> Tensor:
    """The exemplar's labels numbered as in the target's palette, [n, h, w].

    Palettes with the same classes in another order, or with other classes besides, are matched by name. Raises ValueError if no class
    of the exemplar is in the target's palette.
    """
    if exemplar_map.names == target_map.names:
        return exemplar_map.labels
    converted = remap(exemplar_map, "", target_map.palette)
    if not converted.changes and bool((exemplar_map.labels != VOID).any()):
        raise ValueError(
            f"{node}: exemplar_map has the palette {exemplar_map.palette.name!r}, target_map {target_map.palette.name!r}, and they share no "
            "class. Make both maps with one palette, or use Semantic Map Remap with palette_from."
        )
    unmatched = (
        f" Classes without a counterpart: {inputs.list_names(converted.unmatched, MOST_LISTED)}." if converted.unmatched else ""
    )
    notices.warn_user(
        f"{node}: exemplar_map has the palette {exemplar_map.palette.name!r}, target_map {target_map.palette.name!r}; their classes are matched "
        f"by name.{unmatched}"
    )
    return converted.semantic_map.labels


def missing_classes(labels: Tensor, target_map: SemanticMap) -> list[tuple[str, float]]:
    """Classes of the target that no exemplar has, with their share of the target, the largest first."""
    present = set(labels.unique().tolist())
    shares = target_map.shares().mean(dim=0)
    missing = [(name, float(shares[n])) for n, name in enumerate(target_map.names) if shares[n] > 0 and n not in present]
    return sorted(missing, key=lambda pair: -pair[1])


def _cell(vae: Any) -> int:
    """Pixels of a latent cell's side."""
    ratio = getattr(vae, "downscale_ratio", 8)
    return ratio if isinstance(ratio, int) and ratio > 0 else 8


def _fit(pixels: Tensor, semantic_map: SemanticMap, most_pixels: int, cell: int, node: str) -> tuple[Tensor, SemanticMap]:
    """Image and map with at most so many pixels, cropped to whole latent cells as the host's VAE crops the image."""
    h, w = pixels.shape[1:3]
    scale = min(1.0, math.sqrt(most_pixels / (h * w)))
    height, width = (max(cell, round(side * scale)) for side in (h, w))
    labels = semantic_map.labels
    if scale < 1.0:
        notices.warn_user(
            f"{node}: the exemplar has {w}x{h} pixels; it is reduced to {width}x{height}, because larger ones slow down every step."
        )
        image = rearrange(pixels, "n h w c -> n c h w")
        pixels = rearrange(F.interpolate(image, (height, width), mode="area"), "n c h w -> n h w c")
        if labels.shape[1] * labels.shape[2] > height * width:
            labels = F.interpolate(labels[:, None].float(), (height, width), mode="nearest-exact")[:, 0].to(labels.dtype)
    pixels, labels = (_crop(tensor, (height, width), cell) for tensor in (pixels, labels))
    return pixels, semantic_map if labels is semantic_map.labels else SemanticMap(labels, semantic_map.palette)


def _crop(tensor: Tensor, size: grids.Grid, cell: int) -> Tensor:
    """[n, h, w, ...] without the part at the edges where an image of this size has no whole latent cells."""
    for axis, side in enumerate(size, start=1):
        rest = side % cell
        if rest:
            first, length = (round(part * tensor.shape[axis] / side) for part in (rest // 2, side - rest))
            tensor = tensor.narrow(axis, first, max(1, min(length, tensor.shape[axis] - first)))
    return tensor


def _warn_of_stretch(pixels: Tensor, exemplar_map: SemanticMap, node: str) -> None:
    (h, w), (map_h, map_w) = pixels.shape[1:3], exemplar_map.size
    ratio = (w / h) / (map_w / map_h)
    if max(ratio, 1 / ratio) > MOST_STRETCH:
        notices.warn_user(
            f"{node}: the exemplar has {w}x{h} pixels, its map {map_w}x{map_h}; the map is stretched over it. If it covers another part of the "
            "image, crop both alike."
        )


def _warn_of_classes(labels: Tensor, target_map: SemanticMap, node: str) -> None:
    for name, found in (("target_map", target_map.labels), ("exemplar_map", labels)):
        if bool((found == VOID).all()):
            notices.warn_user(
                f"{node}: {name} is void everywhere, so classes have no effect. Check the palette it was made with."
            )
            return
    if missing := missing_classes(labels, target_map):
        names = [f"{name} ({100 * share:.1f} %)" for name, share in missing]
        notices.warn_user(
            f"{node}: the exemplar lacks classes of target_map, which keep the model's own look: {inputs.list_names(names, MOST_LISTED)}."
        )
