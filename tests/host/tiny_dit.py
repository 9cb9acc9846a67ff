"""Tiny random transformer models of the host's own classes, sampled by the host as any MODEL is."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.supported_models as supported
import torch

TEXT_WIDTH = 32
POOLED_WIDTH = 32


@dataclass(frozen=True)
class Family:
    """How to build one.

    Args:
        config: name of the host's class in `supported_models`. unet: its network's arguments, from a function because some hosts differ.
        frames: the latent has a frame axis. channels: of the latent. text_width: of its CONDITIONING.
    """

    config: str
    unet: Callable[[], dict[str, Any]]
    frames: bool = False
    channels: int = 16
    text_width: int = TEXT_WIDTH
    patch: int = 2
    has_references: bool = False
    scale: float = 0.5  # of the random weight matrices: texts count enough to be seen, and rounding does not grow
    steps: int = 2  # of sampling; a schedule from a sigma of 80 loses digits in long steps
    text_step: int = 1  # texts of this many tokens, or a multiple, are not padded
    conditions: dict[str, Any] = field(default_factory=dict)


def _flux(**more: Any) -> dict[str, Any]:
    import comfy.ldm.flux.model as flux

    base = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED_WIDTH, "context_in_dim": TEXT_WIDTH, "hidden_size": 64, "mlp_ratio": 2.0,
        "num_heads": 4, "depth": 1, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True,
        "guidance_embed": False, "image_model": "flux", "txt_ids_dims": [],
    } | more  # fmt: skip
    known = flux.FluxParams.__dataclass_fields__
    return {name: value for name, value in base.items() if name in known or name == "image_model"}


def _flux2() -> dict[str, Any]:
    return _flux(
        in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[4, 4, 4, 4], theta=2000, patch_size=1, qkv_bias=False,
        global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0, txt_ids_dims=[3],
        image_model="flux2",
    )  # fmt: skip


def _chroma() -> dict[str, Any]:
    import comfy.ldm.chroma.model as chroma

    base = {
        "in_channels": 16, "out_channels": 16, "context_in_dim": TEXT_WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 1,
        "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": 64,
        "hidden_dim": 64, "n_layers": 2, "txt_ids_dims": [], "vec_in_dim": None,
    }  # fmt: skip
    if "params.in_channels * params.patch_size" not in inspect.getsource(chroma.Chroma.__init__):
        base |= {"in_channels": 64, "out_channels": 64}
    known = chroma.ChromaParams.__dataclass_fields__
    return {name: value for name, value in base.items() if name in known} | {"image_model": "chroma"}


def _sd3() -> dict[str, Any]:
    return {
        "input_size": None, "pos_embed_max_size": 24, "patch_size": 2, "in_channels": 16, "depth": 2,
        "adm_in_channels": POOLED_WIDTH, "qk_norm": "rms", "x_block_self_attn_layers": [0], "out_channels": 16, "num_patches": 576,
        "context_size": TEXT_WIDTH,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": TEXT_WIDTH, "out_features": 128}},
    }  # fmt: skip


def _qwen() -> dict[str, Any]:
    return {
        "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 4, "joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip


def _lumina(**more: Any) -> dict[str, Any]:
    return {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": TEXT_WIDTH, "n_layers": 2, "n_heads": 4,
        "n_kv_heads": 2, "qk_norm": True, "axes_dims": [4, 6, 6], "axes_lens": [512, 64, 64], "rope_theta": 256.0, "n_refiner_layers": 1,
        "multiple_of": 32, "norm_eps": 1e-5,
    } | more  # fmt: skip


def _z_image(**more: Any) -> dict[str, Any]:
    shape = {"dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True, "time_scale": 1000.0}
    return _lumina(**shape, **({"pad_tokens_multiple": 32} | more))


def _cosmos() -> dict[str, Any]:
    return {
        "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
        "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True, "model_channels": 96, "num_blocks": 2, "num_heads": 3,
        "mlp_ratio": 2.0, "crossattn_emb_channels": TEXT_WIDTH, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16,
    }  # fmt: skip


def _anima() -> dict[str, Any]:
    return _cosmos() | {"image_model": "anima", "crossattn_emb_channels": 1024}


def _wan() -> dict[str, Any]:
    return {
        "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 7, "in_dim": 16, "dim": 64, "ffn_dim": 128,
        "freq_dim": 32, "text_dim": TEXT_WIDTH, "out_dim": 16, "num_heads": 4, "num_layers": 2, "window_size": (-1, -1), "qk_norm": True,
        "cross_attn_norm": True, "eps": 1e-6,
    }  # fmt: skip


def _krea2() -> dict[str, Any]:
    return {
        "image_model": "krea2", "features": 96, "tdim": 32, "txtdim": 16, "heads": 3, "kvheads": 1, "multiplier": 2, "layers": 2, "patch": 2,
        "channels": 16, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2, "default_ref_method": "index",
    }  # fmt: skip


FAMILIES: dict[str, Family] = {
    "flux": Family("Flux", _flux, has_references=True),
    "flux2": Family("Flux2", _flux2, channels=128, patch=1, has_references=True, scale=1.0),
    "chroma": Family("Chroma", _chroma),
    "sd3": Family("SD3", _sd3, scale=1.0),
    "qwen": Family("QwenImage", _qwen, frames=True, has_references=True),
    "lumina2": Family("Lumina2", _lumina),
    "z_image": Family("ZImage", _z_image, text_step=32),
    "cosmos": Family("CosmosT2IPredict2", _cosmos, frames=True, steps=4),
    "anima": Family("Anima", _anima, frames=True, text_width=1024),
    "wan": Family("WAN21_T2V", _wan, frames=True),
    "krea2": Family("Krea2", _krea2, frames=True, has_references=True),
}
AVAILABLE = [name for name, family in FAMILIES.items() if hasattr(supported, family.config)]


def tiny_dit(name: str, seed: int = 0, **unet: Any) -> Any:
    """A MODEL with random weights; `unet` replaces arguments of its network."""
    family = FAMILIES[name]
    shape = family.unet() | unet
    config = getattr(supported, family.config)(dict(shape))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    randomize(model.diffusion_model.float(), seed, family.scale)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def randomize(network: torch.nn.Module, seed: int, scale: float = 0.5) -> None:
    """Weights that keep the numbers of a forward pass near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            if parameter.ndim > 1 and parameter[0].numel() > 1:
                parameter.copy_(draw(parameter) * scale * parameter[0].numel() ** -0.5)
            elif ("norm" in name or "scale" in name) and not name.endswith("bias"):
                parameter.copy_(1 + 0.1 * draw(parameter))
            else:
                parameter.copy_(0.1 * draw(parameter))
        for name, buffer in sorted(network.named_buffers()):
            if buffer.is_floating_point() and name.endswith("pos_embed"):
                buffer.copy_(0.1 * draw(buffer))


