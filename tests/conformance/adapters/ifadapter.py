"""IFAdapter's recorded cases (vectors/README.md, B 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....py.ifadapter.attention import (
    InstanceRegions,
    compute_gate_logits,
    compute_injection,
    compute_instance_maps,
    compute_slot_weights,
    fuse_instance_maps,
    make_attention,
    project_tokens,
)
from ....py.ifadapter.model import CBAM, Config, IFAdapter, Injection, Layer, PositionNet, Resampler, visible_words
from ..registry import register


def filled(network: nn.Module, weights: dict[str, Tensor], prefix: str = "") -> nn.Module:
    """A network made on the meta device, with the recorded weights as its parameters: the full resampler's 1.7 GB exist once."""
    own = {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval()


def resampler_of(config: dict) -> Resampler:
    return Resampler(
        config["dim"],
        config["depth"],
        config["heads"],
        config["dim_head"],
        config["num_queries"],
        config["ff_mult"],
        in_width=config["phrase_embeddings_dim"],
        out_width=config["output_dim"],
        device="meta",
    )


@register("ifadapter", "ifa_resampler")
def resampler(weights, inputs, config):
    network = filled(resampler_of(config), weights)
    phrases, counts = inputs["phrase_embeds"], inputs["token_counts"]
    return {
        "tokens": network(phrases, counts),
        "tokens_uncond": network(torch.zeros_like(phrases[:1]), torch.zeros_like(counts[:1])),
        "visible_per_layer": visible_words(counts, phrases.shape[2], config["depth"]),
    }


@register("ifadapter", "ifa_position_net")
def position_net(weights, inputs, config):
    network = PositionNet(
        config["out_dim"], frequencies=config["fourier_freqs"], temperature=config["temperature"], device="meta"
    )
    filled(network, weights)
    return {"fourier": network.fourier(inputs["boxes"]), "embedding": network(inputs["boxes"])}


@register("ifadapter", "ifa_token_assembly")
def token_assembly(weights, inputs, config):
    width, position = config["output_dim"], config["pos_net"]
    base = Config((Layer("0", ("middle", 0, 0), 16, 1),), encoders=(("l", width),), dim=8, depth=1, heads=1, dim_head=8)
    network = IFAdapter(base, device="meta")
    # The recorded phrases are narrower than the tokens, which no real adapter has: the two networks are put in from outside.
    own = {name: weight for name, weight in weights.items() if not name.startswith(position["prefix"])}
    network.text_proj_model = filled(resampler_of(config), own)
    network.pos_net = filled(
        PositionNet(position["out_dim"], frequencies=position["fourier_freqs"], device="meta"), weights, position["prefix"]
    )
    sets = network.conditional_and_unconditional_tokens(
        inputs["phrase_embeds"], inputs["eot"][:, None], inputs["token_counts"], inputs["boxes"]
    )
    return {"ap_tokens": sets.flatten(0, 1), "boxes": inputs["boxes"].repeat(2, 1)}


@register("ifadapter", "ifa_attn")
def attention_layer(weights, inputs, config):
    heads, (h, w), n = config["heads"], config["grid"], config["n"]
    base = {name.removeprefix(config["base_prefix"]): value for name, value in weights.items()}
    layer = filled(Injection(config["channels"], heads, config["context_dim"], device="meta"), weights, config["key_prefix"])
    q = F.linear(inputs["hidden"], base["to_q.weight"])
    k, v = (F.linear(inputs["context"], base[f"to_{each}.weight"]) for each in "kv")
    text = make_attention(heads)(q, k, v)

    regions = InstanceRegions.from_boxes(inputs["boxes"], h, w)
    projected = project_tokens(layer, inputs["ap_tokens"].unflatten(0, (2, n)))
    slots = {"slots": config["max_obj"]}
    logits, outside = compute_gate_logits(layer, compute_instance_maps(layer, q, projected, (0, 1), regions), regions)
    weight = compute_slot_weights(logits, outside, regions, **slots)
    out = text + compute_injection(layer, q, projected, (0, 1), regions, strength=config["scale"], **slots)

    padding = config["max_obj"] - n
    empty = ((1 - weight.sum(dim=1, keepdim=True)) / padding).expand(-1, padding, -1, -1)
    return {
        "base_pre_to_out": text,
        "box_masks": torch.cat([regions.full_mask(place) for place in range(n)]),
        "area_ratio": F.pad(regions.area_ratio[0], (0, padding)),
        "gate_logits": torch.cat([logits, outside.expand(2, padding, h, w)], dim=1),
        "slot_weights": torch.cat([weight, empty], dim=1),
        "D": fuse_instance_maps(layer, q, projected, (0, 1), regions, **slots),
        "pre_to_out": out,
        "post_to_out": F.linear(out, base["to_out.0.weight"], base["to_out.0.bias"]),
    }


@register("ifadapter", "ifa_cbam_gate")
def gate(weights, inputs, config):
    prefix = config["key_prefix"]
    own = {name[len(prefix) :]: value for name, value in weights.items()}
    whole = Injection(config["channels"], 20, 8, config["reduction"])
    whole.load_state_dict(own, strict=False)  # the case has no keys and values
    cbam: CBAM = whole.cbam
    x = inputs["x"].permute(0, 2, 3, 1)
    logits, _ = whole.gate_logits(x, x.shape[1] * x.shape[2])
    return {
        "channel_gated": (x * cbam.cam(x)).permute(0, 3, 1, 2),
        "cbam": cbam(x).permute(0, 3, 1, 2),
        "logit": logits[:, None],
    }
