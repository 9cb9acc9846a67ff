"""What every node must survive, on transformer bases: one family of each kind, every technique."""

from __future__ import annotations

import copy

import comfy.patcher_extension
import pytest
import tiny
import tiny_dit
import torch
from joint_parts import Maps, TinyVAE, applied, error, whole
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.ca2sis import attention as classes_host
from pack.py.host.ifadapter import apply as instances_host
from pack.py.host.ifadapter import references
from pack.py.host.joint import apply, attention, families
from pack.py.host.run import RUN, current_run
from pack.py.host.schedule import PercentRange
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from tiny_dit import TinyTextEncoder, conditioning, prompt, sample

#: Text and image in one attention; padded texts; text apart from the image.
KINDS = ("flux", "qwen", "z_image", "wan")


def phrases(model, name, **more):
    boxes = Instances((Instance((0.0, 0.0, 0.6, 1.0), "a red sofa"), Instance((0.4, 0.2, 1.0, 1.0), "a striped cat")))
    return instances_host.apply(model, TinyTextEncoder(name), boxes, **more)


def classes(model, name, **more):
    labels = torch.full((1, 24, 32), 7, dtype=torch.uint8)
    labels[:, :12] = 1
    prompts = None
    for label, text in (("sky", "a red evening sky"), ("tree", "a tree in a storm")):
        prompts = classes_host.class_prompt(label, prompt(name, text), prompts=prompts)
    settings = classes_host.Settings(**({"isolate": 1.0, "early": 2.0} | more))
    return classes_host.apply(model, SemanticMap(labels, named_palette("playground")), prompts, settings=settings)


def exemplar(model, name, **more):
    maps = tiny.street_map(96, 128), tiny.street_map(ground=0.7)
    return am_adapter.apply(model, TinyVAE(name), tiny.picture(), *maps, cache_mb=0, **more)


TECHNIQUES = pytest.mark.parametrize("technique", (phrases, classes, exemplar), ids=lambda technique: technique.__name__)
FAMILIES = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


@TECHNIQUES
@FAMILIES
def test_branches_and_the_plain_model_do_not_see_each_other(name, technique, models):
    model, text = models(name), prompt(name, "a room")
    plain = sample(model, name, text)
    patched = technique(model, name)
    one = sample(patched, name, text)
    branch = patched.clone()
    phrases(branch, name, strength=0.5)
    assert torch.equal(sample(model, name, text), plain)
    assert torch.equal(sample(branch, name, text), one)
    assert torch.equal(sample(patched, name, text), one)
    assert not torch.equal(one, plain)


@TECHNIQUES
def test_clones_share_and_deep_copies_keep_working(technique, models):
    model, name = models("flux"), "flux"
    patched = technique(model, name)
    wanted = sample(patched, name, prompt(name, "a room"))
    clone = patched
    for _ in range(5):
        clone = clone.clone()
    mine = [m.model_options["transformer_options"]["patches"][apply.PATCHES] for m in (patched, clone)]
    assert mine[0][0] is mine[1][0] and mine[0] is not mine[1]
    clone.model_options = copy.deepcopy(clone.model_options)
    assert clone.model_options["transformer_options"]["patches"][apply.PATCHES][0] is mine[0][0]
    assert torch.equal(sample(clone, name, prompt(name, "a room")), wanted)


@TECHNIQUES
@FAMILIES
def test_inputs_are_not_changed(name, technique, models):
    model, text = models(name), prompt(name, "a room")
    before, options = copy.deepcopy(text), copy.deepcopy(model.model_options)
    sample(technique(model, name), name, text)
    assert torch.equal(text[0][0], before[0][0]) and text[0][1].keys() == before[0][1].keys()
    assert model.model_options == options


