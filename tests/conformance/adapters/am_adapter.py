"""AM-Adapter: the matcher alone, whole attention layers in the published behaviour, ControlNeXt and its injection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ....py.am_adapter.agreement import PUBLISHED_CODE, compare_classes
from ....py.am_adapter.attention import Exemplar, Settings, augmented_attention, match_tokens, matching_grid
from ....py.am_adapter.model import ControlNeXt, Encoder, MatcherLayout, inject
from ..registry import register

UNCOND, COND = 0, 1


def encoder(weights, config):
    """The encoder that a case names; a case has no other weights."""
    prefix = f"encoders.{config['encoder']}."
    network = Encoder(MatcherLayout())
    network.load_state_dict({key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)})
    return network


@register("am_adapter", "am_matcher")
def matcher(weights, inputs, config):
    network = encoder(weights, config)
    y, x = inputs["corr"].shape[2:4]
    volume = rearrange(inputs["corr"], "b c qy qx y x -> b (qy qx) c y x")
    phi = network.forward_in_chunks(lambda rows: volume[:, rows], volume.shape[1], 5).decode()
    torch.testing.assert_close(phi, network(volume), rtol=0, atol=1e-5)
    return {"phi": rearrange(phi, "b (qy qx) c y x -> b c qy qx y x", qy=y, qx=x)}


def project(weights, name, tokens):
    return F.linear(tokens, weights[f"attn1.to_{name}.weight"])


def layer(weights, inputs, config, mode, *, agreed=None, found=None):
    """A layer in which row 1 is conditional; the recorded tensors that every attention case has."""
    n, r = inputs["n"], inputs["r"]
    q, k, v = (project(weights, name, n) for name in "qkv")
    keys, values = project(weights, "k", r), project(weights, "v", r)
    exemplar = Exemplar(keys[COND:], values[COND:], agreed, found)
    # As in a slot: the host's attention for the unconditional row, the augmented one for the conditional row.
    plain = augmented_attention(q[:COND], k[:COND], v[:COND], config["heads"], [])
    changed = augmented_attention(q[COND:], k[COND:], v[COND:], config["heads"], [exemplar], Settings(mode))
    before = torch.cat([plain, changed])
    # The unconditional row before it is replaced: without the matcher's bias, which the published code sets to zero there, but hard-masked.
    first = Exemplar(keys[:COND], values[:COND], agreed)
    alike = Settings("concat_only" if mode == "matcher" else mode)
    return {
        "pre_to_out": before,
        "post_to_out": F.linear(before, weights["attn1.to_out.0.weight"], weights["attn1.to_out.0.bias"]),
        "aug_uncond_pre": augmented_attention(q[:COND], k[:COND], v[:COND], config["heads"], [first], alike),
    }


def labels(inputs):
    return inputs["mask_labels_target"][None], inputs["mask_labels_exemplar"][None]


def side(config):
    return round(config["L"] ** 0.5)


@register("am_adapter", "am_aug")
def augmented(weights, inputs, config):
    grid = (side(config), side(config))
    small = matching_grid(grid, PUBLISHED_CODE)
    agreed = compare_classes(*labels(inputs), small, small, behaviour=PUBLISHED_CODE)
    q, keys = project(weights, "q", inputs["n"]), project(weights, "k", inputs["r"])
    found = match_tokens(encoder(weights, config), q, keys, config["heads"], agreed, grid, grid, behaviour=PUBLISHED_CODE)
    p = found.activation()
    return {
        **layer(weights, inputs, config, "matcher", found=found.select([COND])),
        "match_max": found.peak[COND],
        "match_cond_max": p[COND].max(),
        "match_uncond_max": p[UNCOND].max(),
        "match_sub": rearrange(p[COND, config["match_rows"], :, :: config["match_key_stride"]], "l n m -> n l m"),
    }


@register("am_adapter", "am_hardmask")
def hard_mask(weights, inputs, config):
    grid = (side(config), side(config))
    agreed = compare_classes(*labels(inputs), grid, grid, behaviour=PUBLISHED_CODE)
    return layer(weights, inputs, config, "hard_mask", agreed=agreed)


@register("am_adapter", "am_concat")
def concat(weights, inputs, config):
    return layer(weights, inputs, config, "concat_only")


@register("am_adapter", "am_controlnext")
def controlnext(weights, inputs, config):
    network = ControlNeXt()
    network.load_state_dict(weights)
    control = network(inputs["seg"], inputs["t"])
    injected = {f"h_{case}": inject(inputs[f"h_{case}"], control, scale) for case, scale in config["scales"].items()}
    return {"control": control, **injected}