def conditioning(name: str, seed: int, tokens: int | None = None, **more: Any) -> Any:
    """CONDITIONING as the family's text encoder gives it, of random numbers."""
    family = FAMILIES[name]
    length = (9 if family.text_step == 1 else 20) if tokens is None else tokens
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, length, family.text_width, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, POOLED_WIDTH, generator=torch.Generator().manual_seed(99)), **more}]]


def latent_shape(name: str, size: tuple[int, int] = (16, 16), batch: int = 1) -> tuple[int, ...]:
    family = FAMILIES[name]
    return (batch, family.channels, *((1,) if family.frames else ()), *size)


def sample(
    model: Any,
    name: str,
    positive: Any,
    negative: Any = None,
    *,
    steps: int = 0,
    cfg: float = 4.0,
    size: tuple[int, int] = (16, 16),
    batch: int = 1,
    seed: int = 5,
    **more: Any,
) -> torch.Tensor:
    """The host's own sampling, as KSampler runs it."""
    negative = conditioning(name, 1000) if negative is None else negative
    shape = latent_shape(name, size, batch)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    steps = steps or FAMILIES[name].steps
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros(shape), disable_pbar=True, seed=1, **more
        )


class TinyTextEncoder:
    """The calls of the host's CLIP that encode a text as CONDITIONING; equal texts give equal numbers."""

    def __init__(self, name: str):
        self.name = name

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        return conditioning(self.name, zlib.crc32(tokens.encode()), 4 + len(tokens.split()))


def prompt(name: str, text: str, **more: Any) -> Any:
    """What CLIP Text Encode gives for a text."""
    [[tokens, values]] = TinyTextEncoder(name).encode_from_tokens_scheduled(text)
    return [[tokens, {**values, **more}]]
