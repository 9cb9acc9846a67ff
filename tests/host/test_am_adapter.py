"""AM-Adapter on real tiny models: what is read when, what is kept, what is refused; ControlNeXt; the preview; the trainers' networks."""

from __future__ import annotations

import inspect
import json

import comfy.model_management
import comfy.sample
import pytest
import tiny
import torch
from pack.lab.trainers import am_adapter as am_adapter_training
from pack.lab.training import sampling
from pack.lab.training.recipe import run_recipe
from pack.nodes import am_adapter as nodes
from pack.py.am_adapter.agreement import PAPER_FORMULAS
from pack.py.am_adapter.checkpoint import matcher_metadata
from pack.py.am_adapter.model import PUBLISHED_MATCHER, ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout
from pack.py.host import folders, playground
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.am_adapter import cache as am_adapter_cache
from pack.py.host.am_adapter import controlnext as am_adapter_controlnext
from pack.py.host.am_adapter.cache import Features, FeatureStore
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.semantic_map import SemanticMap
from PIL import Image
from safetensors.torch import save_file

MATCHER = MatcherLayout(heads=2, widths=(4, 8, 4))
CONTROLNEXT = ControlNeXtLayout(out_channels=32, widths=(8, 8, 16), time_channels=16, time_width=16)


def exemplar(model, picture=None, exemplar_map=None, target_map=None, **more):
    picture = tiny.picture() if picture is None else picture
    exemplar_map = tiny.street_map(96, 128) if exemplar_map is None else exemplar_map
    target_map = tiny.street_map(ground=0.7) if target_map is None else target_map
    return am_adapter.apply(model, tiny.TinyVAE(), picture, exemplar_map, target_map, **more)


def labelled(labels, palette="playground"):
    return SemanticMap(torch.as_tensor(labels, dtype=torch.uint8), named_palette(palette))


@pytest.fixture(autouse=True)
def empty_store():
    am_adapter_cache.store().clear()


@pytest.fixture
def calls(sd15):
    """How many rows each call of the UNet had."""
    found = []
    hook = sd15.model.diffusion_model.time_embed.register_forward_hook(
        lambda module, inputs, out: found.append(inputs[0].shape[0])
    )
    yield found
    hook.remove()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder am_adapter with a matcher and a ControlNeXt for the tiny model."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "am_adapter", ([str(tmp_path)], set(folders.EXTENSIONS)))
    generator = torch.Generator().manual_seed(0)

    def random(network):
        return {k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in network.state_dict().items()}

    save_file(random(Matcher(MATCHER)), tmp_path / "matcher.safetensors", matcher_metadata(MATCHER, PAPER_FORMULAS))
    save_file(random(Matcher(PUBLISHED_MATCHER)), tmp_path / "published.safetensors")
    save_file(random(ControlNeXt(CONTROLNEXT)), tmp_path / "control.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    return tmp_path


# Identities


@pytest.mark.parametrize("nothing", [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}])
def test_strength_zero_and_an_empty_range_are_the_model_itself(sd15, nothing):
    assert exemplar(sd15, **nothing) is sd15


def test_a_range_between_two_steps_reads_nothing_and_changes_nothing(sd15, calls):
    expected = tiny.sample(sd15)
    calls.clear()
    assert torch.equal(tiny.sample(exemplar(sd15, start_percent=0.998, end_percent=0.999)), expected)
    assert calls == [2, 2]


