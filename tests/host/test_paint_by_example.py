"""Paint by Example in the host: what the model is told, regions, the source heard, holes and pictures of every kind, the nodes."""

from __future__ import annotations

import foreign
import painting
import pytest
import tiny
import torch
from pack.nodes import paint_by_example as nodes
from pack.py.host import crop as crop_host
from pack.py.host import hooks
from pack.py.host.paint_by_example import conditioning, context, prepare, regions
from pack.py.imaging.masks import grow_mask
from painting import VAE, TinyPBE, hole, pictures, prepared, sample
from torch.testing import assert_close


@pytest.fixture(scope="module")
def model():
    return painting.tiny_model()


@pytest.fixture(scope="module")
def encoder():
    return painting.tiny_encoder()


# What the model is told


def test_the_unet_reads_the_published_channels_in_the_published_order(model, encoder):
    seen = []
    handle = model.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    try:
        ready = prepared(encoder)
        sample(model, ready, steps=1)
    finally:
        handle.remove()
    known = model.model.process_latent_in(ready[0][0][1]["concat_latent_image"])
    for row in seen[0]:
        assert_close(row[4:8], known[0], rtol=0, atol=0)
        assert row[8].sum() == 64 - 3 * 4 and row[8, 2:5, 2:6].sum() == 0, "1 is kept, 0 is painted"
    assert ready[0][0][1]["concat_latent_image"][0, :, 3, 3].abs().max() == 0, "the hole is grey"


def test_attention_to_one_token_is_the_hosts(model):
    layer = hooks.attention_blocks(model.model.diffusion_model)["input", 1, 0].attn2
    host, forward = type(layer), regions.OneTokenForward(layer)
    x, one = torch.randn(2, 9, layer.to_q.in_features), torch.randn(2, 1, layer.to_k.in_features)
    for more in ({}, {"value": one * 2}):
        found = forward(x, one, **more)
        assert_close(found, host.forward(layer, x, one, **more), rtol=1e-5, atol=1e-5)
        found += 1  # as other packs' patches may do
    two = torch.cat([one, one + 1], dim=1)
    assert torch.equal(forward(x, two), host.forward(layer, x, two))


def test_the_hosts_layers_are_changed_only_while_the_model_is_sampled(model, encoder, monkeypatch):
    layer, calls = hooks.attention_blocks(model.model.diffusion_model)["input", 1, 0].attn2, []
    plain = regions.OneTokenForward.__call__
    monkeypatch.setattr(regions.OneTokenForward, "__call__", lambda self, *a, **k: calls.append(1) or plain(self, *a, **k))
    sample(model, prepared(encoder), steps=1)
    assert calls and type(layer).__module__.startswith("comfy.")
    model.unpatch_model()
    assert not isinstance(layer.forward, regions.OneTokenForward)


def test_layers_in_which_nobody_acts_are_not_entered(model, encoder, monkeypatch):
    entered, slot = [], type(next(iter(model.model_options["transformer_options"]["patches_replace"]["attn2"].values())))
    plain = slot.__call__
    monkeypatch.setattr(slot, "__call__", lambda self, *args: entered.append(self) or plain(self, *args))
    sample(model, prepared(encoder))
    assert not entered
    sample(model, regional(encoder, s4=torch.ones(1, 64, 64)))
    assert entered


def test_another_inpainting_model_is_not_touched(model):
    other = tiny.tiny_model(TinyPBE)
    assert tuple(other.model.concat_keys) == ("mask", "masked_image")


def test_strength_is_a_line_from_no_exemplar_to_the_exemplar(encoder):
    def token(**more):
        return conditioning.make_conditioning(encoder, pictures(seed=3), **more)[0]

    null = encoder.null()
    assert torch.equal(token(strength=0.0)[0][0], null)
    assert_close(token(strength=0.5)[0][0], (null + token()[0][0]) / 2)
    late = token(start_percent=0.5)
    assert [(e[1].get("start_percent"), e[1].get("end_percent")) for e in late] == [(0.0, 0.5), (0.5, 1.0)]
    assert torch.equal(late[0][0], null) and torch.equal(late[1][0], token()[0][0])


