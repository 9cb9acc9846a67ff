"""IFAdapter with weights on real tiny models: what the layers gain, who reads what, what is refused; files, LoRAs and other packs."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import foreign
import pytest
import tiny
import torch
from pack.lab.trainers import ifadapter as ifadapter_training
from pack.nodes import ifadapter as nodes
from pack.py.host import folders, hooks, networks
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.host.ifadapter import text as ifadapter_text
from pack.py.host.ifadapter import trained
from pack.py.ifadapter import checkpoint
from pack.py.ifadapter.attention import InstanceRegions, compute_injection, project_tokens
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.ifadapter.model import SDXL, Config, IFAdapter

PLACES = {
    "sd15": [("input", 1, 0), ("middle", 0, 0), ("output", 3, 0)],
    "sdxl": [("middle", 0, 0), ("middle", 0, 1), ("output", 0, 0), ("output", 1, 1)],
}
ENCODERS = {"sd15": (("l", 32),), "sdxl": (("l", 32), ("g", 48))}
SMALL = {
    "queries": 2,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "dim_head": 16,
    "ff_mult": 2,
    "position_width": 16,
    "frequencies": 4,
    "reduction": 8,
}
TWO = Instances((Instance((0.0, 0.0, 0.5, 0.5), "a red ball"), Instance((0.4, 0.3, 1.0, 1.0), "a blue striped cup and a star")))


def weights(name: str, unet) -> tuple[Config, dict[str, torch.Tensor]]:
    config = Config(layers=ifadapter_training.layers_of(unet, PLACES[name]), encoders=ENCODERS[name], **SMALL)
    torch.manual_seed(5)
    network = IFAdapter(config)
    for module in network.adapter_modules.values():
        module.alpha.data.fill_(1.0)
        module.to_v_ap.weight.data.mul_(20.0)  # to be seen in a tiny random model
    return config, network.state_dict()


def loaded(name: str, model) -> trained.LoadedAdapter:
    config, state = weights(name, model.model.diffusion_model)
    return trained.LoadedAdapter(networks.load(IFAdapter, state, config), config, f"{name}.safetensors")


class Kit:
    """One tiny base with its CLIP and an adapter."""

    def __init__(self, name: str, model):
        self.name, self.model, self.clip, self.adapter = name, model, tiny.tiny_clip(name == "sdxl"), loaded(name, model)

    def layout(self, instances=TWO, model=None, **more):
        return ifadapter.apply(model or self.model, self.clip, instances, adapter=self.adapter, **more)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def kit(request):
    return Kit(request.param, request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def sd15_kit(sd15):
    return Kit("sd15", sd15)


def first_change(model, size=(16, 16), **more):
    """What our technique adds in the first adapted layer of the first call: [rows, h * w, c], the layer's query, its options."""
    seen = []
    spied = model.clone()
    for key, slot in model.model_options["transformer_options"]["patches_replace"]["attn2"].items():

        def spy(q, k, v, options, slot=slot):
            if not seen:
                # The slot adds to the text attention; without techniques it is the text attention.
                plain = type(slot)(slot.occupant)(q, k, v, options)
                seen.append((slot(q, k, v, options) - plain, q, dict(options)))
            return slot(q, k, v, options)

        spied.set_model_attn2_replace(spy, *key)
    tiny.sample(spied, steps=1, size=size, **more)
    return seen[0]


