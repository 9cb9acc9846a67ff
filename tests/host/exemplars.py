"""A tiny Paint by Example of diffusers' own classes with random weights, and the same weights as the published checkpoint has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PaintByExamplePipeline, UNet2DConditionModel
from pack.py.host.paint_by_example.loader import rename_unet
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig

#: Its module has moved between versions; the pipeline's has it always.
PaintByExampleImageEncoder = sys.modules[PaintByExamplePipeline.__module__].PaintByExampleImageEncoder
SIDE = 32  # of the pictures that the tower reads


def pipeline(seed: int = 0, widths: tuple[int, ...] = (320, 320), depth: int = 1) -> PaintByExamplePipeline:
    """The host knows a Stable Diffusion 1.x UNet by 320 channels and a context of 768, at any depth; everything else is tiny.

    Widths 320 640 1280 1280 and depth 2 are Stable Diffusion's.
    """
    torch.manual_seed(seed)
    attended = len(widths) - 1
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        layers_per_block=depth,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=9,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    encoder = PaintByExampleImageEncoder(config, proj_size=768).eval()
    with torch.no_grad():
        for _name, parameter in encoder.named_parameters():  # a random tower must tell pictures apart
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            latent_channels=4,
        )
        # The published code draws from the posterior; without spread that is its middle, which the host takes.
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(-60.0)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    found = PaintByExamplePipeline(vae.eval(), encoder, unet.eval(), scheduler, None, pixels, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


def loaded(folder: Path) -> PaintByExamplePipeline:
    """A saved pipeline, part by part: newer versions of diffusers no longer find the encoder's class by the name that they saved."""
    found = PaintByExamplePipeline(
        AutoencoderKL.from_pretrained(folder / "vae"),
        PaintByExampleImageEncoder.from_pretrained(folder / "image_encoder"),
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        None,
        CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
        requires_safety_checker=False,
    )
    found.set_progress_bar_config(disable=True)
    return found


class DiffusersVAE:
    """The two calls of the host's VAE, on diffusers' tiny one."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.vae.encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist.mode()

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return (self.vae.decode(latent).sample.movedim(1, -1) / 2 + 0.5).clamp(0, 1)


def published(pipe: PaintByExamplePipeline) -> dict[str, torch.Tensor]:
    """The weights of a pipeline under the names of `model.ckpt`, without the VAE; the q and k rows of the mapper are there too."""
    unet = pipe.unet.state_dict()
    state = {f"model.diffusion_model.{name}": weight for name, weight in rename_unet(unet).items()}
    assert len(state) == len(unet)
    encoder = pipe.image_encoder.state_dict()
    blocks = {
        "norm1": "ln_1",
        "norm3": "ln_2",
        "attn1.to_out.0": "attn.c_proj",
        "ff.net.0.proj": "mlp.c_fc",
        "ff.net.2": "mlp.c_proj",
    }
    for name, weight in encoder.items():
        if name.startswith("model."):
            state[f"cond_stage_model.transformer.vision_model.{name.removeprefix('model.').removeprefix('vision_model.')}"] = (
                weight
            )
        elif name.startswith("mapper.blocks."):
            number, rest = name.removeprefix("mapper.blocks.").split(".", 1)
            layer, kind = rest.rsplit(".", 1)
            prefix = f"cond_stage_model.mapper.resblocks.{number}."
            if layer == "attn1.to_q":
                rows = [encoder[f"mapper.blocks.{number}.attn1.to_{which}.{kind}"] for which in "qkv"]
                state[f"{prefix}attn.c_qkv.{kind}"] = torch.cat(rows)
            elif layer in blocks:
                state[f"{prefix}{blocks[layer]}.{kind}"] = weight
    for theirs, ours in (("final_layer_norm", "cond_stage_model.final_ln"), ("proj_out", "proj_out")):
        state |= {f"{ours}.{kind}": encoder[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    state["learnable_vector"] = encoder["uncond_vector"]
    state["betas"] = torch.zeros(1000)
    return state


def write(pipe: PaintByExamplePipeline, folder) -> None:
    """`published.safetensors`, `published.ckpt` with an optimizer's state, and a diffusers folder, in models/paint_by_example."""
    state = {name: weight.contiguous().clone() for name, weight in published(pipe).items()}
    save_file(state, folder / "published.safetensors")
    torch.save(
        {"state_dict": state, "epoch": 40, "optimizer_states": [{"state": {0: torch.zeros(1000)}}]}, folder / "published.ckpt"
    )
    (folder / "folder" / "unet").mkdir(parents=True)
    (folder / "folder" / "image_encoder").mkdir()
    torch.save(pipe.unet.state_dict(), folder / "folder" / "unet" / "diffusion_pytorch_model.bin")
    encoder = dict(pipe.image_encoder.state_dict().items())
    torch.save(encoder, folder / "folder" / "image_encoder" / "pytorch_model.bin")
