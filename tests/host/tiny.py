"""Tiny random models from the host's own classes: the hook points are the real ones, a sampling step takes milliseconds."""

from __future__ import annotations

import hashlib

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import torch
from pack.py.playground import vocabulary

NEGATIVE = "negative"


class TinySD15(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, "model_channels": 32, "context_dim": 64}
    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}


class TinySDXL(comfy.supported_models.SDXL):
    """Depth above 1, no attention on the first level, width 2048 of the text, pooled vectors: what differs from SD1.5."""

    unet_config = {**comfy.supported_models.SDXL.unet_config, "model_channels": 32, "adm_in_channels": 2816}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}


SHAPES = {
    TinySD15: {
        "transformer_depth": [1, 1, 1],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "num_res_blocks": [1, 1, 1],
    },
    TinySDXL: {
        "transformer_depth": [0, 2, 3],
        "transformer_depth_output": [0, 0, 2, 2, 3, 3],
        "transformer_depth_middle": 3,
        "num_res_blocks": [1, 1, 1],
        "num_classes": "sequential",
    },
}


def tiny_model(config_class=TinySD15, seed: int = 0, prediction: str = "eps", scale: float = 1.0):
    """A MODEL with random weights. `prediction`: eps, v, zsnr (v with zero terminal SNR) or flow. `scale`: of the weight matrices."""
    config = config_class(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "channel_mult": [1, 2, 2],
            "use_spatial_transformer": True,
            "legacy": False,
            "dtype": torch.float32,
            **config_class.unet_config,
            **SHAPES[config_class],
        }
    )
    config.set_inference_dtype(torch.float32, None)
    config.sampling_settings["zsnr"] = prediction == "zsnr"
    kinds = comfy.model_base.ModelType
    kind = {"eps": kinds.EPS, "v": kinds.V_PREDICTION, "zsnr": kinds.V_PREDICTION, "flow": kinds.FLOW}[prediction]
    config.model_type = lambda state_dict, prefix="": kind
    model = config.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.diffusion_model.named_parameters()):
            spread = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            values = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(values * 0.1 + (1.0 if name.endswith("weight") else 0.0) if parameter.ndim == 1 else values * scale)
    device = torch.device("cpu")
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=device, offload_device=device)


class TinyCLIP:
    """The two calls of the host's CLIP that encode a text. Deterministic; 77 tokens for each 75 words begun."""

    def __init__(self, width: int = 64):
        self.width = width
        self.encoded: list[str] = []
        self._texts: dict[str, str] = {}

    def tokenize(self, text):
        words = text.split()
        chunks = [words[first : first + 75] for first in range(0, max(1, len(words)), 75)]
        ids = [[0, *(1 + int.from_bytes(word.encode()[:4], "big") for word in chunk), -1] for chunk in chunks]
        self._texts[str(ids)] = text
        return {"l": [[(number, 1.0) for number in row + [-1] * (77 - len(row))] for row in ids]}

    def encode_from_tokens(self, tokens):
        ids = [[number for number, _ in chunk] for chunk in tokens["l"]]
        text = self._texts[str([row[: row.index(-1) + 1] for row in ids])]
        self.encoded.append(text)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        length = 77 * len(ids)
        return torch.randn(1, length, self.width, generator=torch.Generator().manual_seed(seed))


def text_encoder(layers: int, width: int, seed: int, **more):
    """One CLIP text encoder of the host with random weights; words and special tokens are the playground's."""
    config = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": vocabulary.END,
    }
    special = {"start": vocabulary.START, "end": vocabulary.END, "pad": vocabulary.END}
    made = comfy.sd1_clip.SDClipModel(textmodel_json_config=config, special_tokens=special, dtype=torch.float32, **more)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


class DualText(comfy.sdxl_clip.SDXLClipModel):
    """SDXL's pair of text encoders, 32 and 48 channels wide."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        hidden = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}
        self.clip_l, self.clip_g = text_encoder(6, 32, 1, **hidden), text_encoder(7, 48, 2, **hidden)
        self.dtypes = {torch.float32}


class SingleText(comfy.sd1_clip.SD1ClipModel):
    """Stable Diffusion 1.5's text encoder, 32 channels wide."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        self.clip_name, self.clip = "l", "clip_l"
        self.clip_l = text_encoder(6, 32, 1)
        self.dtypes = {torch.float32}


def _words(width: int):
    return comfy.sd1_clip.SDTokenizer(
        tokenizer_path="tiny", embedding_size=width, tokenizer_class=vocabulary.WordTokenizer, pad_with_end=True
    )


class DualWords(comfy.sdxl_clip.SDXLTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.clip_l, self.clip_g = _words(32), _words(48)


class SingleWords(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.clip_name, self.clip = "l", "clip_l"
        self.clip_l = _words(32)


def tiny_clip(dual: bool):
    """A real CLIP of the host with random weights: SDXL's two encoders or Stable Diffusion 1.5's one."""

    class Target:
        params: dict = {}
        clip = DualText if dual else SingleText
        tokenizer = DualWords if dual else SingleWords

    return comfy.sd.CLIP(Target())


class TinyVAE:
    """The one call of the host's VAE that encodes a picture: means of 8x8 pixels, four channels."""

    def encode(self, pixels):
        h, w = pixels.shape[1:3]
        means = torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), (h // 8, w // 8))
        return torch.cat([means, means[:, :1]], dim=1) * 4 - 2


def picture(h: int = 96, w: int = 128, batch: int = 1, seed: int = 0):
    """IMAGE of blocks of colour."""
    blocks = torch.rand(batch, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(blocks, (h, w)).movedim(1, -1).contiguous()


def street_map(h: int = 64, w: int = 64, batch: int = 1, ground: float = 0.5):
    """EXEMPLARY_SEMANTIC_MAP of sky over road, a house on the left."""
    from pack.py.semantic.palettes import named_palette
    from pack.py.semantic.semantic_map import SemanticMap

    labels = torch.full((batch, h, w), 1, dtype=torch.uint8)
    labels[:, int(h * ground) :] = 3
    labels[:, h // 4 : int(h * ground), : w // 3] = 4
    return SemanticMap(labels, named_palette("playground"))


def text_width(model) -> int:
    return model.model.model_config.unet_config["context_dim"]


def conditioning(model, text: str, **extra):
    """CONDITIONING as CLIPTextEncode gives it."""
    clip = TinyCLIP(text_width(model))
    cond = clip.encode_from_tokens(clip.tokenize(text))
    pooled = torch.randn(1, 1280, generator=torch.Generator().manual_seed(len(text)))
    return [[cond, {"pooled_output": pooled, **extra}]]


def sample(
    model,
    positive=None,
    negative=None,
    *,
    steps=2,
    cfg=5.0,
    size=(16, 16),
    batch=1,
    seed=0,
    sampler="euler",
    scheduler="normal",
    **more,
):
    """The host's own sampling, as KSampler runs it; [b, 4, h, w]."""
    positive = conditioning(model, "a street") if positive is None else positive
    negative = conditioning(model, NEGATIVE) if negative is None else negative
    latent = torch.zeros(batch, 4, *size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, latent, disable_pbar=True, seed=seed, **more
        )
