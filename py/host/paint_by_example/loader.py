"""Paint by Example's room: its files -> MODEL, exemplar encoder and VAE of the host; pictures of exemplars -> CONDITIONING."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import CrossAttention
from torch import Tensor

from ...paint_by_example import checkpoint
from ...paint_by_example.context import gated
from ...paint_by_example.exemplar import MEAN, STD, cut_out, fitted, mixed, normalised, steps_of, towards_null
from ...paint_by_example.model import ExemplarMapper
from .. import folders, grids, hooks, networks, notices, playground
from ..run import SamplingRun, current_run

LOADER, NODE = "Load Paint by Example", "Exemplar Conditioning"
FOLDER = "paint_by_example"
SAME_FILE = "from the model's file"
LINK = "https://huggingface.co/Fantasy-Studio/Paint-by-Example"
#: What the UNet reads beside its noise, in this order: the masked picture, and 1 where it is kept.
CONCAT_KEYS = ("masked_image", "mask_inverted")
REGIONS = "exemplary_regions"  # in a CONDITIONING: the regional exemplars
BLENDED = "exemplary_blended"  # in a CONDITIONING: the sum of the weights of the exemplars that its token is the mean of


@dataclass(frozen=True, eq=False)
class ExemplarEncoder:
    """EXEMPLARY_EXEMPLAR_ENCODER: a CLIP vision tower and the mapper behind it, both in the host's care.

    `vision` is the network inside of the patcher `tower`, `size` the side of the pictures that it reads.
    """

    tower: Any
    vision: Any
    mapper: Any
    size: int
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __deepcopy__(self, memo: dict) -> ExemplarEncoder:
        return self

    def null(self) -> Tensor:
        """The token of no exemplar, [1, 1, c]."""
        return self.mapper.model.null.detach().to(comfy.model_management.intermediate_device(), torch.float32)

    def tokens(self, squares: Tensor) -> Tensor:
        """Pictures [n, 3, size, size] in 0..1 -> their tokens [n, 1, c]."""
        comfy.model_management.load_models_gpu([self.tower, self.mapper])
        device = self.tower.load_device
        with torch.no_grad():
            pooled = self.vision(normalised(squares.to(device, torch.float32), self.mean, self.std))[2]
            found = self.mapper.model(pooled.float().to(self.mapper.load_device))
        return found.to(comfy.model_management.intermediate_device(), torch.float32)


@dataclass(frozen=True, eq=False)
class Region:
    """An exemplar of its own for a part of the picture: token [1 or b, 1, c], mask [1 or b, h, w] in 0..1."""

    token: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class RegionalExemplars:
    """attn2 technique of every MODEL that the loader gives: acts in conditions that have regional exemplars, in others never."""

    def __deepcopy__(self, memo: dict) -> RegionalExemplars:
        return self

    def before_run(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        for condition in _conditions(run):
            for region in condition.get(REGIONS, ()):
                if region.mask.shape[0] not in (1, latents):
                    raise grids.batch_error(NODE, "the mask of a region", region.mask.shape[0], latents)

    def idle(self, run: SamplingRun) -> bool:
        return run.get_or_make((self, "idle"), lambda: not any(REGIONS in c for c in _conditions(run)))

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and not self.idle(run)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has asked
        block, grid = hooks.running_block(options), grids.layer_grid(options, q.shape[1])
        chunks = grids.conditional_chunks(options, q.shape[0])
        if block is None or grid is None or chunks is None:
            run.warn_once(f"{NODE}: another node rearranges the places of an attention layer; regions are not applied there.")
            return None
        change = None
        for chunk, first, last in chunks:
            regions = grids.condition(run, options, chunk).get(REGIONS, ())
            view = grids.chunk_view(run, options, chunk)
            if not regions or view is None:
                continue
            frames = list(grids.frame_indices(options, last - first))
            masks = torch.stack([_frames(_on_grid(r.mask, grid, view), frames) for r in regions])
            # The layer is called, its weights never read: they may be quantised, offloaded or carry a LoRA.
            values = [block.attn2.to_v(grids.to_like(_frames(r.token, frames), q)) for r in regions]
            change = torch.zeros_like(text) if change is None else change
            change[first:last] = gated(text[first:last], values, grids.to_like(masks, text))
        return change


class OneTokenAttention(CrossAttention):
    """The host's text attention, for a single token: every place gets that token's value, so no query, key or softmax is computed."""

    def forward(self, x: Tensor, context: Any = None, value: Any = None, mask: Any = None, **options: Any) -> Tensor:
        if mask is not None or context is None or context.shape[1] != 1 or (value is not None and value.shape[1] != 1):
            return super().forward(x, context, value=value, mask=mask, **options)
        token = self.to_out(self.to_v(context if value is None else value))
        return token.expand(-1, x.shape[1], -1).contiguous()  # others may change it in place


def _conditions(run: SamplingRun) -> list[dict[str, Any]]:
    return [c for group in (getattr(run.guider, "conds", None) or {}).values() for c in group or ()]


def _frames(tensor: Tensor, frames: list[int]) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[[frame % tensor.shape[0] for frame in frames]]


def _on_grid(mask: Tensor, grid: grids.Grid, view: grids.View) -> Tensor:
    """A mask [b, h, w] on the cells of a layer that sees `view` of it: [b, l]."""
    h, w = mask.shape[-2:]
    x0, y0, x1, y1 = view
    part = mask[:, int(y0 * h) : max(int(y0 * h) + 1, round(y1 * h)), int(x0 * w) : max(int(x0 * w) + 1, round(x1 * w))]
    return F.interpolate(part[:, None].float(), size=grid, mode="area")[:, 0].flatten(1)


# Loading


def load(file: str, encoder_file: str = SAME_FILE, clip_vision: Any = None) -> tuple[Any, ExemplarEncoder, Any]:
    """MODEL, encoder and VAE of the chosen files; the VAE is None if there is none in them.

    Args:
        encoder_file: where the exemplar encoder is, if not in the model's file or its diffusers folder.
        clip_vision: a CLIP_VISION to use as the tower instead of the file's.

    Raises:
        ValueError: says what is missing and where it is from.
    """
    contents = _read(file)
    if encoder_file != SAME_FILE:
        contents = checkpoint.Contents(unet=contents.unet, vae=contents.vae, metadata=contents.metadata).with_missing_from(
            _read(encoder_file)
        )
    for part, name in ((contents.unet, "UNet"), (contents.mapper, "exemplar encoder")):
        if not part:
            remedy = f"Choose the file of the encoder as well, or load the whole from {LINK}"
            raise ValueError(f"{LOADER}: there is no {name} in {file!r}. {remedy}.")
    small = contents.metadata.get("base") == "playground"
    model = playground.load_model(contents.unet) if small else _unet(contents.unet, file)
    model = reads_exemplars(model)
    if clip_vision is None and small:
        clip_vision = playground.load_clip_vision()
    encoder = _encoder(contents, clip_vision, file)
    _check_context(model, encoder)
    if small:
        return model, encoder, playground.load_vae()
    if not contents.vae:
        notices.warn_user(f"{LOADER}: {file!r} has no VAE; load the one of any Stable Diffusion 1.x model for it.")
        return model, encoder, None
    return model, encoder, comfy.sd.VAE(sd=dict(contents.vae))


def reads_exemplars(model: Any) -> Any:
    """A MODEL around a nine-channel UNet of its own, made Paint by Example's: what it is told, and how its text layers read it."""
    model.model.concat_keys = CONCAT_KEYS
    for block in hooks.attention_blocks(model.get_model_object("diffusion_model")).values():
        if type(block.attn2) is CrossAttention:
            block.attn2.__class__ = OneTokenAttention  # names and weights stay
    return hooks.install(model, {"attn2": RegionalExemplars()}, hooks.text_layers(model, LOADER))