def test_two_chained_nodes_are_one_softmax(sd15):
    """Two nodes of half the strength are one node with both pictures, each of which then counts half."""
    a, b = tiny.picture(seed=1), tiny.picture(seed=2)
    together = exemplar(sd15, torch.cat([a, b]))
    chained = exemplar(exemplar(sd15, a, strength=0.5), b, strength=0.5)
    torch.testing.assert_close(tiny.sample(chained), tiny.sample(together), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(tiny.sample(exemplar(sd15, a)), tiny.sample(together))


def test_the_targets_own_prompt_is_the_default_for_the_exemplar(sd15):
    positive = tiny.conditioning(sd15, "a street")
    default, same, other = (
        tiny.sample(exemplar(sd15, prompt=p), positive) for p in (None, positive, tiny.conditioning(sd15, "a beach"))
    )
    assert torch.equal(default, same) and not torch.equal(default, other)


def test_outside_of_the_mask_the_first_layer_is_untouched(sd15):
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    key, found = ("input", 1, 0), []
    for model in (exemplar(sd15, mask=mask), sd15):
        spied = model.clone()
        slot = model.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {}).get(key)

        def spy(q, k, v, options, slot=slot):
            out = am_adapter_plain(q, k, v, options) if slot is None else slot(q, k, v, options)
            found.append(out[options["cond_or_uncond"].index(0)].unflatten(0, tuple(options["activations_shape"][-2:])).clone())
            return out

        spied.set_model_attn1_replace(spy, *key)
        tiny.sample(spied, steps=1)
    changed = (found[0] - found[1]).abs().amax(dim=-1) > 1e-5
    assert changed[:, :8].all() and not changed[:, 8:].any()


def am_adapter_plain(q, k, v, options):
    from pack.py.host.slots import plain_attention

    return plain_attention(q, k, v, options)


@pytest.mark.parametrize(
    "more", [{"parts": "up"}, {"parts": "middle and up"}, {"levels": "1"}, {"levels": "2, 4"}, {"match_void": True}]
)
def test_layers_can_be_chosen(sd15, more):
    found = tiny.sample(exemplar(sd15, **more))
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(sd15))
    assert torch.equal(found, tiny.sample(exemplar(sd15))) == (more == {"match_void": True})


# Modes, sources, sizes


@pytest.mark.parametrize("mode", ["class_bias", "hard_mask", "concat_only", "masactrl"])
def test_weight_free_modes_on_both_kinds_of_model(model, mode):
    found = tiny.sample(exemplar(model, mode=mode, balance=0.5), steps=1)
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(model, steps=1))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize("source", ["invert", "invert_cached", "clean"])
def test_exemplars_are_seen_in_four_ways_by_any_sampler(sd15, source, sampler):
    patched = exemplar(sd15, source=source)
    found = tiny.sample(patched, sampler=sampler)
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(exemplar(sd15), sampler=sampler))
    assert torch.equal(found, tiny.sample(patched, sampler=sampler)), "the store gives other features than it was given"


@pytest.mark.parametrize("picture, size", [((64, 160), (16, 24)), ((72, 40), (13, 19)), ((33, 47), (1, 1))])
def test_target_and_exemplar_of_any_sizes(sd15, picture, size):
    found = tiny.sample(exemplar(sd15, tiny.picture(*picture), tiny.street_map(*picture)), size=size, steps=1)
    assert found.shape[-2:] == size and found.isfinite().all()


def test_one_target_map_a_latent(sd15):
    low, high = tiny.street_map(ground=0.3), tiny.street_map(ground=0.8)
    both = labelled(torch.cat([low.labels, high.labels]))
    found = tiny.sample(exemplar(sd15, target_map=both), batch=2)
    alone = tiny.sample(exemplar(sd15, target_map=low), batch=2)
    torch.testing.assert_close(found[:1], alone[:1], rtol=1e-3, atol=1e-2)
    assert not torch.allclose(found[1], alone[1], atol=1e-1)
    with pytest.raises(ValueError, match="target_map has 2 images, but 3 latents"):
        tiny.sample(exemplar(sd15, target_map=both), batch=3)