def test_a_schedule_is_followed_by_the_sampler(model, encoder):
    def run(**more):
        return sample(
            model, prepared(encoder, conditioned=conditioning.make_conditioning(encoder, pictures(seed=3), **more)), steps=4
        )

    assert torch.equal(run(start_percent=0.3, end_percent=0.3), run(strength=0.0))
    assert not torch.equal(run(start_percent=0.5), run()) and not torch.equal(run(start_percent=0.5), run(strength=0.0))
    assert run(course="fade in").isfinite().all()


def test_several_exemplars_are_a_weighted_mean_in_one_node_or_in_a_chain(encoder):
    both = pictures(2, seed=5)
    one, two = (conditioning.make_conditioning(encoder, both[n : n + 1])[0][0][0] for n in (0, 1))
    mixed = conditioning.make_conditioning(encoder, both, weights="3, 1")[0][0][0]
    assert_close(mixed, 0.75 * one + 0.25 * two)
    first, _ = conditioning.make_conditioning(encoder, both[:1], weights="3")
    chained, _ = conditioning.make_conditioning(encoder, both[1:], weights="1", positive=first)
    assert_close(chained[0][0], mixed)
    each = conditioning.make_conditioning(encoder, both, several="one per picture")[0][0][0]
    assert_close(each, torch.cat([one, two]))


def test_inputs_are_not_changed(model, encoder):
    image, mask = pictures(), hole()
    conditioned = conditioning.make_conditioning(encoder, pictures(seed=3), region=hole())
    kept = [t.clone() for t in (image, mask)]
    before = [sorted(options) for _, options in conditioned[0]], repr(model.model_options)
    positive, negative, latent, cut = prepared(encoder, image, mask, conditioned=conditioned, latent="source")
    patched = context.apply(model, VAE, cut, structure=0.3, context_attention=1.0, source_reference=0.5, ring_style=0.5)
    kept_latent = latent["samples"].clone()
    sample(patched, (positive, negative, latent, cut))
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1]) and torch.equal(latent["samples"], kept_latent)
    assert ([sorted(options) for _, options in conditioned[0]], repr(model.model_options)) == before


# Regions


def regional(encoder, **by_seed):
    """Exemplar 3 everywhere, and others by seed in their regions."""
    conditioned = conditioning.make_conditioning(encoder, pictures(seed=3))
    for seed, mask in by_seed.items():
        conditioned = conditioning.make_conditioning(encoder, pictures(seed=int(seed[1:])), region=mask, positive=conditioned[0])
    return prepared(encoder, conditioned=conditioned)


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_a_region_of_everything_is_that_exemplar(model, encoder, cfg):
    alone = sample(model, prepared(encoder, exemplar=pictures(seed=4)), cfg=cfg)
    found = sample(model, regional(encoder, s4=torch.ones(1, 64, 64)), cfg=cfg)
    # The same values through another order of sums.
    assert_close(found, alone, rtol=1e-3, atol=1e-3)


def test_each_region_hears_its_own_exemplar(model, encoder):
    left, right = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    left[..., :32], right[..., 32:] = 1, 1
    seen = {}
    block = hooks.attention_blocks(model.model.diffusion_model)["input", 1, 0]
    handle = block.attn2.to_out.register_forward_hook(lambda m, i, out: seen.setdefault("out", out.clone()))
    try:
        sample(model, regional(encoder, s4=left, s5=right), steps=1, cfg=1.0)
        out = seen.pop("out")[0].unflatten(0, (8, 8))
        for seed, part in ((4, out[:, :4]), (5, out[:, 4:])):
            sample(model, prepared(encoder, exemplar=pictures(seed=seed)), steps=1, cfg=1.0)
            assert_close(part, seen.pop("out")[0, 0].expand_as(part), rtol=1e-4, atol=1e-4)
    finally:
        handle.remove()