@TECHNIQUES
@FAMILIES
def test_after_an_error_in_the_middle_the_next_run_is_clean(name, technique, models):
    patched, text = technique(models(name), name), prompt(name, "a room")
    before = sample(patched, name, text)

    def failing(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(patched, name, text, callback=failing)
    assert RUN not in patched.model_options["transformer_options"]
    assert torch.equal(sample(patched, name, text), before)
    network = models(name).model.diffusion_model
    assert not any(module._forward_hooks for module in network.modules()), "a hook stayed on the network"


def test_the_run_forgets_everything(models):
    runs = []

    def spy(executor, *args, **kwargs):
        runs.append(current_run(args[5]))
        return executor(*args, **kwargs)

    patched = phrases(models("flux"), "flux")
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "spy", spy)
    sample(patched, "flux", prompt("flux", "a room"))
    assert runs[0] is runs[-1] and not runs[0]._kept and runs[0].guider is None


def reordered(model, order):
    """Makes the host run its conditions in another order, or each alone."""

    def wrapper(apply_model, args):
        kinds, c, x, t = args["cond_or_uncond"], args["c"], args["input"], args["timestep"]
        size = x.shape[0] // len(kinds)
        results = [None] * len(kinds)
        for chunks in [[i] for i in range(len(kinds))] if order == "alone" else [list(reversed(range(len(kinds))))]:
            rows = torch.cat([torch.arange(i * size, (i + 1) * size) for i in chunks])
            options = {**c["transformer_options"], "cond_or_uncond": [kinds[i] for i in chunks]}
            options["uuids"] = [c["transformer_options"]["uuids"][i] for i in chunks]
            tensors = {k: v[rows] for k, v in c.items() if isinstance(v, torch.Tensor) and v.shape[0] == x.shape[0]}
            out = apply_model(x[rows], t[rows], **{**c, **tensors, "transformer_options": options}).chunk(len(chunks))
            for place, i in enumerate(chunks):
                results[i] = out[place]
        return torch.cat(results)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize("order", ("reversed", "alone"))
@TECHNIQUES
@FAMILIES
def test_the_order_and_number_of_conditions_in_a_call_do_not_matter(name, technique, order, models):
    patched, text = technique(models(name), name), conditioning(name, 2)
    assert error(sample(reordered(patched, order), name, text, batch=2), sample(patched, name, text, batch=2)) <= 1e-5


@TECHNIQUES
def test_several_positives_with_masks_ranges_and_areas(technique, models):
    model, name = models("flux"), "flux"
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    positives = [
        *prompt(name, "a street", mask=mask, mask_strength=1.0),
        *prompt(name, "a house", start_percent=0.0, end_percent=0.4),
        *prompt(name, "a tree", area=(8, 10, 4, 2)),
        *prompt(name, " ".join(["word"] * 100)),
    ]
    found = sample(technique(model, name), name, positives, steps=3)
    assert found.isfinite().all() and error(found, sample(model, name, positives, steps=3)) > 1e-4


def test_a_condition_with_an_area_sees_its_part_of_the_layout(models):
    """A box over the area's half, seen by a condition that is limited to this half, covers all it sees."""
    model, name = models("flux"), "flux"
    half = {"area": (16, 8, 0, 8)}
    box = Instances((Instance((0.5, 0.0, 1.0, 1.0), "a red sofa"),))
    acting = instances_host.apply(model, TinyTextEncoder(name), box)
    rest = prompt(name, "a wall")
    found = sample(acting, name, [*prompt(name, "a room", **half), *prompt(name, "a wall", area=(16, 8, 0, 0))], cfg=1.0)
    wanted = sample(model, name, [*prompt(name, "a red sofa", **half), *prompt(name, "a wall", area=(16, 8, 0, 0))], cfg=1.0)
    assert error(found, wanted) <= 2e-6 and rest


@pytest.mark.parametrize("sampler", ("heun", "dpmpp_2m", "lcm"))
@TECHNIQUES
def test_samplers_and_partial_denoising(technique, sampler, models):
    model, name = models("qwen"), "qwen"
    import comfy.sample

    shape = tiny_dit.latent_shape(name)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    arguments = (sampler, "simple", prompt(name, "a"), prompt(name, "b"), torch.zeros(shape))
    with torch.inference_mode():
        out = comfy.sample.sample(technique(model, name), noise, 3, 4.0, *arguments, denoise=0.6, disable_pbar=True, seed=1)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@TECHNIQUES