def _read(file: str) -> checkpoint.Contents:
    try:
        return checkpoint.read(folders.path(FOLDER, file, LOADER, LINK))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(LOADER) else f"{LOADER}: {text}") from None


def _unet(weights: dict[str, Tensor], file: str) -> Any:
    model = comfy.sd.load_diffusion_model_state_dict(dict(weights))
    if model is None:
        raise ValueError(f"{LOADER}: the host does not know the UNet in {file!r}; Paint by Example's is of Stable Diffusion 1.x.")
    missing = sorted(set(model.model.diffusion_model.state_dict()) - set(weights))
    if missing:
        raise ValueError(
            f"{LOADER}: {Path(file).name} is incomplete: {len(missing)} weights of the UNet are missing, such as {missing[0]}. Download it again."
        )
    return model


def _encoder(contents: checkpoint.Contents, clip_vision: Any, file: str) -> ExemplarEncoder:
    try:
        config = checkpoint.mapper_config(contents.mapper)
        description: Any = None if clip_vision is not None else checkpoint.tower_config(contents.tower)
    except ValueError as error:
        raise ValueError(f"{LOADER}: {file}: {error} Or connect a CLIP ViT-L/14 as clip_vision.") from None
    mapper = networks.load(ExemplarMapper, contents.mapper, config)
    if clip_vision is None:
        tower = networks.load(partial(_tower, description), contents.tower)
        return ExemplarEncoder(tower, tower.model, mapper, description["image_size"])
    vision = getattr(clip_vision.model, "vision_model", None)
    embedding = getattr(getattr(vision, "embeddings", None), "class_embedding", None)
    width = 0 if embedding is None else embedding.shape[0]
    if width != config.width:
        found = f"has width {width}" if width else "has no class token"
        raise ValueError(
            f"{LOADER}: this CLIP_VISION {found}, and the exemplar encoder needs {config.width}. "
            "Connect a CLIP ViT-L/14, or nothing to use the tower of the file."
        )
    size = getattr(clip_vision, "image_size", 224)
    mean, std = getattr(clip_vision, "image_mean", MEAN), getattr(clip_vision, "image_std", STD)
    return ExemplarEncoder(clip_vision.patcher, vision, mapper, size, mean, std)


