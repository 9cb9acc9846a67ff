"""The playground's models in the host's own architectures: a UNet, a text encoder, a VAE and an image encoder of the usual shapes.

Each is small enough for a CPU and ordinary in every other way: the host's KSampler, CLIPTextEncode, VAEDecode and CLIPVisionEncode work on
them, LoRAs and patches find the layers they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor, nn

from ..ifadapter.instances import Instance, Instances
from ..playground import vocabulary
from ..playground.scenes import HELD_OUT, draw_scene
from ..semantic.palettes import named_palette
from ..semantic.semantic_map import SemanticMap
from . import notices

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "playground"
IFADAPTER = ASSETS / "ifadapter" / "playground_ifadapter.safetensors"  # in a folder that Load IFAdapter looks into
CONTEXT_DIM = 128
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": CONTEXT_DIM,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
TEXT_CONFIG = {
    "num_hidden_layers": 4,
    "hidden_size": CONTEXT_DIM,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": vocabulary.LENGTH,
    "eos_token_id": vocabulary.END,
}
#: The VAE's latents have unit deviation; divided by this they look like Stable Diffusion's, whose latent format multiplies by it again.
LATENT_SCALE = comfy.latent_formats.SD15().scale_factor


class PlaygroundModelConfig(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 with 64 channels, three levels and a context of 128."""

    unet_config = UNET_CONFIG
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


class PlaygroundTextModel(comfy.sd1_clip.SDClipModel):
    """A CLIP text encoder of four layers over the words of the drawn world."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 (the host's own signature)
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(TEXT_CONFIG),
            special_tokens={"start": vocabulary.START, "end": vocabulary.END, "pad": vocabulary.END},
            return_projected_pooled=False,
            model_options=model_options,
        )
        # The host's embedding always has CLIP's 49,408 rows; a hundred words need a hundred.
        words = self.operations.Embedding(vocabulary.COUNT, CONTEXT_DIM, dtype=dtype, device=device)
        self.transformer.set_input_embeddings(words)


class PlaygroundClipModel(comfy.sd1_clip.SD1ClipModel):
    """What the host calls the cond stage model; its one encoder is "l", as in Stable Diffusion 1.5."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_name="l", clip_model=PlaygroundTextModel)


class PlaygroundTrimmedClipModel(PlaygroundClipModel):
    """The same without the filling behind a text, as the text encoders of transformer bases give it."""

    def encode_token_weights(self, token_weight_pairs):
        encoded = super().encode_token_weights(token_weight_pairs)
        chunks = token_weight_pairs["l"]
        ids = [entry[0] for entry in chunks[0]]
        if len(chunks) > 1 or vocabulary.END not in ids:  # a prompt of several chunks stays whole
            return encoded
        return (encoded[0][:, : ids.index(vocabulary.END) + 1], *encoded[1:])


class PlaygroundWords(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer (prompt weights, chunks of 77) over whole words."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006
        super().__init__(
            tokenizer_path="playground",
            embedding_directory=embedding_directory,
            embedding_size=CONTEXT_DIM,
            tokenizer_class=vocabulary.WordTokenizer,
            tokenizer_data=tokenizer_data,
        )

    def tokenize_with_weights(self, text: str, *args, **kwargs):
        unknown = vocabulary.unknown_words(text)
        if unknown:
            notices.warn_user(
                f"Playground text encoder: it does not know {', '.join(ascii(word) for word in unknown[:20])} and reads each as one "
                f"unknown word. It knows: {' '.join(vocabulary.WORDS)}."
            )
        return super().tokenize_with_weights(text, *args, **kwargs)


class PlaygroundTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The tokenizer of encoder "l"."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data, clip_name="l", tokenizer=PlaygroundWords
        )


class _ClipTarget:
    params: dict = {}
    clip = PlaygroundClipModel
    tokenizer = PlaygroundTokenizer


class _TrimmedClipTarget(_ClipTarget):
    clip = PlaygroundTrimmedClipModel


def read_weights(name: str) -> dict[str, Tensor]:
    """A shipped file by its name without ending. Raises FileNotFoundError, saying how to get it."""
    path = ASSETS / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"Playground models: the file {path.name} is missing from the pack's folder assets/playground. "
            "Install the pack again, or make the file with: python3 dev.py playground train"
        )
    return comfy.utils.load_torch_file(str(path), safe_load=True)


