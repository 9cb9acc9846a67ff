"""The playground's networks for training a subject model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...py.host import playground
from ...py.snf.training import TRAINED_LAYERS, is_trained, is_trained_in_encoder
from ..trainers.snf import new_postfuse, set_trained
from ..training.text_attention import predict_and_record
from .recipes import image_encoder, subject


def _with_weights(model: nn.Module, name: str) -> nn.Module:
    state = {key: value.float() for key, value in playground.read_weights(name).items()}
    model.load_state_dict(state, strict=name != "text_encoder")  # that file may hold the projection for the image encoder too
    return model


def playground_networks(encode: Callable[[Tensor], Tensor]) -> subject.Networks:
    """The playground's models ready to become a subject model; `encode` is its VAE."""
    config = image_encoder.CONFIG
    layers, left = config["num_hidden_layers"], TRAINED_LAYERS
    unet = set_trained(_with_weights(playground.new_unet(), "unet"), is_trained)
    tower = set_trained(
        _with_weights(playground.new_image_encoder(config), "image_encoder"),
        lambda name: is_trained_in_encoder(name, layers),
    )
    text = _with_weights(playground.new_text_model(), "text_encoder").eval().requires_grad_(False)
    return subject.Networks(
        unet=unet,
        tower=tower,
        postfuse=new_postfuse(playground.CONTEXT_DIM),
        encode=encode,
        text=lambda tokens: playground.text_features(text, tokens),
        begin=lambda pixels: playground.image_states(tower, pixels, left),
        end=lambda states: playground.image_embeds(tower, states, left),
        predict=predict_and_record(unet),
    )
