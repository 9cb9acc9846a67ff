"""Class-adaptive attention on real tiny models: which rows and places change, what they read, what is refused; its nodes and preview."""

from __future__ import annotations

import pytest
import tiny
import torch
from pack.nodes import ca2sis_attention as nodes
from pack.py.ca2sis.regional import VARIANTS
from pack.py.host.ca2sis import attention as host
from pack.py.host.ca2sis.attention import Settings, class_prompt
from pack.py.host.schedule import PercentRange
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap

SKY, ROAD = 1, 3


def halves(b=1, h=32, w=32, left=SKY, right=ROAD):
    labels = torch.full((b, h, w), right, dtype=torch.uint8)
    labels[..., : w // 2] = left
    return SemanticMap(labels, named_palette("playground"))


def prompts(model, *names, text="a red evening", **more):
    found = None
    for name in names:
        found = class_prompt(name, tiny.conditioning(model, f"{text} {name}"), prompts=found, **more)
    return found


def adaptive(model, *names, semantic_map=None, base=None, **settings):
    semantic_map = halves() if semantic_map is None else semantic_map
    return host.apply(model, semantic_map, prompts(model, *(names or ("sky",))), base, Settings(**settings))


def attention_results(model, size=(16, 16), **more):
    """What the first layer's attn2 returns in the first call, [rows, h, w, c], and the kinds of its rows."""
    table, found = model.model_options["transformer_options"]["patches_replace"]["attn2"], []
    key = min(table, key=lambda k: (("input", "middle", "output").index(k[0]), k))
    spied, slot = model.clone(), table[key]

    def spy(q, k, v, options):
        out = slot(q, k, v, options)
        found.append((out.unflatten(1, tuple(options["activations_shape"][-2:])).clone(), list(options["cond_or_uncond"])))
        return out

    spied.set_model_attn2_replace(spy, *key)
    tiny.sample(spied, steps=1, size=size, **more)
    return found[0]


def rows(model, **more):
    out, kinds = attention_results(model, **more)
    size = len(out) // len(kinds)
    return tuple(out[kinds.index(kind) * size :][:size] for kind in (0, 1))


def untouched(model):
    return adaptive(model, percent=PercentRange(0.998, 0.999))


HARD = {"leak": 0.0, "base_weight": 0.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_leak_a_class_reads_its_own_text_and_the_rest_the_prompt(model, variant):
    found, negative = rows(adaptive(model, "sky", variant=variant, **HARD))
    plain, plain_negative = rows(untouched(model))
    pooled = tiny.conditioning(model, "a street")[0][1]  # SDXL's pooled vector is the base's
    alone, _ = rows(untouched(model), positive=[[tiny.conditioning(model, "a red evening sky")[0][0], pooled]])
    w = found.shape[2] // 2
    torch.testing.assert_close(found[:, :, :w], alone[:, :, :w], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, :, w:], plain[:, :, w:], rtol=1e-4, atol=1e-4)
    assert torch.equal(negative, plain_negative)


def test_a_base_of_ones_own_replaces_the_samplers(sd15):
    base = tiny.conditioning(sd15, "a quiet field")
    found, _ = rows(adaptive(sd15, "sky", base=base, **HARD))
    alone, _ = rows(untouched(sd15), positive=base)
    w = found.shape[2] // 2
    torch.testing.assert_close(found[:, :, w:], alone[:, :, w:], rtol=1e-4, atol=1e-4)


def test_strength_is_linear_in_the_first_layer(sd15):
    plain, half, full = (rows(m)[0] for m in (untouched(sd15), adaptive(sd15, strength=0.5), adaptive(sd15)))
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-4, atol=1e-4)


def test_the_early_steps_go_further_in_the_same_direction(sd15):
    plain, once, more = (rows(m)[0] for m in (untouched(sd15), adaptive(sd15), adaptive(sd15, early=3.0)))
    # The first step of this schedule is noise but for half a percent of its variance.
    torch.testing.assert_close(more - plain, 3 * (once - plain), rtol=1e-2, atol=1e-3)


def test_layers_too_coarse_for_the_map_are_left_to_the_prompt(sd15):
    """Stripes of 2 latent cells are told apart on grids of 16 and 8 cells; the middle block has 4."""
    labels = torch.tensor([SKY, ROAD], dtype=torch.uint8).repeat_interleave(4).repeat(4).expand(1, 32, 32).clone()
    stripes = SemanticMap(labels, named_palette("playground"))
    plain = tiny.sample(untouched(sd15))

    def drawn(**more):
        return tiny.sample(adaptive(sd15, "sky", "road", **{"semantic_map": stripes, "own_cells": 0.7, **more}))

    assert torch.equal(drawn(layers="middle"), plain)
    assert not torch.equal(drawn(layers="middle", own_cells=0.0), plain)
    assert not torch.equal(drawn(layers="middle", semantic_map=halves()), plain)
    assert not torch.equal(drawn(layers="input"), plain)
    speck = halves(left=ROAD)
    speck.labels[:, 0, 0] = SKY  # on no grid a cell of its own
    assert not torch.equal(drawn(layers="middle", semantic_map=speck), plain)