def test_regions_follow_the_window(model, encoder):
    """A region at the lower right of a large picture is at the same place of the hole in the window."""
    mask = hole(200, 300, 100, 160, 200, 260)
    region = torch.zeros(1, 200, 300)
    region[:, 130:, 230:] = 1
    conditioned = conditioning.make_conditioning(encoder, pictures(seed=4), region=region)
    ready = prepared(encoder, pictures(1, 200, 300), mask, conditioned=conditioned, crop="around the hole", context=0.5)
    found = ready[0][0][1][regions.REGIONS][0].mask
    x0, _y0, x1, _y1 = ready[3].boxes[0]
    assert found.shape == (1, 64, 64)
    assert found[0, -1, -1] == 1 and found[0, 0, 0] == 0
    assert abs(int(found[0, -1].argmax()) - (230 - x0) * 64 / (x1 - x0)) <= 1
    assert sample(model, ready).isfinite().all()


# The source heard

WAYS = {
    "structure": {"structure": 0.4},
    "context_attention": {"context_attention": 1.5},
    "source_reference": {"source_reference": 0.8},
    "ring_style": {"ring_style": 1.0},
}


def test_everything_off_is_the_model_itself(model, encoder):
    cut = prepared(encoder)[3]
    assert context.apply(model, VAE, cut) is model
    assert context.apply(model, VAE, cut, ring_style=1.0, start_percent=0.5, end_percent=0.5) is model


@pytest.mark.parametrize("way", WAYS)
def test_each_way_acts_and_leaves_the_model_and_later_runs_alone(model, encoder, way):
    ready = prepared(encoder)
    plain = sample(model, ready)
    patched = context.apply(model, VAE, ready[3], **WAYS[way])
    found = sample(patched, ready)
    assert found.isfinite().all() and not torch.equal(found, plain)
    assert torch.equal(sample(patched, ready), found) and torch.equal(sample(model, ready), plain)


@pytest.mark.parametrize("way", ["context_attention", "source_reference", "ring_style"])
def test_only_the_hole_hears_more_in_the_first_layer(model, encoder, way):
    ready = prepared(encoder)
    block = hooks.attention_blocks(model.model.diffusion_model)["input", 1, 0]
    found = []
    for patched in (model, context.apply(model, VAE, ready[3], **WAYS[way])):
        outs = []
        handle = block.attn1.to_out.register_forward_hook(lambda m, i, out, outs=outs: outs.append(out.clone()))
        try:
            sample(patched, ready, steps=1)
        finally:
            handle.remove()
        found.append(outs[-1].unflatten(1, (8, 8)))  # the last: a pass over the source comes first
    changed = ((found[0] - found[1]).abs() > 1e-6).any(dim=-1)
    for row in changed:
        assert row[2:5, 2:6].all() and row.sum() == 12


def test_structure_to_the_end_is_the_source_in_the_hole(model, encoder):
    ready = prepared(encoder)
    found = sample(context.apply(model, VAE, ready[3], structure=1.0), ready, steps=3)
    source = VAE.encode(pictures())
    assert_close(found[:, :, 2:5, 2:6], source[:, :, 2:5, 2:6], rtol=1e-3, atol=1e-3)


def test_a_longer_structure_is_nearer_to_the_source(model, encoder):
    ready, source = prepared(encoder), VAE.encode(pictures())[:, :, 2:5, 2:6]
    far = [
        float((sample(context.apply(model, VAE, ready[3], structure=s), ready, steps=6)[:, :, 2:5, 2:6] - source).square().mean())
        for s in (0.2, 0.9)
    ]
    assert far[1] < far[0]


@pytest.mark.parametrize("pack", ["image_adapter", "reference", "perturbed_attention"])
@pytest.mark.parametrize("they_first", [True, False])
def test_it_stacks_with_other_packs(model, encoder, pack, they_first):
    ready, other = prepared(encoder), foreign.PACKS[pack]

    def ours(m):
        return context.apply(m, VAE, ready[3], context_attention=1.0, source_reference=0.5)

    found = sample(ours(other(model)) if they_first else other(ours(model)), ready)
    assert found.isfinite().all()
    assert not torch.equal(found, sample(ours(model), ready)) and not torch.equal(found, sample(other(model), ready))


