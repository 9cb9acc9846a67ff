"""A subject model's file, by keys: taken apart when it is whole, explained when it is something else."""

from __future__ import annotations

import pytest
import torch
from pack.py.snf.checkpoint import split_checkpoint
from pack.py.snf.model import Postfuse

WIDTH = 8


def subject_file(width=WIDTH):
    unet = [
        "conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ]  # fmt: skip
    vision = [
        "vision_model.embeddings.class_embedding", "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight", "vision_model.pre_layrnorm.weight",
        "vision_model.post_layernorm.weight", "visual_projection.weight",
        *(f"vision_model.encoder.layers.{n}.{k}" for n in range(3) for k in ("mlp.fc1.weight", "layer_norm1.weight")),
    ]  # fmt: skip
    weights = {f"unet.{key}": torch.zeros(2, width) for key in unet}
    weights |= {f"image_encoder.{key}": torch.zeros(width, 4) for key in vision}
    weights |= {f"postfuse_module.{key}": value for key, value in Postfuse(width).state_dict().items()}
    weights["image_encoder.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    weights["text_encoder.embeddings.position_ids"] = torch.arange(7)[None]
    weights["text_encoder.final_layer_norm.weight"] = torch.ones(width)
    weights["vae.decoder.conv_in.weight"] = torch.ones(1)
    return weights


def without(weights, *prefixes):
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize("width", [8, 16])
def test_the_parts_lose_their_prefixes_and_nothing_else(width):
    weights = subject_file(width)
    found = split_checkpoint(weights)
    assert found.width == width
    assert found.unet["conv_in.weight"] is weights["unet.conv_in.weight"]
    assert len(found.unet) == 5 and len(found.image_encoder) == 12
    assert set(found.vae) == {"decoder.conv_in.weight"}
    Postfuse(width).load_state_dict(found.postfuse, strict=True)


def test_position_ids_are_dropped_everywhere():
    found = split_checkpoint(subject_file())
    assert set(found.text_encoder) == {"final_layer_norm.weight"}
    assert not [key for key in found.image_encoder if "position_ids" in key]


def test_text_encoder_and_vae_may_be_absent():
    found = split_checkpoint(without(subject_file(), "text_encoder.", "vae."))
    assert found.text_encoder == {} and found.vae == {}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_a_training_wraps_around_all_keys_is_taken_off(wrapper):
    found = split_checkpoint({wrapper + key: value for key, value in subject_file().items()})
    assert "conv_in.weight" in found.unet


@pytest.mark.parametrize(
    "weights, says",
    [
        ({}, "contains no weights"),
        ({"model.diffusion_model.out.0.weight": torch.ones(1)}, "ordinary checkpoint.*Load Checkpoint"),
        ({"conv_in.weight": torch.ones(1)}, "only a UNet"),
        ({"unet.a.lora_A.weight": torch.ones(1)}, "is a LoRA"),
        ({"lora_unet_a.lora_up.weight": torch.ones(1)}, "is a LoRA"),
        ({"some.key": torch.ones(1)}, "not a subject model.*some.key"),
        (without(subject_file(), "image_encoder.", "postfuse_module."), "scene model .Face-diffuser TDM.*load the SDM"),
        (without(subject_file(), "postfuse_module."), "lacks the postfuse network"),
        (without(subject_file(), "image_encoder."), "lacks the image encoder"),
        (without(subject_file(), "unet."), "lacks the UNet"),
        ({**subject_file(), "ip_adapter.weight": torch.ones(1)}, "1 unknown weights \\(ip_adapter.weight\\)"),
        (without(subject_file(), "postfuse_module.mlp2.fc1.bias"), "postfuse network in sdm.bin lacks mlp2.fc1.bias"),
        (without(subject_file(), "postfuse_module.layer_norm.weight"), "postfuse network in sdm.bin lacks layer_norm.weight"),
        ({**subject_file(), "postfuse_module.mlp3.bias": torch.ones(1)}, "has the unknown mlp3.bias"),
        ({**subject_file(), "postfuse_module.mlp1.fc1.bias": torch.ones(9)}, r"mlp1.fc1.bias is \[9\], it must be \[8\]"),
        (without(subject_file(), "unet.conv_out"), "UNet in sdm.bin lacks conv_out.weight"),
        ({**subject_file(), "unet.up.attn2.to_k.weight": torch.ones(2, 1024)}, "embeddings of width 1024"),
        (without(subject_file(), "image_encoder.vision_model.encoder.layers.1.mlp"), "lacks .*layers.1.mlp.fc1.weight"),
        (without(subject_file(), "image_encoder.vision_model.encoder.layers.1."), "lacks .*layers.1.layer_norm1.weight"),
        (without(subject_file(), "image_encoder.vision_model.encoder"), r"lacks .*layers.0.\*"),
        (without(subject_file(), "image_encoder.visual_projection"), "lacks visual_projection.weight"),
        ({**subject_file(), "image_encoder.visual_projection.weight": torch.ones(9, 4)}, "embeddings of width 9"),
    ],
)  # fmt: skip
def test_another_file_is_named_for_what_it_is(weights, says):
    with pytest.raises(ValueError, match=says) as error:
        split_checkpoint(weights, "sdm.bin")
    assert "sdm.bin" in str(error.value)