def test_maps_and_texts_of_one_picture_each_follow_the_batch(sd15):
    labels = torch.cat([halves().labels, halves(left=ROAD, right=SKY).labels])
    patched = adaptive(sd15, semantic_map=SemanticMap(labels, named_palette("playground")), **HARD)
    found, plain = rows(patched, batch=2)[0], rows(untouched(sd15), batch=2)[0]
    changed = ((found - plain).abs() > 1e-3).any(dim=-1)
    w = changed.shape[2] // 2
    assert changed[0, :, :w].all() and not changed[0, :, w:].any()
    assert changed[1, :, w:].all() and not changed[1, :, :w].any()
    text = torch.cat([tiny.conditioning(sd15, word)[0][0] for word in ("a dog", "a cat")])
    each = host.apply(sd15, halves(), class_prompt("sky", [[text, {}]]), settings=Settings(**HARD))
    found = rows(each, batch=2)[0]
    for row, word in enumerate(("a dog", "a cat")):
        alone = rows(untouched(sd15), positive=tiny.conditioning(sd15, word), batch=2)[0]
        torch.testing.assert_close(found[row, :, :w], alone[row, :, :w], rtol=1e-4, atol=1e-4)


def test_batches_that_fit_nothing_stop_before_sampling(sd15):
    with pytest.raises(ValueError, match="semantic_map has 2 images, but 3 latents"):
        tiny.sample(adaptive(sd15, semantic_map=halves(b=2)), batch=3)


def test_an_area_sees_its_part_of_the_map(sd15):
    """The sky on the left is outside of a condition that is limited to the right half."""
    right = tiny.conditioning(sd15, "a street", area=(16, 8, 0, 8))
    patched = adaptive(sd15, **HARD)
    torch.testing.assert_close(tiny.sample(patched, right), tiny.sample(sd15, right), rtol=1e-3, atol=1e-2)
    left = tiny.conditioning(sd15, "a street", area=(16, 8, 0, 0))
    assert not torch.allclose(tiny.sample(patched, left), tiny.sample(sd15, left), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["input", "middle", "output"])
def test_layers_choose_blocks(sd15, kind):
    table = adaptive(sd15, layers=kind).model_options["transformer_options"]["patches_replace"]["attn2"]
    assert {key[0] for key in table} == {kind}


def test_isolation_acts_in_self_attention_only_where_classes_differ(sd15):
    plain, isolated = adaptive(sd15), adaptive(sd15, isolate=1.0)
    assert "attn1" not in plain.model_options["transformer_options"]["patches_replace"]
    assert not torch.equal(tiny.sample(plain), tiny.sample(isolated))
    one = halves(right=SKY)
    torch.testing.assert_close(
        tiny.sample(adaptive(sd15, semantic_map=one, isolate=1.0)),
        tiny.sample(adaptive(sd15, semantic_map=one)),
        rtol=1e-3,
        atol=1e-2,
    )


def test_isolation_leaves_fine_grids_alone(sd15, monkeypatch):
    monkeypatch.setattr(host, "ISOLATED_CELLS", 0)
    assert torch.equal(tiny.sample(adaptive(sd15, isolate=1.0)), tiny.sample(adaptive(sd15)))


def test_texts_are_projected_once_per_run(sd15):
    calls = []
    block = next(iter(host.hooks.attention_blocks(sd15.model.diffusion_model).values()))
    hook = block.attn2.to_k.register_forward_hook(lambda module, inputs, out: calls.append(inputs[0].shape[0]))
    try:
        tiny.sample(adaptive(sd15, "sky", "road"), steps=4)
    finally:
        hook.remove()
    assert calls.count(1) == 2 and calls.count(2) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_weights(dtype, variant):
    model = tiny.tiny_model(scale=0.3)
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    model.model.manual_cast_dtype = None
    found = tiny.sample(adaptive(model, "sky", "road", variant=variant, leak=0.0, base_weight=0.0, isolate=1.0))
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(model))