def test_a_split_run_reads_what_the_whole_run_reads(sd15):
    patched = exemplar(sd15)
    noise, latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 4, 16, 16)
    conditions = (tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, tiny.NEGATIVE))

    def run(noise, latent, **more):
        with torch.inference_mode():
            return comfy.sample.sample(patched, noise, 4, 5.0, "euler", "normal", *conditions, latent, disable_pbar=True, **more)

    whole = run(noise, latent)
    first = run(noise, latent, start_step=0, last_step=2, force_full_denoise=False)
    second = run(torch.zeros_like(noise), first, start_step=2, last_step=4, disable_noise=True)
    torch.testing.assert_close(second, whole, rtol=1e-3, atol=1e-2)


# The store


def test_a_warm_run_is_the_same_and_reads_nothing(sd15, calls):
    patched = exemplar(sd15)
    cold = tiny.sample(patched, steps=3)
    assert calls == [1, 2] * 3
    calls.clear()
    assert torch.equal(tiny.sample(patched, steps=3), cold) and calls == [2] * 3
    calls.clear()
    tiny.sample(exemplar(sd15, target_map=tiny.street_map(ground=0.2)), steps=3)
    assert calls == [2] * 3, "another target reads the same exemplar"
    calls.clear()
    tiny.sample(patched, tiny.conditioning(sd15, "a beach"), steps=1)
    assert calls == [1, 2], "another prompt is another reading"


def test_a_lora_is_another_reading(sd15, calls):
    patched = exemplar(sd15)
    tiny.sample(patched, steps=1)
    calls.clear()
    changed = patched.clone()
    key = next(k for k in patched.model_state_dict() if k.endswith("attn1.to_k.weight"))
    changed.add_patches({key: ("diff", (torch.ones_like(patched.model_state_dict()[key]) * 0.1,))})
    assert not torch.equal(tiny.sample(changed, steps=1), tiny.sample(patched, steps=1))
    assert calls[:2] == [1, 2]


def test_the_store_is_bounded_and_can_be_off(sd15, calls):
    store = am_adapter_cache.store()
    tiny.sample(exemplar(sd15, cache_mb=0), steps=2)
    assert len(store) == 0 and calls == [1, 2] * 2
    tiny.sample(exemplar(sd15, cache_mb=1), steps=6)
    assert 0 < len(store) < 6 and store.size() <= 1 << 20


def test_freeing_memory_empties_the_store(sd15):
    tiny.sample(exemplar(sd15))
    assert len(am_adapter_cache.store()) == 2
    comfy.model_management.unload_all_models()
    assert len(am_adapter_cache.store()) == 0


def test_the_store_goes_with_its_model_and_keeps_what_a_run_uses():
    class Model:
        pass

    def features(size):
        return Features({}, torch.zeros(size), torch.zeros(0))

    store, model = FeatureStore(), Model()
    store.begin_run()
    assert [store.put(model, n, features(10), limit=100) for n in range(4)] == [True, True, False, False]
    store.begin_run()
    assert store.get(model, 0) is not None and store.put(model, "new", features(10), limit=100)
    assert store.get(model, 1) is None, "what this run did not use made room"
    assert store.get(model, 0) is not None and store.size() == 80
    del model
    assert len(store) == 0


# The matcher


def test_a_matcher_is_loaded_and_used(sd15, folder):
    adapter = am_adapter.load("matcher.safetensors")
    assert adapter.behaviour == PAPER_FORMULAS and adapter.layout == MATCHER
    patched = exemplar(sd15, adapter=adapter)
    found = tiny.sample(patched)
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(exemplar(sd15)))
    assert adapter.patcher in patched.get_additional_models_with_key(am_adapter.KEY)