@pytest.mark.parametrize("size", [(16, 16), (13, 19)])
def test_every_row_gains_the_instance_map_of_its_kind(kit, size):
    """Against the mathematics called by hand: uncond rows have boxes and zero phrases, in whatever order the host runs them."""
    change, q, options = first_change(kit.layout(strength=0.7), size=size)
    layer = next(layer for layer in kit.adapter.config.layers if layer.place == hooks.layer_key(options))
    boxes = torch.tensor([i.box for i in TWO])
    phrases = ifadapter_text.encode_for_adapter(kit.clip, [i.phrase for i in TWO], kit.adapter.config, "test")
    network = kit.adapter.patcher.model
    with torch.no_grad():
        tokens = network.conditional_and_unconditional_tokens(phrases.hidden, phrases.eot, phrases.counts, boxes)
        module = network.adapter_modules[layer.key]
        regions = InstanceRegions.from_boxes(boxes, *options["activations_shape"][-2:])
        rows = [1 - kind for kind in options["cond_or_uncond"]]
        expected = compute_injection(module, q, project_tokens(module, tokens), rows, regions, strength=0.7)
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-4)  # the difference of two float32 sums
    first, second = expected[rows.index(0)], expected[rows.index(1)]
    assert first.abs().max() > 0 and not torch.allclose(first, second), "both kinds of row gain something of their own"


def test_the_picture_changes_and_is_the_same_again(kit):
    patched = kit.layout()
    found = tiny.sample(patched)
    assert torch.equal(found, tiny.sample(patched)) and not torch.equal(found, tiny.sample(kit.model))


def test_nothing_to_do_is_the_base_bit_for_bit(kit):
    assert kit.layout(strength=0.0) is kit.model and kit.layout(Instances()) is kit.model
    assert kit.layout(start_percent=0.5, end_percent=0.5) is kit.model
    assert kit.layout(Instances((Instance((0, 0, 1, 1), "a ball", strength=0.0),))) is kit.model
    late = kit.layout(start_percent=0.998, end_percent=0.999)
    assert torch.equal(tiny.sample(late), tiny.sample(kit.model))


def test_an_untrained_adapter_changes_nothing(sd15):
    untrained = Kit("sd15", sd15)
    for module in untrained.adapter.patcher.model.adapter_modules.values():
        module.alpha.data.zero_()
    assert torch.equal(tiny.sample(untrained.layout()), tiny.sample(sd15))


def test_cond_alone_and_both_rows_together_agree(kit):
    change, _, options = first_change(kit.layout())
    alone, _, single = first_change(kit.layout(), cfg=1.0)
    assert single["cond_or_uncond"] == [0] and len(options["cond_or_uncond"]) == 2
    torch.testing.assert_close(change[[options["cond_or_uncond"].index(0)]], alone, rtol=1e-4, atol=1e-4)


