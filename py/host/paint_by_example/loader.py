"""Files of Paint by Example -> MODEL, exemplar encoder and VAE of the host."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...paint_by_example import checkpoint
from ...paint_by_example.exemplar import MEAN, STD
from ...paint_by_example.model import ExemplarMapper
from .. import folders, hooks, networks, notices, playground
from .conditioning import ExemplarEncoder
from .regions import RegionalExemplars, patch_text_layers
from .run_check import CONCAT_KEYS

NODE = "Load Paint by Example"
FOLDER = "paint_by_example"
SAME_FILE = "from the model's file"
LINK = "https://huggingface.co/Fantasy-Studio/Paint-by-Example"
_RESNET = re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight")
_TRANSFORMER = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?attentions\.(\d+)\.transformer_blocks\.\d+\.norm1\.weight")


def load(file: str, encoder_file: str = SAME_FILE, clip_vision: Any = None) -> tuple[Any, ExemplarEncoder, Any]:
    """MODEL, encoder and VAE of the chosen files; the VAE is None if the files have none.

    Args:
        encoder_file: the file of the exemplar encoder, if it is not in the model's file or its diffusers folder.
        clip_vision: a CLIP_VISION to use as the tower instead of the file's.

    Raises:
        ValueError: says what is missing and where to get it.
    """
    contents = read_contents(file)
    if encoder_file != SAME_FILE:
        contents = checkpoint.Contents(unet=contents.unet, vae=contents.vae, metadata=contents.metadata).with_missing_from(
            read_contents(encoder_file)
        )
    for part, name in ((contents.unet, "UNet"), (contents.mapper, "exemplar encoder")):
        if not part:
            remedy = f"Choose the encoder's file in encoder_file, or download all parts from {LINK}"
            raise ValueError(f"{NODE}: {file!r} contains no {name}. {remedy}.")
    is_playground = contents.metadata.get("base") == "playground"
    model = playground.load_model(contents.unet) if is_playground else _load_unet(contents.unet, file)
    model = configure_model(model)
    if clip_vision is None and is_playground:
        clip_vision = playground.load_clip_vision()
    encoder = _load_encoder(contents, clip_vision, file)
    _check_context(model, encoder)
    if is_playground:
        return model, encoder, playground.load_vae()
    if not contents.vae:
        notices.warn_user(f"{NODE}: {file!r} contains no VAE; load the VAE of any Stable Diffusion 1.x model for it.")
        return model, encoder, None
    return model, encoder, comfy.sd.VAE(sd=dict(contents.vae))


def read_contents(file: str) -> checkpoint.Contents:
    """The parts of a file in the model folder, the UNet under its original names. Raises ValueError as `load`."""
    try:
        contents = checkpoint.read(folders.path(FOLDER, file, NODE, LINK))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(NODE) else f"{NODE}: {text}") from None
    return replace(contents, unet=rename_unet(contents.unet))


def configure_model(model: Any) -> Any:
    """A MODEL around a nine-channel UNet as Paint by Example's: what is concatenated to the noise, and how its text layers work."""
    model.model.concat_keys = CONCAT_KEYS
    model = hooks.install(model, {"attn2": RegionalExemplars()}, hooks.text_layers(model, NODE))
    patch_text_layers(model)
    return model


def rename_unet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers names -> under original names, by the host's table; weights under original names are returned unchanged."""
    if "conv_in.weight" not in weights:
        return weights
    resnets = Counter(int(m[1]) for name in weights if (m := _RESNET.fullmatch(name)))
    depths = Counter((m[1], int(m[2] or 0), int(m[3])) for name in weights if (m := _TRANSFORMER.fullmatch(name)))
    levels = range(len(resnets))
    down = [depths["down", level, layer] for level in levels for layer in range(resnets[level])]
    up = [depths["up", level, layer] for level in levels for layer in range(resnets[len(resnets) - 1 - level] + 1)]
    names = comfy.utils.unet_to_diffusers(
        {
            "num_res_blocks": [resnets[level] for level in levels],
            "channel_mult": list(levels),  # only their number matters
            "transformer_depth": down,
            "transformer_depth_output": up[::-1],
            "transformer_depth_middle": depths["mid", 0, 0],
        }
    )
    return {names[name]: weights[name] for name in sorted(weights) if name in names}


def _load_unet(weights: dict[str, Tensor], file: str) -> Any:
    model = comfy.sd.load_diffusion_model_state_dict(dict(weights))
    if model is None:
        raise ValueError(
            f"{NODE}: ComfyUI does not recognise the UNet in {file!r}; Paint by Example's is a Stable Diffusion 1.x UNet."
        )
    missing = sorted(set(model.model.diffusion_model.state_dict()) - set(weights))
    if missing:
        raise ValueError(
            f"{NODE}: {Path(file).name} is incomplete: {len(missing)} weights of the UNet are missing, such as {missing[0]}. Download it again."
        )
    return model


def _load_encoder(contents: checkpoint.Contents, clip_vision: Any, file: str) -> ExemplarEncoder:
    try:
        config = checkpoint.mapper_config(contents.mapper)
        tower_config: Any = None if clip_vision is not None else checkpoint.tower_config(contents.tower)
    except ValueError as error:
        raise ValueError(f"{NODE}: {file}: {error} Or connect a CLIP ViT-L/14 as clip_vision.") from None
    mapper = networks.load(ExemplarMapper, contents.mapper, config)
    if clip_vision is None:
        tower = networks.load(partial(_make_tower, tower_config), contents.tower)
        return ExemplarEncoder(tower, tower.model, mapper, tower_config["image_size"])
    vision = getattr(clip_vision.model, "vision_model", None)
    embedding = getattr(getattr(vision, "embeddings", None), "class_embedding", None)
    width = 0 if embedding is None else embedding.shape[0]
    if width != config.width:
        found = f"has width {width}" if width else "has no class token"
        raise ValueError(
            f"{NODE}: this clip_vision {found}, and the exemplar encoder needs {config.width}. "
            "Connect a CLIP ViT-L/14, or disconnect it to use the tower in the file."
        )
    size = getattr(clip_vision, "image_size", 224)
    mean, std = getattr(clip_vision, "image_mean", MEAN), getattr(clip_vision, "image_std", STD)
    return ExemplarEncoder(clip_vision.patcher, vision, mapper, size, mean, std)


def _make_tower(config: dict[str, Any], operations: Any, dtype: torch.dtype, device: Any) -> torch.nn.Module:
    return comfy.clip_model.CLIPVision(config, dtype, device, operations)


def _check_context(model: Any, encoder: ExemplarEncoder) -> None:
    blocks = hooks.attention_blocks(model.get_model_object("diffusion_model"))
    needed = next(iter(blocks.values())).attn2.to_v.in_features
    found = encoder.mapper.model.config.context
    if needed != found:
        raise ValueError(
            f"{NODE}: the UNet expects tokens of width {needed}, and this encoder makes tokens of width {found}. "
            "Choose the encoder that belongs to this model."
        )