def test_adapters_that_do_not_fit_say_why(sd15, folder):
    published = am_adapter.load("published.safetensors")
    with pytest.raises(ValueError, match=r"layers of 8 attention heads, but this MODEL \(TinySD15\) has 2"):
        exemplar(sd15, adapter=published)
    with pytest.raises(ValueError, match="mode matcher needs weights"):
        exemplar(sd15, mode="matcher")
    with pytest.raises(ValueError, match=r"'control.safetensors' is a ControlNeXt. Load it with Load ControlNeXt"):
        am_adapter.load("control.safetensors")
    with pytest.raises(ValueError, match=r"empty.safetensors cannot be read as weights: it is empty"):
        am_adapter.load("empty.safetensors")
    with pytest.raises(ValueError, match="is not in"):
        am_adapter.load("missing.safetensors")
    upstream = am_adapter.load("matcher.safetensors", "upstream")
    with pytest.raises(ValueError, match="supports 512x512 only; target and exemplar are 128x128 and 128x96"):
        tiny.sample(exemplar(sd15, adapter=upstream))


# Bad input


def test_pictures_and_maps_that_do_not_fit_are_refused(sd15):
    with pytest.raises(ValueError, match="1 x 1 pixels; it needs at least 32 x 32"):
        exemplar(sd15, torch.rand(1, 1, 1, 3), tiny.street_map(1, 1))
    with pytest.raises(ValueError, match="exemplar contains NaN or infinite values"):
        exemplar(sd15, torch.full((1, 64, 64, 3), float("nan")))
    with pytest.raises(ValueError, match="exemplar holds 2 images, exemplar_map 3"):
        exemplar(sd15, tiny.picture(batch=2), tiny.street_map(96, 128, batch=3))
    with pytest.raises(ValueError, match="they share no class"):
        exemplar(
            sd15,
            exemplar_map=labelled(torch.full((1, 8, 8), 10)),
            target_map=labelled(torch.zeros(1, 8, 8), "Cityscapes / BDD100K"),
        )
    for more, says in (
        ({"strength": float("nan")}, "strength is nan"),
        ({"end_percent": 2.0}, "end_percent is 2.0"),
        ({"levels": "3"}, "levels is '3'"),
        ({"mask": torch.full((1, 4, 4), float("inf"))}, "mask contains NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            exemplar(sd15, **more)
    with pytest.raises(ValueError, match="the vae input is empty"):
        am_adapter.apply(sd15, None, tiny.picture(), tiny.street_map(), tiny.street_map())


def test_maps_that_look_wrong_are_told(sd15, caplog):
    one = labelled(torch.full((1, 64, 64), 3))
    assert tiny.sample(exemplar(sd15, exemplar_map=one, target_map=one), steps=1).isfinite().all() and "lacks" not in caplog.text
    exemplar(sd15, tiny.picture(64, 64), one)
    assert "lacks classes of target_map, which keep the model's own look: sky (" in caplog.text and "road (" not in caplog.text
    void = labelled(torch.full((1, 64, 64), VOID))
    for mode in ("class_bias", "hard_mask"):
        assert tiny.sample(exemplar(sd15, target_map=void, mode=mode), steps=1).isfinite().all()
    assert "target_map is void everywhere" in caplog.text
    exemplar(sd15, tiny.picture(64, 64), tiny.street_map(64, 128))
    assert "has 64x64 pixels, its map 128x64; the map is stretched" in caplog.text
    cityscapes = named_palette("Cityscapes / BDD100K")
    exemplar(sd15, exemplar_map=labelled(torch.full((1, 96, 128), cityscapes.label("sky", "test")), cityscapes.name))
    assert "matched by name" in caplog.text


# ControlNeXt


@pytest.fixture
def control(folder):
    return am_adapter_controlnext.load("control.safetensors")


def test_a_hint_acts_on_all_rows_and_nothing_else_does(sd15, control):
    with_map = am_adapter_controlnext.apply(sd15, control, tiny.street_map())
    for cfg in (0.0, 1.0, 5.0):
        assert not torch.equal(tiny.sample(with_map, cfg=cfg), tiny.sample(sd15, cfg=cfg))
    same = am_adapter_controlnext.apply(sd15, control, image=tiny.street_map().to_image())
    assert torch.equal(tiny.sample(same), tiny.sample(with_map))
    assert am_adapter_controlnext.apply(sd15, control, tiny.street_map(), strength=0.0) is sd15
    for size, batch in (((13, 19), 1), ((16, 24), 3)):
        assert tiny.sample(with_map, size=size, batch=batch, steps=1).isfinite().all()


def test_controls_that_do_not_fit_are_refused(sd15, sdxl, control, folder):
    apply = am_adapter_controlnext.apply
    for more, says in (({}, "neither is"), ({"semantic_map": tiny.street_map(), "image": tiny.picture()}, "both are")):
        with pytest.raises(ValueError, match=says):
            apply(sd15, control, **more)
    with pytest.raises(ValueError, match="image contains NaN or infinite values"):
        apply(sd15, control, image=torch.full((1, 8, 8, 3), float("nan")))
    with pytest.raises(ValueError, match="the hint has 2 images, but 3 latents"):
        tiny.sample(apply(sd15, control, tiny.street_map(batch=2)), batch=3)
    save_file(
        {k: v.contiguous() for k, v in ControlNeXt(ControlNeXtLayout(out_channels=320)).state_dict().items()},
        folder / "sd15.safetensors",
    )
    with pytest.raises(ValueError, match=r"adds 320 channels, but this MODEL \(TinySD15\) has 32"):
        apply(sd15, am_adapter_controlnext.load("sd15.safetensors"), tiny.street_map())
    with pytest.raises(ValueError, match=r"is an AM-Adapter matcher. Load it with Load AM-Adapter"):
        am_adapter_controlnext.load("matcher.safetensors")


def test_the_exemplar_is_read_with_its_own_map(sd15, control):
    seen = []
    hook = control.patcher.model.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].clone()))
    try:
        target, own = tiny.street_map(128, 128, ground=0.7), tiny.street_map(96, 128)
        patched = exemplar(am_adapter_controlnext.apply(sd15, control, target), exemplar_map=own, target_map=target)
        tiny.sample(patched, steps=1)
    finally:
        hook.remove()
    assert [tuple(hint.shape) for hint in seen] == [(1, 3, 96, 128), (1, 3, 128, 128)]
    assert torch.equal(seen[0], own.to_image().movedim(-1, 1)) and torch.equal(seen[1], target.to_image().movedim(-1, 1))


