"""Real protocols of other packs and of the host's own guiders: whose rows are changed, by how much, and where a tile is located."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.samplers
import foreign
import pytest
import tiny
import torch
from applied import classes, exemplar
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from pack.py.host import grids, hooks, parts
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.host.run import current_run
from pack.py.ifadapter.instances import Instance, Instances


def boxes(model):
    layout = Instances((Instance((0.0, 0.0, 0.5, 0.6), "a red car"), Instance((0.4, 0.5, 1.0, 1.0), "a cat")))
    return ifadapter.apply(model, tiny.TinyCLIP(tiny.text_width(model)), layout)


TECHNIQUES = {"boxes": boxes, "exemplar": exemplar, "classes": classes}


@pytest.fixture(params=TECHNIQUES)
def technique(request):
    return TECHNIQUES[request.param]


@dataclass(frozen=True, eq=False)
class Witness:
    """Changes nothing and remembers the rows, grids and views of the conditional rows."""

    seen: list

    def __deepcopy__(self, memo):
        return self

    def before_run(self, run):
        pass

    def active(self, options):
        return current_run(options) is not None

    def __call__(self, q, k, v, options, text):
        found = grids.conditional_rows(current_run(options), options, q, "Witness", "nothing is seen", k)
        self.seen.extend((rows.rows, rows.grid, rows.view) for rows in found)
        return None


def witnessed(model):
    witness = Witness([])
    return hooks.install(model, {"attn1": witness}, hooks.text_layers(model, "Witness")), witness.seen


def guided(model, guider, conditions, steps=2):
    """Samples with a guider of the host as SamplerCustomAdvanced does."""
    guider.inner_set_conds(conditions)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)


def plain(model):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_cfg(5.0)
    return guider


def negative_first(model):
    """DualCFGGuider set up as plain CFG: the middle condition is the negative one."""
    guider = Guider_DualCFG(model)
    guider.set_cfg(5.0, 1.0)
    return guider


@pytest.fixture
def prompts(sd15):
    positive, negative = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, tiny.NEGATIVE)
    return {"positive": positive, "negative": negative}


# Conditions


def test_a_guider_that_lists_the_negative_first_gets_the_effect_on_its_positive_rows(sd15, prompts, technique):
    patched, dual = technique(sd15), {**prompts, "middle": prompts["negative"]}
    expected = guided(patched, plain(patched), prompts)
    torch.testing.assert_close(guided(patched, negative_first(patched), dual), expected, rtol=1e-3, atol=1e-2)
    assert float((expected - guided(sd15, plain(sd15), prompts)).abs().max()) > 0.1


def test_a_pass_over_negative_conditions_alone_is_not_changed(sd15, technique):
    """At CFG 0 with an extra negative pass nothing of the positive condition is left, so nothing of the effect either."""
    guided_too = foreign.self_attention_guidance(sd15)
    assert torch.equal(tiny.sample(technique(guided_too), cfg=0.0), tiny.sample(guided_too, cfg=0.0))


def test_a_pass_over_a_condition_of_its_own_is_not_changed(sd15, technique):
    """As perpendicular negatives make: an empty prompt that the guider does not know, first in its call."""
    import comfy.sampler_helpers

    empty = comfy.sampler_helpers.convert_cond(tiny.conditioning(sd15, ""))
    model, found = technique(sd15), []

    def post_cfg(args):
        conds = comfy.samplers.encode_model_conds(
            args["model"].extra_conds, empty, args["input"], args["input"].device, "negative"
        )
        (out,) = comfy.samplers.calc_cond_batch(
            args["model"], [conds], args["input"] * 0 + 1, args["sigma"], args["model_options"]
        )
        found.append(out)
        return args["denoised"]

    for one in (model, sd15):
        spied = one.clone()
        spied.set_model_sampler_post_cfg_function(post_cfg)
        tiny.sample(spied, steps=1)
    assert torch.equal(found[0], found[1])


def test_without_uuids_the_numbers_of_the_call_decide(sd15):
    assert [grids.is_conditional({"cond_or_uncond": [1, 0]}, chunk) for chunk in (0, 1)] == [False, True]


# Slots


def perturbation(model):
    """How much a pass with perturbed attention changes the result."""
    return tiny.sample(foreign.perturbed_attention(model), steps=1) - tiny.sample(model, steps=1)


def test_attention_that_is_perturbed_for_one_call_is_perturbed_beside_ours(sd15, technique):
    alone, beside = (float(perturbation(model).abs().mean()) for model in (sd15, technique(sd15)))
    assert beside > 0.3 * alone > 0


@pytest.mark.parametrize("key", [foreign.LAYER, foreign.LAYER[:2]])
def test_an_image_adapter_after_ours_is_the_one_before_ours(sd15, technique, key):
    """What it adds is the same number in either order, whichever key it uses."""
    before, after = technique(foreign.image_adapter(sd15, key=key)), foreign.image_adapter(technique(sd15), key=key)
    torch.testing.assert_close(tiny.sample(after), tiny.sample(before), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(tiny.sample(after), tiny.sample(technique(sd15)), atol=1e-1)


def test_image_adapters_on_both_sides_add_up(sd15, technique):
    block = foreign.LAYER[:2]
    both = foreign.image_adapter(technique(foreign.image_adapter(sd15, 0.25, key=block)), 0.25, key=block)
    torch.testing.assert_close(tiny.sample(both), tiny.sample(technique(foreign.image_adapter(sd15, 0.5))), rtol=1e-3, atol=1e-2)


# Grids


def test_tokens_that_were_tiled_are_not_taken_for_a_coarser_layer():
    options = {"original_shape": [2, 4, 16, 16], "activations_shape": [2, 32, 16, 16]}
    assert grids.layer_grid(options, 64) is None and grids.layer_grid(options, 256) == (16, 16)


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_were_multiplied_are_not_taken_for_conditions(rows):
    options = {"original_shape": [2, 4, 16, 16], "cond_or_uncond": [1, 0]}
    assert grids.chunks(options, rows) is None and len(grids.chunks(options, 2)) == 2


@pytest.mark.parametrize("they_first", [True, False])
def test_tiled_self_attention_is_left_alone_with_a_warning(sd15, caplog, they_first):
    stacked = exemplar(foreign.hyper_tile(sd15)) if they_first else foreign.hyper_tile(exemplar(sd15))
    assert tiny.sample(stacked, steps=1).isfinite().all()
    assert "Apply AM-Adapter: another node merges, tiles or multiplies the tokens" in caplog.text


# Tiles


def test_the_position_of_a_tile_is_found(sd15):
    model, seen = witnessed(foreign.tiled_diffusion(sd15))
    tiny.sample(model, steps=1, size=(16, 24))
    third = 1 / 3
    expected = {(left * third, top / 2, (left + 1) * third, (top + 1) / 2) for top in range(2) for left in range(3)}
    found = {tuple(round(side, 6) for side in view) for _, _, view in seen}
    assert found == {tuple(round(side, 6) for side in view) for view in expected}


def test_a_tile_gets_its_part_of_the_layout(sd15):
    """Boxes in the left half change tiles of the left half only."""
    left = Instances((Instance((0.0, 0.0, 0.5, 1.0), "a red car"),))
    tiled = foreign.tiled_diffusion(sd15)
    patched = ifadapter.apply(tiled, tiny.TinyCLIP(tiny.text_width(sd15)), left)
    changed = (tiny.sample(patched, steps=1) - tiny.sample(tiled, steps=1)).abs().amax(dim=(0, 1))
    assert float(changed[:, :8].min()) > 0 and float(changed[:, 8:].max()) == 0


@pytest.mark.parametrize("axis, view", [(2, (0.0, 0.25, 1.0, 0.75)), (3, (0.25, 0.0, 0.75, 1.0))])
def test_a_spatial_context_window_is_its_part_of_the_image(axis, view):
    class Run:
        latent_shape = (1, 4, 16, 16)
        step_latent = model_input = guider = None

        def get_or_make(self, key, make):
            return make()

    class Window:
        dim, index_list = axis, list(range(4, 12))

    shape = [1, 4, 16, 16]
    shape[axis] = 8
    assert grids.chunk_view(Run(), {"original_shape": shape, "context_window": Window}, 0) == view
    Window.index_list = [14, 15, 0, 1, 2, 3, 4, 5]
    assert grids.chunk_view(Run(), {"original_shape": shape, "context_window": Window}, 0) is None


@pytest.mark.parametrize(
    "name, is_warned",
    [
        ("UltimateSDUpscale", True),
        ("FaceDetailer", True),
        ("DetailerForEachPipe", True),
        ("BNK_TiledKSampler", True),
        ("KSampler", False),
        ("SamplerCustomAdvanced", False),
    ],
)
def test_a_node_that_samples_crops_is_warned_of_once(monkeypatch, caplog, name, is_warned):
    monkeypatch.setattr(parts, "executing_node", lambda: ("prompt", name, name))
    parts.warn_of_crops()
    parts.warn_of_crops()
    assert caplog.text.count("Give this node the MODEL from before Exemplary's nodes") == int(is_warned)