def _tower(description: dict[str, Any], operations: Any, dtype: torch.dtype, device: Any) -> torch.nn.Module:
    return comfy.clip_model.CLIPVision(description, dtype, device, operations)


def _check_context(model: Any, encoder: ExemplarEncoder) -> None:
    blocks = hooks.attention_blocks(model.get_model_object("diffusion_model"))
    needed = next(iter(blocks.values())).attn2.to_v.in_features
    found = encoder.mapper.model.config.context
    if needed != found:
        raise ValueError(
            f"{LOADER}: the UNet reads tokens of width {needed}, and this encoder makes {found}. They do not belong together."
        )


# Conditioning


def condition(
    encoder: ExemplarEncoder,
    image: Tensor,
    *,
    weights: str = "1",
    several: str = "blend",
    fit: str = "squash",
    mask: Tensor | None = None,
    fill: str = "keep",
    crop: bool = True,
    strength: float = 1.0,
    course: str = "constant",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    region: Tensor | None = None,
    positive: list | None = None,
) -> tuple[list, list]:
    """Positive and negative CONDITIONING of exemplars [n, h, w, 1, 3 or 4].

    Args:
        weights: one number for all exemplars, or one for each, with commas between.
        several: `blend` them into one token, or `one per picture` of the latent batch.
        mask: [1 or n, h, w] of the thing; an image with alpha brings its own.
        region: [1 or b, h, w] of the source picture, where alone these exemplars count.
        positive: of another node of this kind, which these exemplars join.

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    _check_image(image, NODE, "image")
    if not (math.isfinite(strength) and 0.0 <= strength <= 2.0):
        raise ValueError(f"{NODE}: strength is {strength}; it must be a number from 0 to 2.")
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise ValueError(f"{NODE}: {name} is {value}; it must be a number from 0 to 1.")
    shares = _weights(weights, len(image))
    squares = torch.stack([fitted(p, encoder.size, fit) for p in _pictures(image, mask, fill, crop)])
    null, tokens = encoder.null(), encoder.tokens(squares)
    if several == "blend":
        tokens = mixed(tokens, shares)
    weight = sum(shares) / len(shares)
    masks = None if region is None else checked_mask(region, NODE, "region")
    if masks is not None and not (masks > 0).any():
        raise ValueError(f"{NODE}: the region is empty. Paint where this exemplar belongs, or disconnect it.")
    made = []
    begun: list[Any] = [[null, {BLENDED: 0.0}]] if positive is None else positive
    for start, end, value in steps_of(strength, course, start_percent, end_percent):
        token = towards_null(null, tokens, value)
        for before, options in begun:
            first, last = max(start, options.get("start_percent", 0.0)), min(end, options.get("end_percent", 1.0))
            if first >= last:
                continue
            made.append(_joined(before, options, token, weight, masks, first, last))
    return made, [[null, {}]]


def _joined(
    before: Tensor, options: dict, token: Tensor, weight: float, region: Tensor | None, first: float, last: float
) -> list:
    """One entry of a CONDITIONING with one more exemplar."""
    options = dict(options)
    if (first, last) != (0.0, 1.0):
        options |= {"start_percent": first, "end_percent": last}
    if region is not None:
        options[REGIONS] = (*options.get(REGIONS, ()), Region(token, region))
        return [before, options]
    there = options.get(BLENDED, 1.0)
    options[BLENDED] = there + weight
    return [(there * before + weight * token) / (there + weight) if there else token, options]


def _pictures(image: Tensor, mask: Tensor | None, fill: str, crop: bool) -> list[Tensor]:
    if mask is None and image.shape[-1] == 4 and (image[..., 3] < 1).any():
        mask, fill = image[..., 3], "white" if fill == "keep" else fill  # what is transparent has no colour to keep
    if mask is not None:
        mask = checked_mask(mask, NODE, "mask")
        if len(mask) not in (1, len(image)):
            raise ValueError(
                f"{NODE}: mask has {len(mask)} pictures, but image has {len(image)}. Give one mask, or one for each."
            )
        if mask.shape[-2:] != image.shape[1:3]:
            mask = F.interpolate(mask[:, None], size=image.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    found = []
    for number, picture in enumerate(coloured(image).movedim(-1, 1)):
        try:
            found.append(cut_out(picture, None if mask is None else mask[number % len(mask)], fill, crop))
        except ValueError as error:
            raise ValueError(f"{NODE}: {error}") from None
    return found


def _weights(text: str, count: int) -> list[float]:
    try:
        shares = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{NODE}: weights is {text!r}; it must be numbers with commas between, such as 1, 0.5.") from None
    shares = shares * count if len(shares) == 1 else shares
    if len(shares) != count:
        raise ValueError(f"{NODE}: weights has {len(shares)} numbers for {count} exemplars. Give one, or one for each.")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) <= 0:
        raise ValueError(f"{NODE}: weights is {text!r}; the numbers must not be negative, and one of them above 0.")
    return shares


def _check_image(image: Tensor, node: str, name: str) -> None:
    if not torch.is_tensor(image) or image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"{node}: {name} is no picture. Connect an IMAGE.")
    if not image.isfinite().all():
        raise ValueError(f"{node}: {name} has values that are no numbers (NaN or infinity). Look at the node that it comes from.")


def coloured(image: Tensor) -> Tensor:
    """An IMAGE [b, h, w, 1 or more] as [b, h, w, 3] in 0..1."""
    return (image[..., :1].expand(*image.shape[:-1], 3) if image.shape[-1] < 3 else image[..., :3]).clamp(0, 1)


def checked_mask(mask: Tensor, node: str, name: str) -> Tensor:
    """A MASK as [b, h, w] in 0..1. Raises ValueError naming the node and its input."""
    if not torch.is_tensor(mask) or mask.ndim not in (2, 3, 4) or 0 in mask.shape:
        raise ValueError(f"{node}: {name} is no mask. Connect a MASK.")
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    if not mask.isfinite().all():
        raise ValueError(f"{node}: {name} has values that are no numbers (NaN or infinity). Look at the node that it comes from.")
    return mask.clamp(0, 1)
