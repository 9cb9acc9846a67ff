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
    """PAG-like: a post-CFG function samples again with self-attention replaced by the identity."""
    import comfy.model_patcher
    import comfy.samplers

    model = model.clone()

    def post_cfg(args):
        options = comfy.model_patcher.create_model_options_clone(args["model_options"])
        for key in (LAYER, ("middle", 0)):
            options = comfy.model_patcher.set_model_options_patch_replace(
                options, lambda q, k, v, extra_options: v, "attn1", *key
            )
        (perturbed,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + (args["cond_denoised"] - perturbed) * amount

    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


PACKS = {
    "image_adapter": image_adapter,
    "attention_couple": attention_couple,
    "reference": reference,
    "free_u": free_u,
    "perturbed_attention": perturbed_attention,
}
