"""Training a subject model: the host's UNet with gradients, and what its text attention multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...py.host import hooks, playground
from ...py.snf.model import Postfuse
from ...py.snf.training import Attended, Predict
from .recipes import image_encoder, subject


@contextmanager
def text_attention(unet: Any) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """While inside: the queries, keys and number of heads of every text attention that runs, in order."""
    found: list[tuple[Tensor, Tensor, int]] = []
    handles = []
    for block in hooks.attention_blocks(unet).values():
        queries: list[Tensor] = []

        def keep(module: Any, inputs: Any, out: Tensor, queries: list = queries) -> None:
            queries.append(out)

        def pair(module: Any, inputs: Any, out: Tensor, queries: list = queries, heads: int = block.attn2.heads) -> None:
            found.append((queries.pop(), out, heads))

        handles += [block.attn2.to_q.register_forward_hook(keep), block.attn2.to_k.register_forward_hook(pair)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def predict_with(unet: Any) -> Predict:
    """The UNet as a training step asks it. Layers of full size are left out: they decide details, not who stands where."""

    def predict(x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Attended]:
        with text_attention(unet) as pairs:
            eps = unet(x, t, context=context)
        h, w = x.shape[-2:]
        attended = []
        for q, k, heads in pairs:
            level = round((h * w / q.shape[1]) ** 0.5)
            grid = -(-h // level), -(-w // level)
            if level > 1 and grid[0] * grid[1] == q.shape[1]:
                attended.append((q, k, heads, grid))
        return eps, attended

    return predict


def _with_weights(model: nn.Module, name: str) -> nn.Module:
    state = {key: value.float() for key, value in playground.read_weights(name).items()}
    model.load_state_dict(state, strict=name != "text_encoder")  # that file may hold the projection for the image encoder too
    return model


def train_only(model: nn.Module, wanted: Callable[[str], bool]) -> nn.Module:
    """The same model, of which those parameters learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
    return model


def new_postfuse(width: int) -> Postfuse:
    """A network to begin with: it passes the text on, only normalised."""
    postfuse = Postfuse(width)
    for mlp in (postfuse.mlp1, postfuse.mlp2):
        nn.init.zeros_(mlp.fc2.weight)
        nn.init.zeros_(mlp.fc2.bias)
    return postfuse


def playground_networks(encode: Callable[[Tensor], Tensor]) -> subject.Networks:
    """The playground's models ready to become a subject model; `encode` is its VAE."""
    config = image_encoder.CONFIG
    layers, left = config["num_hidden_layers"], subject.TRAINED_LAYERS
    unet = train_only(_with_weights(playground.new_unet(), "unet"), subject.trained)
    tower = train_only(
        _with_weights(playground.new_image_encoder(config), "image_encoder"),
        lambda name: subject.trained_in_tower(name, layers),
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
        predict=predict_with(unet),
    )
