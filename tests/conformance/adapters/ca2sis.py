"""CA2-SIS: the eight recorded cases of part A, section 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from ....py.ca2sis import attention, checkpoint, codes
from ....py.ca2sis.encoder import SCALES, masked_mean
from ....py.ca2sis.model import Generator
from ..registry import register

TECHNIQUE = "CA2-SIS"


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The published names and shapes, from the recorded configuration."""
    own = checkpoint.Config(
        classes=config["classes"],
        mask_channels=config["mask_channels"],
        style_dim=config["style_dim"],
        width=config["ngf"],
        mask_size=(config["mask_embed_size"],) * 2,
        noise_dim=config["noise_dim"],
        tanh=config["final_activation"] == "tanh",
    )
    return checkpoint.shapes(own)


def generator(weights: dict[str, Tensor]) -> Generator:
    """Through the loader, so that what is inferred is tested with what is computed."""
    return checkpoint.prepare(weights).build()


def image(inputs: dict[str, Tensor]) -> Tensor:
    return F.interpolate(inputs["image64"], size=(256, 256), mode="bilinear", align_corners=False)


def mask(inputs: dict[str, Tensor]) -> Tensor:
    return codes.one_hot(repeat(inputs["labels64"], "b h w -> b (h s) (w t)", s=4, t=4), 19)


def picture(name: str, x: Tensor) -> dict[str, Tensor]:
    """An image in the parts that are recorded of it."""
    double = x.double().flatten(2)
    return {
        f"{name}.strided": x[:, :, ::4, ::4],
        f"{name}.crop": x[:, :, 96:160, 100:164],
        f"{name}.mean": double.mean(dim=-1),
        f"{name}.std": double.std(dim=-1, unbiased=False),
    }


def style_of(model: Generator, inputs: dict[str, Tensor]) -> codes.Style:
    m = mask(inputs)
    return codes.Style(model.encode_style(image(inputs), m), codes.present_classes(m), codes.CELEBAMASK_HQ)


@register(TECHNIQUE, "style", shapes=shapes)
def style(weights, inputs, config):
    return {"S": style_of(generator(weights), inputs).codes}


@register(TECHNIQUE, "shape", shapes=shapes)
def shape(weights, inputs, config):
    model = generator(weights)
    return {"z": model.encode_shape(mask(inputs)), "z_fine": model.encode_shape(codes.one_hot(inputs["labels256"], 19))}


@register(TECHNIQUE, "decode", shapes=shapes)
def decode(weights, inputs, config):
    linear = generator(weights).linear(inputs["z"], inputs["S"])
    return {**picture("image", linear.tanh()), **picture("linear", linear)}


@register(TECHNIQUE, "reconstruct", shapes=shapes)
def reconstruct(weights, inputs, config):
    model, m = generator(weights), mask(inputs)
    z, s = model.encode_shape(m), style_of(model, inputs).codes
    logits: list[Tensor] = []
    drawn = model.decode(z, s, lambda q, k, heads, grid: logits.append(attention.mean_logits(q, k, heads, grid)))
    return {**picture("image", drawn), "att_loss": attention.attention_loss(logits, m)[None]}


@register(TECHNIQUE, "style_swap", shapes=shapes)
def style_swap(weights, inputs, config):
    model = generator(weights)
    z, own = model.encode_shape(mask(inputs)), style_of(model, inputs)
    other = own.rows([1, 0])
    part = codes.mix_styles(own, other, inputs["classes"].tolist())
    return {**picture("part", model.decode(z, part.codes)), **picture("full", model.decode(z, other.codes))}


@register(TECHNIQUE, "shape_swap", shapes=shapes)
def shape_swap(weights, inputs, config):
    model, m = generator(weights), mask(inputs)
    swapped = codes.edit_shape(m, m.flip(0), [*inputs["classes"].tolist(), 14])
    drawn = model.decode(model.encode_shape(swapped), style_of(model, inputs).codes)
    return {
        **picture("image", drawn),
        "mask_area": swapped.sum(dim=(-2, -1)),
        "coverage64": swapped.sum(dim=1).long()[:, ::4, ::4],
    }


@register(TECHNIQUE, "absent_class", shapes=shapes)
def absent_class(weights, inputs, config):
    found = style_of(generator(weights), inputs)
    m = mask(inputs)
    # A class is there at a scale if the encoder's own mean of ones over its pixels is 1, not 0.
    ones = (torch.ones(*m.shape[:2], 1, *(side >> (SCALES - i) for side in m.shape[2:])) for i in range(SCALES))
    scales = torch.stack([masked_mean(x, m)[0, :, 0] > 0.5 for x in ones])
    return {"S": found.codes, "present": found.present, "present_at_scale": scales}


@register(TECHNIQUE, "noise_style", shapes=shapes)
def noise_style(weights, inputs, config):
    model, m = generator(weights), mask(inputs)
    s = model.sample_style(inputs["noise"], codes.present_classes(m))
    return {"S": s, **picture("image", model.decode(model.encode_shape(m), s))}