def test_prompts_of_any_lengths_and_maps_of_any_size(sd15):
    long = class_prompt("road", tiny.conditioning(sd15, "word " * 200), prompts=prompts(sd15, "sky"))
    for semantic_map in (halves(h=1, w=2), halves(h=301, w=77)):
        assert tiny.sample(host.apply(sd15, semantic_map, long), size=(13, 19)).isfinite().all()


def test_what_cannot_work_stops_at_the_node(sd15, sdxl):
    for more, says in (
        ({"strength": float("nan")}, "strength is nan"),
        ({"leak": -0.1}, "leak is -0.1"),
        ({"isolate": 2.0}, "isolate is 2.0"),
        ({"early": 0.5}, "early is 0.5; it must be a number from 1 to 8"),
        ({"variant": "both"}, "variant is 'both'"),
        ({"layers": "some"}, "layers is 'some'"),
    ):
        with pytest.raises(ValueError, match=says):
            adaptive(sd15, **more)
    with pytest.raises(ValueError, match="there is no Class Conditioning"):
        host.apply(sd15, halves(), host.ClassPrompts())
    with pytest.raises(ValueError, match=r"classes: 'skyy' is not a class .* Did you mean 'sky'"):
        adaptive(sd15, "skyy")
    with pytest.raises(ValueError, match=r"conditioning of 'sky' has width 2048, .* reads width 64"):
        host.apply(sd15, halves(), prompts(sdxl, "sky"))
    with pytest.raises(ValueError, match="is empty"):
        class_prompt("sky", [])
    with pytest.raises(ValueError, match="classes is empty"):
        class_prompt(" ", tiny.conditioning(sd15, "a"))
    with pytest.raises(ValueError, match="NaN"):
        class_prompt("sky", [[torch.full((1, 3, 64), torch.nan), {}]])


def test_a_class_that_the_map_does_not_show_is_said_and_left_out(sd15, caplog):
    assert adaptive(sd15, "tree") is sd15
    assert "'tree'" in caplog.text and "sky" in caplog.text


def test_combined_conditionings_are_read_together_and_limits_are_said(sd15, caplog):
    both = [*tiny.conditioning(sd15, "a"), *tiny.conditioning(sd15, "b", start_percent=0.5)]
    assert class_prompt("sky", both).items[0].tokens.shape == (1, 154, 64)
    assert "start_percent" in caplog.text


def test_the_nodes_chain(sd15):
    run = nodes.ExemplaryCA2SISClassConditioning.execute
    (first,) = run("sky", tiny.conditioning(sd15, "a"), 1.0).args
    (both,) = run("road", tiny.conditioning(sd15, "b"), 1.0, first).args
    assert [len(p.items) for p in (first, both)] == [1, 2]
    values = (1.0, 0.0, 1.0, 0.05, 0.2, VARIANTS[0], 0.0, "all")
    (patched,) = nodes.ExemplaryCA2SISAttention.execute(sd15, halves(), both, *values).args
    (same,) = nodes.ExemplaryCA2SISAttention.execute(sd15, halves(), both, *values, early=host.DEFAULTS.early).args
    assert torch.equal(tiny.sample(patched), tiny.sample(same))
    assert not torch.equal(tiny.sample(patched), tiny.sample(sd15))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_preview_shows_what_is_read_where(model, variant):
    patched = adaptive(model, "sky", "road", variant=variant, **HARD)
    latent, positive = {"samples": torch.zeros(2, 4, 16, 24)}, tiny.conditioning(model, "a street")

    def look(patched, percent):
        return nodes.ExemplaryCA2SISAttentionPreview.execute(percent, 0, patched, positive, latent)

    with torch.inference_mode():
        image, shares, report = look(patched, 0.3).args
    half = shares.shape[2] // 2
    assert image.shape[0] == 1 and shares.shape[0] == 3 and image.shape[1:] == shares.shape[1:]
    assert shares[1, :, :half].min() > 0.99 and shares[2, :, half:].min() > 0.99 and shares[0].max() < 0.01
    assert [line.split()[0] for line in report.splitlines()] == ["base", "sky", "road"]
    seen = [tuple((image[0, 0, column] * 255).round().byte().tolist()) for column in (0, -1)]
    assert [f"#{bytes(colour).hex()}:" in line for colour, line in zip(seen, report.splitlines()[1:])] == [True, True]
    assert host.OBSERVER not in patched.model_options["transformer_options"]
    with pytest.raises(ValueError, match="has no class-adaptive attention"):
        look(model, 0.3)
    late = adaptive(model, percent=PercentRange(0.9, 1.0))
    with pytest.raises(ValueError, match="no layer acts"), torch.inference_mode():
        look(late, 0.1)