def test_weights_of_the_unet_come_as_a_patch(sd15, folder):
    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = sd15.model_state_dict()[f"diffusion_model.{key}"]
    save_file({key: torch.full_like(weight, 0.1)}, folder / "unet.safetensors")
    plain, changed = (
        am_adapter_controlnext.load("control.safetensors", *more) for more in ((), ("unet.safetensors", "increments"))
    )
    with_map = am_adapter_controlnext.apply(sd15, plain, tiny.street_map())
    with_both = am_adapter_controlnext.apply(sd15, changed, tiny.street_map())
    before = tiny.sample(with_map, steps=1)
    assert not torch.equal(tiny.sample(with_both, steps=1), before) and torch.equal(tiny.sample(with_map, steps=1), before)
    save_file({"other": weight}, folder / "foreign.safetensors")
    with pytest.raises(ValueError, match="fits no weight of this MODEL"):
        am_adapter_controlnext.apply(
            sd15, am_adapter_controlnext.load("control.safetensors", "foreign.safetensors"), tiny.street_map()
        )


# The preview and the trainers' networks


def test_the_preview_shows_what_is_read(sd15):
    """Where classes decide alone, each place of the picture shows a piece of the exemplar's same class."""
    colours = tiny.street_map(128, 128)
    patched = exemplar(sd15, colours.to_image(), colours, tiny.street_map(128, 128, ground=0.25), mode="hard_mask")
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    run = nodes.ExemplaryAMMatchPreview.execute(patched, tiny.conditioning(sd15, "a street"), latent, 0.5, 0).args
    correspondence, attention, coverage = run
    assert correspondence.shape == attention.shape == (1, 512, 512, 3) and 0 < float(attention.mean()) < 1
    road = torch.tensor(named_palette("playground").colours[3]) / 255
    assert torch.allclose(correspondence[0, 256:], road, atol=1e-4)
    assert "road: 75.0 %, 50.0 %" in coverage and "Warning" not in coverage
    with pytest.raises(ValueError, match="no exemplar"):
        nodes.ExemplaryAMMatchPreview.execute(sd15, tiny.conditioning(sd15, "a street"), latent, 0.5, 0)