@FAMILIES
def test_half_precision_of_q_k_and_v(name, technique, dtype, models, monkeypatch):
    """Attention in half precision by table and by channels: finite, and near the result in full precision."""

    def halved(func, q, k, v, *args, **kwargs):
        mask = kwargs.pop("mask", None)
        args, mask = (args[:1], args[1]) if len(args) > 1 else (args, mask)
        mask = None if mask is None else mask.to(dtype)
        return func(q.to(dtype), k.to(dtype), v.to(dtype), *args, mask=mask, **kwargs).float()

    model = models(name).clone()
    model.model_options["transformer_options"][attention.OVERRIDE] = halved
    text = prompt(name, "a room")
    wanted = sample(technique(models(name), name), name, text)
    for most in (attention.TABLE_TOKENS, 0):
        monkeypatch.setattr(attention, "TABLE_TOKENS", most)
        found = sample(technique(model, name), name, text)
        assert found.isfinite().all() and error(found, wanted) < 0.1


@TECHNIQUES
def test_no_table_of_all_tokens_is_made_for_long_sequences(technique, models, monkeypatch):
    model, name = models("flux"), "flux"
    monkeypatch.setattr(attention, "TABLE_TOKENS", 128)
    monkeypatch.setattr(attention.Bias, "table", lambda *args: pytest.fail("a table of all tokens"))
    assert sample(technique(model, name), name, prompt(name, "a room"), size=(32, 32), steps=1).isfinite().all()


@FAMILIES
def test_a_mask_that_the_host_has_already_is_kept(name, models):
    """Another node masks keys of the prompt: the appended texts are inserted behind them, and identity still holds."""

    def masked(func, q, k, v, heads, mask=None, **kwargs):
        if q.shape[2] == k.shape[2] and kwargs.get("skip_reshape"):
            extra = torch.zeros(k.shape[2], dtype=q.dtype)
            extra[:3] = -2.0
            extra = extra[None, None, None].expand(1, 1, q.shape[2], -1)
            mask = extra if mask is None else mask + extra
        return func(q, k, v, heads, mask=mask, **kwargs)

    model = models(name).clone()
    model.model_options["transformer_options"][attention.OVERRIDE] = masked
    text = conditioning(name, 2)
    assert error(sample(phrases(model, name), name, text), sample(phrases(models(name), name), name, text)) > 0 or name == "wan"


def host_call(mask, layout, prompt, inserted, q=None):
    plan = attention.CallPlan(layout, 1, prompt, inserted, {})
    acting = attention.JointAttention(plan, None)
    return acting._fit_mask(mask, layout.find_call(layout.total, layout.total), layout.total, torch.float32)


def test_masks_of_the_host_are_fitted_to_the_longer_text():
    from pack.py.joint.layout import Layout

    layout = Layout((3, 2), (2, 2))
    given = torch.arange(49.0).reshape(1, 7, 7)
    found = host_call(given, layout, 3, 2)[0, 0]
    kept = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(found[kept][:, kept], given[0])
    assert not found[3:5].any() and not found[:, 3:5].any()
    allowed = torch.ones(1, 1, 7, dtype=torch.bool)
    allowed[..., 1] = False
    assert (host_call(allowed, layout, 3, 2)[0, 0, 0] < -1e3).nonzero().flatten().tolist() == [1]


def test_grouped_query_attention_and_kept_heads():
    """Fewer heads of keys than of queries, and results with separate heads: bias by channels equals bias by table."""
    from pack.py.joint.bias import Bias
    from pack.py.joint.layout import Layout

    def host(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, enable_gqa=False, **kwargs):
        assert skip_reshape and enable_gqa
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    layout = Layout((3, 2), (2, 2))
    bias = Bias(torch.randn(1, 9, 4), torch.randn(1, 9, 4), 9)
    q, k, v = torch.randn(2, 9, 32), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    results = []
    for most in (2048, 0):
        for keeps in (False, True):
            acting = attention.JointAttention(attention.CallPlan(layout, 2, 3, 2, {attention.FULL: bias}), None)
            limit, attention.TABLE_TOKENS = attention.TABLE_TOKENS, most
            try:
                out = acting(host, q, k, v, 4, skip_output_reshape=keeps, enable_gqa=True)
            finally:
                attention.TABLE_TOKENS = limit
            results.append(out.transpose(1, 2).flatten(2) if keeps else out)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-5)


