"""Where a MODEL can be hooked: its attention layers by the host's own keys, and the one call that installs a technique there."""

from __future__ import annotations

from typing import Any

from .run import current_run, install_run, running_network
from .slots import AttentionPatch, replace_attention

LayerKey = tuple[str, int, int]  # ("input" | "middle" | "output", block number, transformer block index)


def attention_blocks(unet: Any) -> dict[LayerKey, Any]:
    """The transformer blocks of a UNet by the key under which the host looks up their patches; {} for a model without a UNet.

    The middle block is ("middle", 0, i). Blocks have `attn1` (self) and `attn2` (text, None in some video blocks).
    """
    if not hasattr(unet, "input_blocks"):
        return {}
    middle = [] if unet.middle_block is None else [unet.middle_block]
    found: dict[LayerKey, Any] = {}
    for name, blocks in (("input", unet.input_blocks), ("middle", middle), ("output", unet.output_blocks)):
        for number, block in enumerate(blocks):
            for layer in block:
                for index, transformer in enumerate(getattr(layer, "transformer_blocks", ())):
                    found[name, number, index] = transformer
    return found


def has_unet(model: Any) -> bool:
    """Whether this MODEL is a UNet, whose attention layers can be replaced one by one. Transformer models are handled in `joint`."""
    return bool(attention_blocks(model.get_model_object("diffusion_model")))


def text_layers(model: Any, node: str) -> list[LayerKey]:
    """Keys of the text cross-attention layers of this MODEL. Raises ValueError, naming the model, if it has none (Flux and similar)."""
    blocks = attention_blocks(model.get_model_object("diffusion_model"))
    keys = [key for key, block in blocks.items() if getattr(block, "attn2", None) is not None]
    if not keys:
        raise ValueError(
            f"{node}: this MODEL is {model_name(model)}, which has no text cross-attention layers. "
            "Load a checkpoint with a Stable Diffusion 1.x, 2.x or SDXL UNet."
        )
    return keys


def text_width(model: Any, keys: list[LayerKey]) -> int | None:
    """Channels of the text embeddings of these layers of a MODEL; None if they are unknown (a layer of another pack)."""
    blocks = attention_blocks(model.get_model_object("diffusion_model"))
    return getattr(blocks[keys[0]].attn2.to_k, "in_features", None)


def model_name(model: Any) -> str:
    """Name of a MODEL for messages: the host's own class for it, such as SD15 or SDXL or Flux."""
    return type(getattr(model.model, "model_config", model.model)).__name__


def install(
    model: Any, techniques: dict[str, AttentionPatch], keys: list[LayerKey], instead_of: AttentionPatch | None = None
) -> Any:
    """A clone of this MODEL with one technique per kind of attention, {"attn1" | "attn2": technique}, in these layers.

    `instead_of` is a technique of an earlier node that the new one replaces in the slots.
    """
    clone = model.clone()
    install_run(clone)
    for name, technique in techniques.items():
        replace_attention(clone, name, technique, keys, instead_of)
    return clone


def install_list_patch(model: Any, name: str, patch: Any) -> Any:
    """A clone of this MODEL with a patch of the list kind ("attn1_output_patch", "input_block_patch" ...), which all compose."""
    clone = model.clone()
    install_run(clone)
    clone.set_model_patch(patch, name)
    return clone


def running_block(options: dict) -> Any:
    """The transformer block that is calling, of the network that is really running. None outside of a model call."""
    unet, run = running_network(options), current_run(options)
    if unet is None and run is not None:
        # A pack that replaces the UNet's forward skips the host's wrappers, and with them the name of the network.
        unet = run.patcher.get_model_object("diffusion_model")
    if unet is None or options.get("block") is None:
        return None
    blocks = attention_blocks(unet) if run is None else run.get_or_make(("blocks", unet), lambda: attention_blocks(unet))
    return blocks.get(layer_key(options))


def layer_key(options: dict) -> LayerKey:
    """The key of the calling layer."""
    name, number = options["block"][:2]
    return name, number, options.get("block_index", 0)