def test_batches_and_sizes(model, encoder):
    image, mask = pictures(2, 80, 120), torch.cat([hole(80, 120), hole(80, 120, 40, 80, 80, 120)])
    conditioned = conditioning.make_conditioning(encoder, pictures(2, seed=5), several="one per picture")
    ready = prepared(encoder, image, mask, conditioned=conditioned, crop="around the hole", width=96, height=64)
    patched = context.apply(model, VAE, ready[3], **{k: v for way in WAYS.values() for k, v in way.items()})
    found = sample(patched, ready)
    assert found.shape == (2, 4, 8, 12) and found.isfinite().all()
    with pytest.raises(ValueError, match="stitch has 2 images, but 3 latents"):
        sample(patched, ready, batch=3)


def test_wrong_models_and_values_stop_at_the_node(model, encoder):
    cut = prepared(encoder)[3]
    with pytest.raises(ValueError, match="is not Paint by Example's"):
        context.apply(tiny.tiny_model(), VAE, cut, structure=0.5)
    with pytest.raises(ValueError, match="structure is nan"):
        context.apply(model, VAE, cut, structure=float("nan"))
    with pytest.raises(ValueError, match="start_percent is 2"):
        context.apply(model, VAE, cut, ring_style=1.0, start_percent=2.0)
    with pytest.raises(ValueError, match="VAE input is empty"):
        context.apply(model, None, cut, structure=0.5)


# Edges of every kind


@pytest.mark.parametrize(
    "h, w, box",
    [
        (64, 64, (0, 64, 0, 64)),  # everything
        (64, 64, (20, 21, 30, 31)),  # one pixel
        (64, 64, (0, 10, 54, 64)),  # at the border
        (40, 640, (5, 35, 10, 630)),  # 16:1
        (1, 1, (0, 1, 0, 1)),
        (77, 53, (3, 70, 1, 52)),  # no multiple of anything
    ],
)
@pytest.mark.parametrize("window", ["around the hole", "whole picture"])
def test_any_hole_in_any_picture(model, encoder, h, w, box, window):
    image, mask = pictures(1, h, w), hole(h, w, *box)
    ready = prepared(encoder, image, mask, crop=window, grow=1, feather=3)
    assert ready[0][0][1]["concat_mask"].sum() >= 1
    out = crop_host.stitch(VAE.decode(sample(model, ready, steps=1)), ready[3], 0.5)
    outside = grow_mask(mask, 4) == 0
    assert out.shape == image.shape and out.isfinite().all() and torch.equal(out[outside], image[outside])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_exemplars_and_sources_of_any_channels(model, encoder, channels):
    exemplar = pictures(1, 40, 30, seed=2, channels=channels)
    ready = prepared(encoder, pictures(channels=channels), exemplar=exemplar)
    out = crop_host.stitch(VAE.decode(sample(model, ready, steps=1)), ready[3])
    assert out.shape == (1, 64, 64, max(3, channels))


def test_transparency_cuts_the_exemplar_out(encoder):
    exemplar = torch.ones(1, 40, 40, 4)
    exemplar[..., :3] = pictures(1, 40, 40, 3)
    alpha = torch.zeros(40, 40)
    alpha[10:30, 5:35] = 1
    exemplar[0, ..., 3] = alpha
    other = exemplar.clone()
    other[0, :5, :, :3] = 0  # what nobody sees
    by_mask = conditioning.make_conditioning(encoder, exemplar[..., :3], mask=alpha[None], fill="white")
    found = [conditioning.make_conditioning(encoder, e)[0][0][0] for e in (exemplar, other)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], by_mask[0][0][0])