def test_strengths_of_instances_and_masks_in_place_of_boxes(kit):
    apart = [Instance((0.0, 0.0, 0.5, 1.0), "a ball"), Instance((0.5, 0.0, 1.0, 1.0), "a cup")]
    change, _, options = first_change(kit.layout(Instances(tuple(apart))))
    half, _, _ = first_change(kit.layout(Instances((Instance(apart[0].box, "a ball", strength=0.5), apart[1]))))
    h, w = options["activations_shape"][-2:]
    change, half = (each.unflatten(1, (h, w)) for each in (change, half))
    torch.testing.assert_close(half[:, :, : w // 2], 0.5 * change[:, :, : w // 2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(half[:, :, w // 2 :], change[:, :, w // 2 :], rtol=1e-3, atol=1e-4)
    mask = torch.zeros(1, 64, 64)
    mask[0, :32, :32] = 1
    masked, _, _ = first_change(kit.layout(Instances((Instance((0, 0, 1, 1), "a ball", mask),))))
    masked = masked.unflatten(1, (h, w)).abs().sum(dim=-1)
    assert (masked[:, : h // 2, : w // 2] > 0).all()
    assert not masked[:, h // 2 :].any() and not masked[:, :, w // 2 :].any()


def test_masks_of_one_picture_each_follow_the_batch(kit):
    masks = torch.zeros(2, 32, 32)
    masks[0, :16], masks[1, 16:] = 1, 1
    patched = kit.layout(Instances((Instance((0, 0, 1, 1), "a ball", masks), Instance((0.6, 0, 1, 0.4), "a cup"))))
    only = kit.layout(Instances((Instance((0, 0, 1, 1), "a ball", masks),)))
    change, _, options = first_change(only, batch=2)
    h, w = options["activations_shape"][-2:]
    touched = change.unflatten(1, (h, w)).abs().amax(dim=(-1, -2)) > 0  # [rows, h]
    for row in range(4):
        upper = row % 2 == 0
        assert touched[row, : h // 2].all() == upper and touched[row, h // 2 :].all() == (not upper)
    assert tiny.sample(patched, batch=2).isfinite().all()
    with pytest.raises(ValueError, match="a batch of 2, but 3 latents"):
        tiny.sample(patched, batch=3)


def test_a_mask_that_a_condition_does_not_see_is_left_out(sd15_kit):
    mask = torch.zeros(1, 32, 32)
    mask[0, :, 20:] = 1
    patched = sd15_kit.layout(Instances((Instance((0, 0, 1, 1), "a ball", mask),)))
    left = tiny.conditioning(sd15_kit.model, "a street", area=(16, 8, 0, 0))
    right = tiny.conditioning(sd15_kit.model, "a street", area=(16, 8, 0, 8))
    whole = sd15_kit.model
    assert torch.equal(tiny.sample(patched, left, cfg=1.0), tiny.sample(whole, left, cfg=1.0))
    assert not torch.equal(tiny.sample(patched, right, cfg=1.0), tiny.sample(whole, right, cfg=1.0))


def test_keys_and_values_are_made_once_per_run(kit):
    calls = []
    module = kit.adapter.patcher.model.adapter_modules[kit.adapter.config.layers[0].key]
    handles = [
        module.to_k_ap.register_forward_hook(lambda *_: calls.append("keys")),
        kit.adapter.patcher.model.text_proj_model.proj_in.register_forward_hook(lambda *_: calls.append("resampler")),
    ]
    try:
        tiny.sample(kit.layout(), steps=4)
    finally:
        for handle in handles:
            handle.remove()
    assert calls.count("keys") == 1 and calls.count("resampler") == 2  # phrases, and the one zero of all uncond rows


def test_the_two_forms_and_masks_differ(kit):
    results = [
        tiny.sample(kit.layout(variant=trained.Variant(*v))) for v in (("published code",), ("paper",), ("published code", True))
    ]
    assert all(r.isfinite().all() for r in results)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_half_precision_on_either_side(dtype, stored):
    model = tiny.tiny_model(scale=0.3)
    config, state = weights("sd15", model.model.diffusion_model)
    patcher = networks.load(IFAdapter, {name: value.to(stored) for name, value in state.items()}, config)
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    model.model.manual_cast_dtype = None
    adapter = trained.LoadedAdapter(patcher, config, "half")
    found = tiny.sample(ifadapter.apply(model, tiny.tiny_clip(False), TWO, adapter=adapter))
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(model))


def test_the_network_is_the_hosts_to_load_and_unload(sd15_kit):
    seen = []
    network = sd15_kit.adapter.patcher.model
    tiny.sample(
        sd15_kit.layout(),
        callback=lambda *_: seen.append(
            any(each.model is not None and each.model.model is network for each in comfy.model_management.current_loaded_models)
        ),
    )
    assert all(seen) and seen
    assert not sd15_kit.model.get_additional_models()


# The text


def hidden_states(encoder, chunk):
    """Every hidden state of one encoder by hooks on its layers, as `output_hidden_states` gives them: [layers + 1 entries]."""
    states = []
    layers = encoder.transformer.text_model.encoder.layers
    handles = [layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0].clone()))]
    handles += [layer.register_forward_hook(lambda _, __, out: states.append(out.clone())) for layer in layers]
    try:
        encoder([chunk])
    finally:
        for handle in handles:
            handle.remove()
    return states


def test_phrases_are_the_raw_hidden_layers_of_every_encoder(kit):
    phrase = "a (red:1.5) ball"
    kit.clip.clip_layer(-1)
    before = kit.clip.encode_from_tokens(kit.clip.tokenize("a star"))
    found = ifadapter_text.encode_for_adapter(kit.clip, [phrase, "a cup", phrase], kit.adapter.config, "test")
    tokens = kit.clip.tokenize(phrase, disable_weights=True)
    assert found.counts.tolist() == [2 + 5, 2 + 2, 2 + 5]  # a red 1 5 ball: no weights
    parts = {
        name: hidden_states(getattr(kit.clip.cond_stage_model, f"clip_{name}"), [t[0] for t in tokens[name][0]])
        for name in tokens
    }
    for place, layer in enumerate(kit.adapter.config.text_layers):
        expected = torch.cat([parts[name][layer] for name, _ in kit.adapter.config.encoders], dim=-1)[0].float()
        torch.testing.assert_close(found.hidden[0, place], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.hidden[2, place], expected, rtol=1e-4, atol=1e-4)
    eot = torch.cat([parts[name][-2] for name, _ in kit.adapter.config.encoders], dim=-1)[0, 6].float()
    torch.testing.assert_close(found.eot[0, 0], eot, rtol=1e-4, atol=1e-4)
    # The user's CLIP skip and the last norm are as before.
    assert torch.equal(before, kit.clip.encode_from_tokens(kit.clip.tokenize("a star"))) and kit.clip.layer_idx == -1
    kit.clip.clip_layer(None)


def test_a_long_phrase_is_one_chunk_and_odd_ones_encode(kit):
    odd = ["red " * 2000, "\U0001f408\u200d\U0001f9ba", "\u05d7\u05ea\u05d5\u05dc"]
    found = ifadapter_text.encode_for_adapter(kit.clip, odd, kit.adapter.config, "test")
    assert found.hidden.shape[2] == 77 and found.counts[0] == 77 and found.hidden.isfinite().all()


# What is refused


def test_the_wrong_base_clip_or_number_stops_at_the_node(kit, sd15, sdxl, caplog):
    other = sdxl if kit.name == "sd15" else sd15
    with pytest.raises(ValueError, match=rf"{kit.name}.safetensors was trained for .*, but this MODEL is Tiny"):
        kit.layout(model=other)
    with pytest.raises(ValueError, match="this CLIP has"):
        ifadapter.apply(kit.model, tiny.tiny_clip(kit.name != "sdxl"), TWO, adapter=kit.adapter)
    with pytest.raises(ValueError, match="CLIP input is empty"):
        ifadapter.apply(kit.model, None, TWO, adapter=kit.adapter)
    many = Instances(tuple(Instance((n % 25 / 25, n // 25 / 20, 1, 1), "a ball") for n in range(500)))
    with pytest.raises(ValueError, match="500 instances; with an adapter at most 50"):
        kit.layout(many)
    for more, says in (({"strength": float("nan")}, "strength is nan"), ({"end_percent": float("nan")}, "end_percent is nan")):
        with pytest.raises(ValueError, match=says):
            kit.layout(**more)
    kit.layout(Instances(many.items[:11]), background="a field")
    assert "11 instances" in caplog.text and "background and separate" in caplog.text


def test_fifty_instances_of_any_size_sample(sd15_kit):
    items = tuple(Instance((n % 10 / 10, n // 10 / 5, n % 10 / 10 + 0.01, n // 10 / 5 + 0.3), "a ball") for n in range(50))
    assert tiny.sample(sd15_kit.layout(Instances(items)), size=(13, 19)).isfinite().all()


def test_the_published_weights_are_refused_for_stable_diffusion_15(sd15):
    adapter = trained.LoadedAdapter(None, SDXL, "spd_adapter.bin")
    with pytest.raises(ValueError, match=r"spd_adapter.bin was trained for SDXL .*1280 channels .*, but this MODEL is TinySD15"):
        ifadapter.apply(sd15, tiny.tiny_clip(True), TWO, adapter=adapter)


# Files and the node


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"ifadapter": ([str(tmp_path)], {".safetensors", ".bin"})})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def test_a_file_is_loaded_by_the_node_and_samples_as_before(shelf, sd15_kit):
    config, state = weights("sd15", sd15_kit.model.model.diffusion_model)
    checkpoint.save(shelf / "mine.safetensors", config, state)
    assert folders.files("ifadapter") == ["mine.safetensors"]
    (adapter,) = nodes.ExemplaryLoadIFAdapter.execute("mine.safetensors").args
    values = (sd15_kit.model, sd15_kit.clip, TWO, 1.0, 0.0, 1.0, "", 0.0, adapter)
    (patched,) = nodes.ExemplaryApplyIFAdapter.execute(*values).args
    assert torch.equal(tiny.sample(patched), tiny.sample(sd15_kit.layout()))


def test_a_missing_or_damaged_file_says_so(shelf):
    with pytest.raises(ValueError, match=r"gone.bin' is not in .*Download it from https"):
        nodes.ExemplaryLoadIFAdapter.execute("gone.bin")
    for name, content in (("broken.bin", b"\x80\x02 no pickle"), ("empty.safetensors", b""), ("short.safetensors", b"\xff" * 20)):
        (shelf / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"Load IFAdapter: {name}"):
            nodes.ExemplaryLoadIFAdapter.execute(name)


# Neighbours


def lora(model, name: str, seed: int):
    """A community-style LoRA on one layer, through the host's own loader."""
    key = next(k for k in model.model.diffusion_model.state_dict() if name in k and k.endswith("weight"))
    weight = model.model.diffusion_model.state_dict()[key]
    generator = torch.Generator().manual_seed(seed)
    stem = "diffusion_model." + key.removesuffix(".weight")
    content = {
        f"{stem}.lora_up.weight": torch.randn(weight.shape[0], 2, generator=generator) * 0.3,
        f"{stem}.lora_down.weight": torch.randn(2, weight.shape[1], generator=generator) * 0.3,
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, content, 1.0, 0.0)
    assert patched.patches, "the host knows this LoRA"
    return patched


def different(*pictures):
    return all(not torch.allclose(a, b, atol=1e-5) for n, a in enumerate(pictures) for b in pictures[:n])


def test_two_loras_before_and_after(kit):
    def both(model):
        return lora(lora(model, "attn2.to_q", 1), "ff.net.0.proj", 2)

    before, after = tiny.sample(kit.layout(model=both(kit.model))), tiny.sample(both(kit.layout()))
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert different(
        before, tiny.sample(kit.layout()), tiny.sample(both(kit.model)), tiny.sample(lora(kit.layout(), "attn2.to_q", 1))
    )


def test_an_occupant_of_the_slot_before_and_after(kit):
    key = kit.adapter.config.layers[0].place
    occupied = foreign.image_adapter(kit.model, key=key)
    before, after = tiny.sample(kit.layout(model=occupied)), tiny.sample(foreign.image_adapter(kit.layout(), key=key))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=5e-3)  # sums in another order, through two steps of a random model
    assert different(before, tiny.sample(kit.layout()), tiny.sample(occupied))


@pytest.mark.parametrize("pack", sorted(foreign.PACKS))
def test_other_packs_and_ours_both_act(sd15_kit, pack):
    theirs = foreign.PACKS[pack]
    ours = tiny.sample(sd15_kit.layout())
    for both in (sd15_kit.layout(model=theirs(sd15_kit.model)), theirs(sd15_kit.layout())):
        assert different(tiny.sample(both), ours, tiny.sample(theirs(sd15_kit.model)))


def test_with_and_after_the_weight_free_method(sd15_kit):
    free = ifadapter.apply(sd15_kit.model, tiny.TinyCLIP(), TWO)
    both = tiny.sample(sd15_kit.layout(model=free))
    assert different(both, tiny.sample(free), tiny.sample(sd15_kit.layout()))
