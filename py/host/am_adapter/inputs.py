"""What a user connects to AM-Adapter, checked and brought into one alphabet: exemplars with their maps, the target's map, the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...semantic.palettes import VOID
from ...semantic.remap import remap
from ...semantic.semantic_map import SemanticMap, broadcast_batch
from .. import grids, notices
from ..run import SamplingRun
from . import cache as am_adapter_cache
from .exemplar import SOURCES, Pictures

LEAST_SIDE = 32  # pixels of an exemplar: four cells, since the UNet halves them three times
STRETCH = 1.1  # from here on, another aspect ratio of picture and map is worth a notice
LISTED = 8
THUMBNAIL = 128  # pixels, for the preview


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be painted: labels [b, h, w] and the names of the classes; how much each place may be changed, [b, h, w] in 0..1 or None."""

    labels: Tensor
    names: tuple[str, ...]
    where: Tensor | None

    def where_on(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor | None:
        """The mask on a layer's places, [b, l], made once per run."""
        where = self.where
        if where is None:
            return None
        small = run.get_or_make((self, grid, view), lambda: F.adaptive_avg_pool2d(grids.part_of(where, view), grid))
        return rearrange(small, "b h w -> b (h w)")


def target_of(target_map: SemanticMap, mask: Tensor | None, node: str) -> Target:
    """The target of a node. Raises ValueError for a mask that is none."""
    if mask is None:
        return Target(target_map.labels, target_map.names, None)
    if not bool(torch.isfinite(mask).all()) or mask.numel() == 0:
        raise ValueError(f"{node}: mask holds values that are no numbers, or nothing. Look at the node it comes from.")
    where = mask.detach().float().cpu().clamp(0, 1)
    return Target(target_map.labels, target_map.names, where.reshape(-1, *where.shape[-2:]))


def exemplar_pictures(
    model: Any,
    vae: Any,
    image: Tensor,
    exemplar_map: SemanticMap,
    target_map: SemanticMap,
    prompt: Any,
    source: str,
    limit: int,
    node: str,
) -> Pictures:
    """Exemplars as a model reads them. Warns of what will look wrong.

    Raises:
        ValueError: a picture that is too small or holds no numbers, batches or palettes that do not fit, the VAE of another model.
    """
    if source not in SOURCES:
        raise ValueError(f"{node}: there are no exemplar_features {source!r}. Choose one of {', '.join(SOURCES)}.")
    if vae is None:
        raise ValueError(f"{node}: the VAE input is empty. Connect the VAE of the checkpoint.")
    pixels = _pixels(image, node)
    count = broadcast_batch(len(pixels), len(exemplar_map), f"{node}: exemplar", "exemplar_map")
    labels = in_alphabet(exemplar_map, target_map, node)
    _warn(pixels, exemplar_map, labels, target_map, node)
    latents = vae.encode(pixels).detach()
    if latents.ndim == 5 and len(pixels) > 1:  # a video VAE takes a batch for the frames of one video
        latents = torch.cat([vae.encode(image[None]).detach() for image in pixels])
    wanted = model.get_model_object("latent_format").latent_channels
    if latents.ndim not in (4, 5) or latents.shape[1] != wanted or latents.shape[2:-2] not in ((), (1,)):
        raise ValueError(
            f"{node}: this VAE gives latents of shape {tuple(latents.shape)}, but the MODEL reads {wanted} channels. Connect the VAE that came "
            "with the same checkpoint."
        )
    latents = model.model.process_latent_in(latents.float()).expand(count, *latents.shape[1:]).cpu()
    colours = rearrange(exemplar_map.to_image(), "b h w c -> b c h w").expand(count, -1, -1, -1)
    token = " ".join((am_adapter_cache.digest(latents), am_adapter_cache.digest(exemplar_map.labels), exemplar_map.palette.name))
    h, w = (min(THUMBNAIL, side) for side in pixels.shape[1:3])
    small = F.adaptive_avg_pool2d(rearrange(pixels, "n h w c -> n c h w"), (h, w))
    thumbnails = rearrange(small, "n c h w -> n h w c").expand(count, -1, -1, -1)
    return Pictures(latents, labels, colours, thumbnails, prompt, source, limit, token)


def in_alphabet(exemplar_map: SemanticMap, target_map: SemanticMap, node: str) -> Tensor:
    """The exemplar's labels as the target's palette counts them, [n, h, w].

    Palettes that name the same classes in another order, or other classes besides, are matched by name. Raises ValueError if no class
    that the exemplar shows is in the target's palette.
    """
    if exemplar_map.names == target_map.names:
        return exemplar_map.labels
    converted = remap(exemplar_map, "", target_map.palette)
    if not converted.changes and bool((exemplar_map.labels != VOID).any()):
        raise ValueError(
            f"{node}: exemplar_map has the palette {exemplar_map.palette.name!r}, target_map {target_map.palette.name!r}, and no class of the "
            "one is in the other. Read both maps with one palette, or use Semantic Map Remap with palette_from."
        )
    lost = f" These have no counterpart: {_listed(converted.unmatched)}." if converted.unmatched else ""
    notices.warn_user(
        f"{node}: exemplar_map has the palette {exemplar_map.palette.name!r}, target_map {target_map.palette.name!r}; their classes are matched "
        f"by name.{lost}"
    )
    return converted.semantic_map.labels


def lacking(labels: Tensor, target_map: SemanticMap) -> list[tuple[str, float]]:
    """Classes of the target that no exemplar shows, with their share of the target, the largest first."""
    shown = set(labels.unique().tolist())
    shares = target_map.shares().mean(dim=0)
    missing = [(target_map.names[n], float(shares[n])) for n in range(len(target_map.names)) if shares[n] > 0 and n not in shown]
    return sorted(missing, key=lambda pair: -pair[1])


def _pixels(image: Tensor, node: str) -> Tensor:
    """[n, h, w, 3] in 0..1."""
    h, w = image.shape[1:3]
    if min(h, w) < LEAST_SIDE:
        raise ValueError(
            f"{node}: the exemplar is {w}x{h} pixels; it needs at least {LEAST_SIDE}x{LEAST_SIDE}. Give a larger one."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"{node}: the exemplar holds values that are no numbers (NaN or infinity). Look at the node it comes from."
        )
    pixels = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]
    return pixels.detach().float().clamp(0, 1)


def _warn(pixels: Tensor, exemplar_map: SemanticMap, labels: Tensor, target_map: SemanticMap, node: str) -> None:
    for name, found in (("target_map", target_map.labels), ("exemplar_map", labels)):
        if bool((found == VOID).all()):
            notices.warn_user(
                f"{node}: {name} is void everywhere, so no class steers what is read. Check the palette it was made with."
            )
            return
    (h, w), (map_h, map_w) = pixels.shape[1:3], exemplar_map.size
    ratio = (w / h) / (map_w / map_h)
    if max(ratio, 1 / ratio) > STRETCH:
        notices.warn_user(
            f"{node}: the exemplar is {w}x{h} pixels, its map {map_w}x{map_h}; the map is stretched over it. If it shows another part of the "
            "picture, crop both alike."
        )
    if missing := lacking(labels, target_map):
        names = [f"{name} ({100 * share:.1f} %)" for name, share in missing]
        notices.warn_user(f"{node}: the exemplar lacks classes of target_map, which keep the model's own look: {_listed(names)}.")


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
