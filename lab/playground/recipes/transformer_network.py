"""The host's `NextDiT` as a function that can be trained and compiled: the same layers and weights, the same result.

The host's own forward pass uses an attention that keeps the whole table of probabilities, and elementwise steps that cost more on a CPU
than the matrix products. Here attention is `scaled_dot_product_attention`, and `torch.compile` joins the elementwise steps.
`tests/host/test_playground_transformer.py` compares both.

Token routing (TREAD, arXiv 2501.04765): in the early part of the training half of the image tokens skip all layers but the first and the
last, which makes a step cheaper and convergence faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def new_network(config: dict[str, Any]) -> nn.Module:
    """The bare network in float32, initialised to the identity: gates and the last layer are zero."""
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT

    network = NextDiT(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("pad_token"):
                parameter.normal_(0, 0.02)
            elif "adaLN_modulation" in name or name.startswith("final_layer"):
                parameter.zero_()
            elif name.startswith("t_embedder"):
                nn.init.normal_(parameter, std=0.02) if parameter.ndim == 2 else parameter.zero_()
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return network


def rotary_table(network: Any, texts: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [texts + rows * columns, 1, d / 2] of the positions that the host gives text and image tokens."""
    position = torch.zeros(texts + rows * columns, 3)
    position[:texts, 0] = torch.arange(texts) + 1.0
    position[texts:, 0] = texts + 1
    position[texts:, 1] = torch.arange(rows).repeat_interleave(columns)
    position[texts:, 2] = torch.arange(columns).repeat(rows)
    theta = network.rope_embedder.theta
    angles = [
        position[:, axis, None].double() * theta ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        for axis, channels in enumerate(network.axes_dims)
    ]
    angle = torch.cat(angles, dim=1)[:, None]
    return angle.cos().float(), angle.sin().float()


def predict(
    network: Any,
    latent: Tensor,
    sigma: Tensor,
    text: Tensor,
    is_text: Tensor,
    rotary: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    kept: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The velocity, noise minus clean latent, as the host's model returns it.

    Args:
        latent: [b, 4, h, w], references below the noisy latent. sigma: [b].
        text: [b, t, c], t a multiple of 32. is_text: [b, t], False where the host would put its padding token.
        rotary: `rotary_table`. bias: [b, 1, l, l] added to the logits, or None.
        kept: indices of the tokens that pass every layer; None for all.
    """
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

    b, _, h, w = latent.shape
    t = text.shape[1]
    cos, sin = rotary
    embedded = timestep_embedding((1 - sigma) * network.time_scale, 256).to(dtype)
    time = _linear(F.silu(_linear(embedded, network.t_embedder.mlp[0])), network.t_embedder.mlp[2])
    text = _linear(_rms_norm(text, network.cap_embedder[0], dtype), network.cap_embedder[1])
    text = torch.where(is_text[..., None], text, network.cap_pad_token.to(dtype))
    x = _linear(latent.permute(0, 2, 3, 1).flatten(1, 2).to(dtype), network.x_embedder)
    for layer in network.context_refiner:
        text = _block(layer, text, (cos[:t], sin[:t]), None, None)
    for layer in network.noise_refiner:
        x = _block(layer, x, (cos[t:], sin[t:]), time, None if bias is None else bias[:, :, t:, t:])
    x = torch.cat((text, x), dim=1)
    first, *middle, last = network.layers
    x = _block(first, x, rotary, time, bias)
    if kept is None:
        for layer in middle:
            x = _block(layer, x, rotary, time, bias)
    else:
        part, part_bias = x[:, kept], None if bias is None else bias[:, :, kept][:, :, :, kept]
        for layer in middle:
            part = _block(layer, part, (cos[kept], sin[kept]), time, part_bias)
        x = x.index_copy(1, kept, part)
    x = _block(last, x, rotary, time, bias)[:, t:]
    scale = _linear(F.silu(time), network.final_layer.adaLN_modulation[1])
    x = F.layer_norm(x.float(), (x.shape[-1],), eps=1e-6).to(dtype) * (1 + scale.unsqueeze(1))
    return -_linear(x, network.final_layer.linear).float().view(b, h, w, -1).permute(0, 3, 1, 2)


def _linear(x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _rms_norm(x: Tensor, layer: Any, dtype: torch.dtype) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + 1e-5) * layer.weight).to(dtype)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """x [b, l, n, d], pairs of neighbouring channels."""
    cos, sin = rotary
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


def _attend(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
    b, length, _ = x.shape
    q, k, v = _linear(x, layer.qkv).view(b, length, 3, layer.n_local_heads, -1).unbind(dim=2)
    q, k = (_rotate(_rms_norm(part, norm, x.dtype), rotary) for part, norm in ((q, layer.q_norm), (k, layer.k_norm)))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return _linear(out.transpose(1, 2).reshape(b, length, -1), layer.out)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    return _linear(F.silu(_linear(x, layer.w1)) * _linear(x, layer.w3), layer.w2)


def _block(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], time: Tensor | None, bias: Tensor | None) -> Tensor:
    scale = gate = scale_mlp = gate_mlp = None
    if time is not None:
        scale, gate, scale_mlp, gate_mlp = _linear(time, layer.adaLN_modulation[0]).unsqueeze(1).chunk(4, dim=-1)

    def branch(y: Tensor, norm: Any, scale: Tensor | None) -> Tensor:
        y = _rms_norm(y, norm, x.dtype)
        return y if scale is None else y * (1 + scale)

    def add(y: Tensor, change: Tensor, norm: Any, gate: Tensor | None) -> Tensor:
        change = _rms_norm(change, norm, x.dtype)
        return y + (change if gate is None else gate.tanh() * change)

    x = add(x, _attend(layer.attention, branch(x, layer.attention_norm1, scale), rotary, bias), layer.attention_norm2, gate)
    return add(x, _feed_forward(layer.feed_forward, branch(x, layer.ffn_norm1, scale_mlp)), layer.ffn_norm2, gate_mlp)