def test_where_another_node_changes_the_tokens_it_does_not_act_and_says_so(models, caplog):
    model, name = models("flux"), "flux"

    def longer(executor, *args, **kwargs):
        args = list(args)
        args[2] = torch.cat([args[2], args[2][:, :4]], dim=1)
        return executor(*args, **kwargs)

    def with_tokens(model):
        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "tokens", longer)
        return clone

    wanted = sample(with_tokens(model), name, prompt(name, "a room"))
    found = sample(phrases(with_tokens(model), name), name, prompt(name, "a room"))
    assert torch.equal(found, wanted)
    said = [record.message for record in caplog.records if "changes the tokens" in record.message]
    assert len(said) == 1 and said[0].startswith("Apply IFAdapter")


def test_texts_as_long_as_the_image_are_told_apart(models):
    """16 text tokens and 16 image tokens: only the number of tokens says which an attention call holds."""
    for name in ("lumina2", "wan", "cosmos"):
        model = models(name)
        text, phrase = conditioning(name, 1, 8), conditioning(name, 2, 8)
        acting = applied(model, [phrase], weights=whole())
        found = sample(acting, name, text, size=(8, 8), cfg=1.0)
        assert error(found, sample(model, name, phrase, size=(8, 8), cfg=1.0)) <= 2e-6


def test_a_models_own_reference_tokens_are_counted_by_the_model():
    """A subclass of the host's Lumina 2 that appends references as further rows of the latent."""
    model = tiny_dit.tiny_dit("z_image", patch_size=1, axes_dims=[4, 6, 6])
    base = type(model.model)

    class WithRows(base):
        def reference_owners(self, latent, conditions):
            references = conditions.get("ref_latents") or ()
            return [index for index, reference in enumerate(references) for _ in range(reference.shape[-2] * reference.shape[-1])]

        def extra_conds(self, **kwargs):
            import comfy.conds

            out = super().extra_conds(**{k: v for k, v in kwargs.items() if k != "reference_latents"})
            if kwargs.get("reference_latents"):
                out["ref_latents"] = comfy.conds.CONDList(kwargs["reference_latents"])
            return out

        def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
            rows = kwargs.pop("ref_latents", [])
            joined = torch.cat([x, *(row.to(x) for row in rows)], dim=-2)
            out = super()._apply_model(joined, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
            return out[..., : x.shape[-2], :]

    model.model.__class__ = WithRows
    assert families.require_references(model, "Test Node").multiple(model.model.diffusion_model) == 32
    name = "z_image"
    one, two, other = (torch.randn(1, 16, 2, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    weights = torch.tensor([1.0, 0.0])[None, :, None, None]
    acting = apply.install(model, Maps("Test Node", PercentRange(), references=weights))

    def go(m, *refs):
        return sample(m, name, conditioning(name, 2, reference_latents=list(refs)), size=(8, 8), cfg=1.0)

    assert torch.equal(go(acting, one, two), go(acting, one, other))
    assert error(go(acting, other, two), go(acting, one, two)) > 1e-4
    assert error(go(model, one, two), go(model, one, other)) > 1e-4
    phrase = conditioning(name, 5, 40, reference_latents=[one])
    wanted = sample(model, name, phrase, size=(8, 8), cfg=1.0)
    acting = applied(model, [conditioning(name, 5, 40)], weights=whole())
    found = sample(acting, name, conditioning(name, 2, reference_latents=[one]), size=(8, 8), cfg=1.0)
    assert error(found, wanted) <= 2e-6


def test_references_with_frames_of_a_batch(models):
    name = "flux"
    masks = torch.zeros(2, 16, 16)
    masks[0], masks[1, :1, :1] = 1.0, 1.0
    region = Instance((0.0, 0.0, 1.0, 1.0), "a chair", masks, reference=tiny.picture(64, 64, seed=1))
    model, positive, _ = references.apply(
        models(name), TinyVAE(name), prompt(name, "a"), None, [region], 1.0, PercentRange(), 1.0
    )
    found = sample(model, name, positive, batch=2)
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="2"):
        sample(model, name, positive, batch=3)