def test_what_cannot_work_says_what_to_do(encoder):
    def says(text, call, *arguments, **more):
        with pytest.raises(ValueError, match=text):
            call(*arguments, **more)

    ask = conditioning.make_conditioning
    says("weights has 2 numbers for 3 exemplars", ask, encoder, pictures(3), weights="1, 2")
    says("weights is 'a lot'", ask, encoder, pictures(), weights="a lot")
    says("must not be negative", ask, encoder, pictures(), weights="-1")
    says("strength is nan", ask, encoder, pictures(), strength=float("nan"))
    says("end_percent is 1.5", ask, encoder, pictures(), end_percent=1.5)
    says("mask has a batch of 2, but image has a batch of 3", ask, encoder, pictures(3), mask=torch.ones(2, 8, 8))
    says("mask is empty: nothing in it is above one half", ask, encoder, pictures(), mask=torch.zeros(1, 8, 8))
    says("region is empty", ask, encoder, pictures(), region=torch.zeros(1, 8, 8))
    says("image contains NaN or infinite values", ask, encoder, torch.full((1, 8, 8, 3), float("inf")))
    says("the mask is empty", prepared, encoder, mask=torch.zeros(1, 64, 64))
    says("all 2 masks are empty", prepared, encoder, mask=torch.zeros(2, 64, 64))
    says("image has a batch of 3 and mask has a batch of 2", prepared, encoder, pictures(3), torch.cat([hole(), hole()]))
    says("width is 100; it must be a multiple of 8", prepared, encoder, width=100)
    says("context is nan", prepared, encoder, context=float("nan"))
    says("image contains NaN or infinite values", prepared, encoder, torch.full((1, 64, 64, 3), float("nan")))
    says("VAE input is empty", prepare.prepare, [], [], None, pictures(), hole())
    cut = prepared(encoder)[3]
    says("half precision", crop_host.stitch, torch.full((1, 64, 64, 3), float("nan")), cut)
    says("box .* has no area", prepare.make_mask_shapes, (0.5, 0.5, 0.5, 0.9), 64, 64, "bezier", 0.4, 5, 0, 1)
    says("the mask is empty", prepare.make_mask_shapes, (0, 0, 1, 1), 64, 64, "bezier", 0.4, 5, 0, 1, torch.zeros(1, 8, 8))


# Photographs


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", ["ellipse", "stripe", "bezier", "scattered", "corner"])
def test_photographs_come_back_untouched_around_holes_of_many_shapes(encoder, which, shape):
    """What is painted lands to the pixel: a mark drawn into the window at one place is found there in the picture."""
    photo = torch.tensor(pytest.importorskip("sklearn.datasets").load_sample_images().images[which]).float()[None] / 255
    h, w = photo.shape[1:3]
    y, x = torch.arange(h)[:, None], torch.arange(w)[None]
    masks = {
        "ellipse": ((x - 300) / 90) ** 2 + ((y - 200) / 60) ** 2 < 1,
        "stripe": (x - y - 100).abs() < 12,
        "bezier": prepare.make_mask_shapes((0.3, 0.2, 0.6, 0.7), w, h, "bezier", 0.4, 5, 1, 1)[0] > 0,
        "scattered": (((x * 7919 + y * 104729) % 1009) == 0) & (x > 200) & (x < 400),
        "corner": (x > w - 40) & (y > h - 30),
    }
    mask = masks[shape].float()[None]
    ready = prepared(encoder, photo, mask, crop="around the hole", width=128, height=128, grow=3, feather=6)
    cut = ready[3]
    again = crop_host.stitch(cut.windows().movedim(1, -1), cut)
    outside = grow_mask(mask, 9) == 0
    assert torch.equal(again[outside], photo[outside])
    painted = crop_host.stitch(torch.zeros(1, 128, 128, 3), cut)
    assert (painted[cut.hole > 0] == 0).all() and torch.equal(painted[outside], photo[outside])


def test_the_nodes_run_as_in_a_graph(model, encoder):
    image, mask = pictures(), hole()
    positive, negative = nodes.ExemplaryExemplarConditioning.execute(
        encoder, pictures(seed=3), 1.0, "squash", "keep", True, "blend", "1", 0.0, 1.0, "constant"
    ).args
    *ready, cut = nodes.ExemplaryPaintByExamplePrepare.execute(
        positive, negative, VAE, image, mask, 64, 64, "around the hole", 0.5, 2, 4, "source", "bilinear", True
    ).args
    (patched,) = nodes.ExemplaryPaintByExampleContext.execute(model, VAE, cut, 0.2, 0.5, 0.5, 0.5, 0.0, 1.0).args
    latent = sample(patched, (*ready, cut))
    (out,) = nodes.ExemplaryStitch.execute(VAE.decode(latent), cut, 0.5).args
    assert out.shape == image.shape
    (shape,) = nodes.ExemplaryMaskShape.execute(64, 48, 0.2, 0.2, 0.5, 0.5, "bezier", 0.4, 2, 2**63, 3, None).args
    assert shape.shape == (3, 48, 64) and shape.any()