def new_unet(channels: int = 4) -> nn.Module:
    """The bare UNet in float32 with torch's initialisation, to be trained; it reads so many channels."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {**UNET_CONFIG, **PlaygroundModelConfig.unet_extra_config, "in_channels": channels}
    return _initialise(UNetModel(**config, dtype=torch.float32, operations=comfy.ops.disable_weight_init))


def new_text_model() -> nn.Module:
    """The bare text encoder (`CLIPTextModel`) in float32, to be trained."""
    model = PlaygroundTextModel(
        dtype=torch.float32, model_options={"custom_operations": comfy.ops.disable_weight_init}
    ).transformer
    return _initialise(model.requires_grad_(True))


def new_autoencoder() -> nn.Module:
    """The bare TAESD autoencoder in float32, to be trained."""
    from comfy.taesd.taesd import TAESD

    model = _initialise(TAESD())
    model.vae_scale.requires_grad_(False)
    model.vae_shift.requires_grad_(False)
    return model


def new_image_encoder(config: dict) -> nn.Module:
    """The bare CLIP vision tower in float32, to be trained."""
    from comfy.clip_model import CLIPVisionModelProjection

    return _initialise(CLIPVisionModelProjection(config, torch.float32, None, comfy.ops.disable_weight_init))


@torch.no_grad()
def _initialise(model: nn.Module) -> nn.Module:
    """Torch's own initialisation, which the host's layers skip because they expect a checkpoint."""
    bases: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
    for module in model.modules():
        for base in bases:
            if isinstance(module, base):
                base.reset_parameters(module)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for parameter in (p for n, p in model.named_parameters() if n.endswith("class_embedding")):
        nn.init.normal_(parameter, std=0.02)
    # Residual branches start at zero, as in every diffusion UNet: the network begins as the identity.
    for name, module in model.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def text_features(model: Any, tokens: Tensor) -> Tensor:
    """The last hidden states [b, 77, 128] of token numbers [b, 77], as the host computes them, with gradients.

    The host's layers add in place, which a gradient cannot follow; this runs the same layers without.
    """
    text = model.text_model
    x = text.embeddings.token_embedding(tokens) + text.embeddings.position_embedding.weight
    causal = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype, device=x.device).triu_(1)
    return text.final_layer_norm(_run_layers(text.encoder.layers, x, causal))


def pooled_text(model: Any, tokens: Tensor) -> Tensor:
    """The last hidden state at the first end token, [b, 128], before the projection."""
    end = (tokens == vocabulary.END).int().argmax(dim=-1)
    return text_features(model, tokens)[torch.arange(len(tokens)), end]


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """The image embeddings [b, 128] of normalised pixels [b, 3, 128, 128], as the host computes them, with gradients."""
    return image_embeds(model, image_states(model, pixels))


def image_states(model: Any, pixels: Tensor, leave: int = 0) -> Tensor:
    """The hidden states [b, 65, 192] of normalised pixels before the last `leave` layers of the tower."""
    vision = model.vision_model
    layers = vision.encoder.layers
    return _run_layers(layers[: len(layers) - leave], vision.pre_layrnorm(vision.embeddings(pixels)), None)


def image_embeds(model: Any, states: Tensor, left: int = 0) -> Tensor:
    """The image embeddings [b, 128] of hidden states that still have the last `left` layers before them."""
    vision = model.vision_model
    layers = vision.encoder.layers
    x = _run_layers(layers[len(layers) - left :], states, None)
    return model.visual_projection(vision.post_layernorm(x[:, 0]))


def _run_layers(layers: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    from comfy.ldm.modules.attention import optimized_attention_for_device

    attention = optimized_attention_for_device(x.device, mask=mask is not None, small_input=True)
    for layer in layers:
        x = x + layer.self_attn(layer.layer_norm1(x), None if mask is None else mask.to(x.dtype), attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def load_model(changes: Mapping[str, Tensor] | None = None) -> comfy.model_patcher.ModelPatcher:
    """The base UNet as a MODEL, with some of its weights replaced by `changes`; its first convolution may read more channels."""
    sd = read_weights("unet") | dict(changes or {})
    config = PlaygroundModelConfig(UNET_CONFIG | {"in_channels": sd["input_blocks.0.0.weight"].shape[1]})
    return load_base(config, sd)


def load_base(config: Any, sd: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """Weights as a MODEL of a host configuration, in the type and on the devices that the host chooses for its own models."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    parameters = comfy.utils.calculate_parameters(sd)
    dtype = comfy.model_management.unet_dtype(model_params=parameters, supported_dtypes=config.supported_inference_dtypes)
    manual_cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast)
    model = config.get_model(sd, "")
    model.load_model_weights(sd, "")
    # The patcher class that the host itself would take: the dynamic one where it has one.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model.to(offload_device), load_device=load_device, offload_device=offload_device)


def load_clip(trimmed: bool = False) -> comfy.sd.CLIP:
    """The text encoder as a CLIP."""
    import folder_paths

    sd = read_weights("text_encoder")
    directories = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(
        _TrimmedClipTarget() if trimmed else _ClipTarget(),
        embedding_directory=directories,
        parameters=comfy.utils.calculate_parameters(sd),
    )
    missing, _ = clip.load_sd(sd)
    if missing:
        raise ValueError(f"Playground models: text_encoder.safetensors lacks {missing[0]!r}. Install the pack again.")
    return clip


def load_vae() -> comfy.sd.VAE:
    """The autoencoder as a VAE; its latents look like Stable Diffusion 1.5's."""
    sd = read_weights("vae")
    sd["vae_scale"] = torch.tensor(LATENT_SCALE)
    sd["vae_shift"] = torch.tensor(0.0)
    return comfy.sd.VAE(sd=sd)


def load_clip_vision(changes: Mapping[str, Tensor] | None = None) -> comfy.clip_vision.ClipVisionModel:
    """The image encoder as a CLIP_VISION, with some of its weights replaced by `changes`."""
    model = comfy.clip_vision.ClipVisionModel(str(ASSETS / "image_encoder.json"))
    model.load_sd(read_weights("image_encoder") | dict(changes or {}))
    return model


def scene_parts(kind: str, seed: int, size: int, held_out: bool) -> tuple[Tensor, SemanticMap, Instances, str, Tensor]:
    """A drawn scene as the values of a graph: IMAGE [1, size, size, 3], semantic map, instances, caption, MASK [i, size, size].

    A scene without instances has one empty mask.
    """
    scene = draw_scene(kind, seed + (HELD_OUT if held_out else 0), size)
    image = torch.from_numpy(scene.image.astype("float32") / 255)[None]
    labels = SemanticMap(torch.from_numpy(scene.labels)[None], named_palette("playground"))
    instances = Instances(tuple(Instance(i.box, i.phrase) for i in scene.instances))
    numbers = torch.arange(1, max(len(scene.instances), 1) + 1).view(-1, 1, 1)
    masks = (torch.from_numpy(scene.instance_map)[None] == numbers).float()
    return image, labels, instances, scene.caption, masks