def test_the_matcher_alone_learns(sd15):
    unet = sd15.model.diffusion_model.requires_grad_(False)
    matcher, control = Matcher(MATCHER), ControlNeXt(CONTROLNEXT).requires_grad_(False)
    predict = am_adapter_training.MatchedUNet(unet, control, matcher)
    x, labels = torch.randn(2, 4, 8, 8), tiny.street_map(batch=2).labels
    hint, context = torch.rand(2, 3, 64, 64), torch.randn(2, 77, 64)
    predict(x, torch.tensor([500, 20]), context, labels, hint, (x.flip(0), labels, hint)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in matcher.parameters())
    assert sum(float(p.grad.abs().sum()) for p in matcher.parameters()) > 0 and all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_schemas_match_their_functions(node):
    schema = node.define_schema()
    node.GET_SCHEMA()
    assert schema.node_id == node.__name__ and [i.id for i in schema.inputs] == list(inspect.signature(node.execute).parameters)


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "cannot be read as JSON"),
        ('{"stage": "matcher", "steps_": 1}', "missing: base, data, output. unknown: steps_"),
        ('{"stage": "three", "base": "a", "data": "b", "output": "c"}', "stage is 'three'"),
        ('{"stage": "matcher", "base": "a", "data": "b", "output": "c"}', "needs controlnext"),
        ('{"stage": "controlnext", "base": "a", "data": "b", "output": "c", "resolution": 100}', "multiple of 64"),
    ],
)
def test_a_configuration_says_what_is_wrong(text, says, tmp_path):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        am_adapter_training.AMAdapterRecipe.from_file(tmp_path / "recipe.json")


def test_a_users_pairs_train_both_stages(tmp_path, monkeypatch):
    """The whole trainer for two steps of each stage, on the playground's base; both files load and act."""
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        for folder, image in (("images", tiny.picture(70, 90)), ("maps", tiny.street_map(70, 90).to_image())):
            Image.fromarray((image[0] * 255).round().byte().numpy()).save(tmp_path / folder / f"{name}.png")
    common = {"base": "playground", "data": str(tmp_path), "output": str(tmp_path), "palette": "playground", "resolution": 64}
    for more in (
        {"stage": "controlnext", "name": "control", "train_unet": True},
        {"stage": "matcher", "controlnext": str(tmp_path / "control.safetensors"), "snr_gamma": 5, "timestep_density": "mode"},
    ):
        config = tmp_path / "config.json"
        config.write_text(json.dumps({**common, **more, "batch": 2, "steps": 2}))
        assert run_recipe(am_adapter_training.AMAdapterRecipe, am_adapter_training.train, config) == 0
    monkeypatch.setattr(folders, "path", lambda folder, file, *more: str(tmp_path / file))
    loaded = am_adapter_controlnext.load("control.safetensors", "control_unet.safetensors", "increments")
    with_map = am_adapter_controlnext.apply(playground.load_model(), loaded, tiny.street_map())
    patched = exemplar(with_map, adapter=am_adapter.load("matcher.safetensors"))
    clip = playground.load_clip()
    prompt = sampling.encode_prompt(clip, "a street")
    image = sampling.sample_image(patched, playground.load_vae(), prompt, prompt, 0, steps=1, cfg=1.0, side=64)
    assert image.isfinite().all()
