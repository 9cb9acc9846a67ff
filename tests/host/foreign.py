"""Stand-ins for the protocols that other packs use on the same MODEL. Written from how those packs behave, not from their code."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import optimized_attention

LAYER = ("middle", 0, 0)


class AddOccupant:
    """An image-adapter pack: an object in the attn2 slot that later packs extend with `.add(callback, **kwargs)`."""

    def __init__(self, callback, **kwargs):
        self.callbacks = [(callback, kwargs)]

    def add(self, callback, **kwargs):
        self.callbacks.append((callback, kwargs))

    def __call__(self, q, k, v, extra_options):
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.callbacks:
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def shift(out, q, k, v, extra_options, amount=0.0, **window):
    return torch.full_like(out, amount)


def image_adapter(model, amount=0.5, key=LAYER, **window):
    """Install as those packs do: look at the slot of the clone; extend what is there, or put an AddOccupant."""
    model = model.clone()
    options = model.model_options["transformer_options"] = dict(model.model_options["transformer_options"])
    replaced = options["patches_replace"] = dict(options.get("patches_replace", {}))
    table = replaced["attn2"] = dict(replaced.get("attn2", {}))
    if key in table:
        table[key].add(shift, amount=amount, **window)
    else:
        table[key] = AddOccupant(shift, amount=amount, **window)
    return model


def image_adapter_of_blocks(model, amount=0.5):
    """The same on Stable Diffusion 1.x, where those packs use the keys of whole blocks."""
    return image_adapter(model, amount, key=LAYER[:2])


def attention_couple(model, amount=0.5):
    """Regions by list hooks: widens the context before the projections, acts again on the result after to_out."""

    def before(n, context, value, extra_options):
        return n, torch.cat([context, context], dim=1), torch.cat([value, value * (1 + amount)], dim=1)

    model = model.clone()
    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(lambda n, extra_options: n * (1 + amount))
    return model


def reference(model, amount=0.5):
    """A Reference-style attn1 patch: self-attention reads more tokens than it has."""

    def patch(n, context, value, extra_options):
        return n, torch.cat([context, context.flip(1) * amount], dim=1), torch.cat([value, value.flip(1) * amount], dim=1)

    model = model.clone()
    model.set_model_attn1_patch(patch)
    return model


def free_u(model, amount=0.2):
    model = model.clone()
    model.set_model_output_block_patch(lambda h, hsp, options: (h * (1 + amount), hsp))
    return model


def perturbed_attention(model, amount=0.5):
    """PAG-like: a post-CFG function samples again with the self-attention of a whole block replaced by the identity, for that call."""
    import comfy.model_patcher
    import comfy.samplers

    model = model.clone()

    def post_cfg(args):
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), lambda q, k, v, extra_options, mask=None: v, "attn1", *LAYER[:2]
        )
        (perturbed,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + (args["cond_denoised"] - perturbed) * amount

    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def self_attention_guidance(model, amount=0.5):
    """SAG-like: a post-CFG function runs the negative conditions once more, as the only list of a call."""
    import comfy.samplers

    model = model.clone()

    def post_cfg(args):
        (again,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], args["input"] * 0.9, args["sigma"], args["model_options"]
        )
        return args["denoised"] + (args["uncond_denoised"] - again) * amount

    model.set_model_sampler_post_cfg_function(post_cfg, disable_cfg1_optimization=True)
    return model


def hyper_tile(model, tiles=2):
    """HyperTile-like: self-attention within tiles, whose queries become rows of their own."""
    from einops import rearrange

    model = model.clone()
    pending = []

    def split(q, k, v, extra_options):
        h, w = extra_options["activations_shape"][-2:]
        if h % tiles or w % tiles:
            return q, k, v
        pending.append((h, w))
        q = rearrange(q, "b (i h j w) c -> (b i j) (h w) c", i=tiles, j=tiles, h=h // tiles, w=w // tiles)
        return q, q, q

    def join(out, extra_options):
        if not pending:
            return out
        h, w = pending.pop()
        return rearrange(out, "(b i j) (h w) c -> b (i h j w) c", i=tiles, j=tiles, h=h // tiles, w=w // tiles)

    model.set_model_attn1_patch(split)
    model.set_model_attn1_output_patch(join)
    return model


def tiled_diffusion(model, tile=8):
    """A tiled sampler: every model call becomes one per tile, and the results are put together again."""

    def wrapper(apply_model, args):
        x, time, c = args["input"], args["timestep"], args["c"]
        out = torch.zeros_like(x)
        for top in range(0, x.shape[-2], tile):
            for left in range(0, x.shape[-1], tile):
                part = (..., slice(top, top + tile), slice(left, left + tile))
                out[part] = apply_model(x[part], time, **c)
        return out

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


PACKS = {
    "image_adapter": image_adapter,
    "image_adapter_of_blocks": image_adapter_of_blocks,
    "attention_couple": attention_couple,
    "reference": reference,
    "free_u": free_u,
    "perturbed_attention": perturbed_attention,
    "self_attention_guidance": self_attention_guidance,
}
