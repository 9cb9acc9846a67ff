"""What every technique inherits from the host rooms (lines 1-8, 10 and 13 of the contract), shown on a probe and on the layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import foreign
import pytest
import tiny
import torch
from applied import classes, exemplar, tensors_in
from pack.py.host import grids, hooks
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.host.run import KEY, RUN, current_run
from pack.py.host.schedule import PercentRange
from pack.py.host.slots import AttentionSlot
from pack.py.ifadapter.instances import Instance, Instances

WHOLE_RUN = PercentRange()


@dataclass(frozen=True, eq=False)
class Probe:
    """The smallest technique: adds a number to the conditional rows and writes down what it saw."""

    amount: float
    seen: list
    percent: PercentRange

    def __deepcopy__(self, memo):
        return self

    def before_run(self, run):
        self.seen.append("run")

    def active(self, options):
        run = current_run(options)
        return run is not None and run.inside(self.percent, options)

    def __call__(self, q, k, v, options, text):
        run = current_run(options)
        self.seen.append(run.sigma(options))
        change = torch.zeros_like(text)
        for _, first, last in grids.conditional_chunks(options, len(q)):
            change[first:last] = self.amount
        return change


def probed(model, amount=0.5, percent=WHOLE_RUN, name="attn2"):
    probe = Probe(amount, [], percent)
    return hooks.install(model, {name: probe}, hooks.text_layers(model, "Probe")), probe


BOXES = Instances((Instance((0.0, 0.0, 0.5, 0.6), "a red car"), Instance((0.4, 0.5, 1.0, 1.0), "a cat")))


def layout(model, instances=BOXES, **more):
    return ifadapter.apply(model, tiny.TinyCLIP(tiny.text_width(model)), instances, **more)


TECHNIQUES = {"probe": lambda model: probed(model)[0], "layout": layout, "exemplar": exemplar, "classes": classes}


@pytest.fixture(params=TECHNIQUES)
def technique(request):
    return TECHNIQUES[request.param]


def same(a, b):
    return torch.equal(a, b)


# Line 1


def test_the_model_without_the_node_samples_the_same_bits_before_and_after(model, technique):
    before = tiny.sample(model)
    assert not same(tiny.sample(technique(model)), before)
    assert same(tiny.sample(model), before)


@pytest.mark.parametrize(
    "nothing", [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}, {"start_percent": 0.8, "end_percent": 0.2}]
)
def test_strength_zero_and_an_empty_range_are_the_model_itself(model, nothing):
    assert same(tiny.sample(layout(model, **nothing)), tiny.sample(model))
    begin, end = nothing.get("start_percent", 0.0), nothing.get("end_percent", 1.0)
    settings = {"strength": nothing.get("strength", 1.0), "percent": PercentRange(begin, end)}
    assert same(tiny.sample(classes(model, **settings)), tiny.sample(model))


def test_a_range_between_two_steps_changes_nothing(model):
    assert same(tiny.sample(layout(model, start_percent=0.998, end_percent=0.999)), tiny.sample(model))
    assert same(tiny.sample(classes(model, percent=PercentRange(0.998, 0.999))), tiny.sample(model))


def test_an_instance_of_strength_zero_changes_nothing(sd15):
    patched = layout(sd15, Instances((Instance((0, 0, 1, 1), "a car", strength=0.0),)))
    assert same(tiny.sample(patched), tiny.sample(sd15))


# Line 2


def test_branches_do_not_see_each_other_in_either_order(model, technique):
    with_node, plain = technique(model), model.clone()
    first = tiny.sample(with_node), tiny.sample(plain)
    second = tiny.sample(plain), tiny.sample(with_node)
    assert same(first[0], second[1]) and same(first[1], second[0])
    assert same(first[1], tiny.sample(model))


def test_the_same_node_twice_with_different_settings(sd15):
    one, two = probed(sd15, 0.25)[0], probed(sd15, 0.5)[0]
    both = probed(one, 0.25)[0]
    # In this probe two quarters are one half, up to the rounding of adding twice.
    torch.testing.assert_close(tiny.sample(both), tiny.sample(two), rtol=1e-3, atol=1e-2)
    assert not same(tiny.sample(one), tiny.sample(two))


def test_of_two_layouts_the_later_one_wins_where_both_are(sd15):
    whole = (0.0, 0.0, 1.0, 1.0)
    first, second = (Instances((Instance(whole, phrase),)) for phrase in ("a dog", "a cat"))
    torch.testing.assert_close(
        tiny.sample(layout(layout(sd15, first), second)), tiny.sample(layout(sd15, second)), rtol=1e-3, atol=1e-2
    )


# Line 3


def test_inputs_are_not_changed(model, technique):
    def snapshot(patcher):
        return repr(patcher.model_options), repr(patcher.wrappers), repr(patcher.callbacks), dict(patcher.object_patches)

    positive = tiny.conditioning(model, "a street")
    before, kept = snapshot(model), copy.deepcopy(positive)
    patched = technique(model)
    assert snapshot(model) == before
    installed = snapshot(patched)
    tiny.sample(patched, positive)
    assert snapshot(model) == before and snapshot(patched) == installed
    assert positive[0][1].keys() == kept[0][1].keys() and same(positive[0][0], kept[0][0])


# Line 4


def test_five_chained_clones_add_no_tensors(model, technique):
    patched = technique(model)
    before = tensors_in(patched)
    clones = [patched]
    for _ in range(5):
        clones.append(clones[-1].clone())
    assert tensors_in(*clones) == before
    assert same(tiny.sample(clones[-1]), tiny.sample(patched))


def test_a_slot_is_never_in_two_models(model, technique):
    patched = technique(model)
    clone = patched.clone()
    for name, table in patched.model_options["transformer_options"]["patches_replace"].items():
        for key, slot in table.items():
            other = clone.model_options["transformer_options"]["patches_replace"][name][key]
            assert isinstance(slot, AttentionSlot) and other is not slot and other.techniques == slot.techniques


def test_add_on_a_clone_leaves_the_original_alone(model, technique):
    patched = technique(model)
    before = tiny.sample(patched)
    extended = foreign.image_adapter(patched)
    assert not same(tiny.sample(extended), before)
    assert same(tiny.sample(patched), before)


def test_deep_copied_options_keep_working(sd15, technique):
    patched = technique(sd15)
    copied = patched.clone()
    copied.model_options = copy.deepcopy(copied.model_options)
    assert same(tiny.sample(copied), tiny.sample(patched))


# Line 5


@pytest.mark.parametrize("pack", foreign.PACKS)
@pytest.mark.parametrize("they_first", [True, False])
def test_stacks_with_other_packs_in_both_orders(sd15, technique, pack, they_first):
    other = foreign.PACKS[pack]
    stacked = technique(other(sd15)) if they_first else other(technique(sd15))
    found = tiny.sample(stacked)
    assert found.isfinite().all()
    assert not same(found, tiny.sample(technique(sd15))), "the other pack has no effect"
    assert not same(found, tiny.sample(other(sd15))), "we have no effect"


def test_an_occupant_and_a_later_one_are_both_summands(sd15):
    """The order of packs does not matter for what they add: 0.5 below us, and 0.5 added to us, are the same number."""
    below, above = probed(foreign.image_adapter(sd15))[0], foreign.image_adapter(probed(sd15)[0])
    torch.testing.assert_close(tiny.sample(below), tiny.sample(above), rtol=1e-3, atol=1e-2)


def test_an_added_callback_is_called_inside_its_sigmas_only(sd15):
    patched = probed(sd15)[0]
    assert same(tiny.sample(foreign.image_adapter(patched, sigma_start=0.0, sigma_end=-1.0)), tiny.sample(patched))
    inside = foreign.image_adapter(patched, sigma_start=1e9, sigma_end=0.0)
    assert same(tiny.sample(inside), tiny.sample(foreign.image_adapter(patched)))


def test_an_occupant_of_the_two_part_key_is_called(sd15):
    occupied = foreign.image_adapter(sd15, key=("middle", 0))
    exact = foreign.image_adapter(sd15, key=("middle", 0, 0))
    assert same(tiny.sample(probed(occupied)[0]), tiny.sample(probed(exact)[0]))


def test_the_occupants_own_to_and_models_are_reached(sd15):
    class Moving(foreign.AddOccupant):
        moved: list = []

        def to(self, target):
            self.moved.append(target)
            return self

        def models(self):
            return ["its network"]

    model = sd15.clone()
    model.set_model_attn2_replace(Moving(foreign.shift, amount=0.5), *foreign.LAYER)
    patched = probed(model)[0]
    assert patched.model_patches_models() == ["its network"]
    patched.model_patches_to(torch.device("cpu"))
    assert Moving.moved == [torch.device("cpu")]


def test_an_attention_override_of_somebody_is_used(sd15, technique):
    calls = []

    def override(func, *args, **kwargs):
        calls.append(args[0].shape[0])
        return func(*args, **kwargs)

    patched = technique(sd15)
    before = tiny.sample(patched)
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert same(tiny.sample(patched), before) and calls


# Line 6


def test_foreign_wrappers_and_callbacks_survive(sd15, technique):
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append("wrapper")
        return executor(*args, **kwargs)

    kinds = comfy.patcher_extension
    theirs = sd15.clone()
    for kind in (kinds.WrappersMP.OUTER_SAMPLE, kinds.WrappersMP.DIFFUSION_MODEL):
        theirs.add_wrapper_with_key(kind, "theirs", wrapper)
    theirs.add_callback_with_key(kinds.CallbacksMP.ON_CLONE, "theirs", lambda old, new: seen.append("clone"))
    patched = technique(technique(theirs))
    assert "clone" in seen
    seen.clear()
    tiny.sample(patched, steps=2)
    assert seen.count("wrapper") >= 3  # once around sampling, once per model call
    assert len(patched.get_wrappers(kinds.WrappersMP.OUTER_SAMPLE, KEY)) == 1


# Line 7


@pytest.mark.parametrize("error", [RuntimeError("broken"), comfy.model_management.InterruptProcessingException(), MemoryError()])
def test_after_an_error_in_the_middle_the_next_run_is_clean(sd15, technique, error):
    patched = technique(sd15)
    before = tiny.sample(patched)

    def failing(step, x0, x, total):
        raise error

    with pytest.raises(type(error)):
        tiny.sample(patched, callback=failing)
    assert RUN not in patched.model_options["transformer_options"]
    assert same(tiny.sample(patched), before)
    assert same(tiny.sample(sd15), tiny.sample(sd15.clone()))


def test_the_run_forgets_everything(sd15):
    runs = []

    def spy(executor, *args, **kwargs):
        runs.append(current_run(kwargs.get("transformer_options") or args[5]))
        return executor(*args, **kwargs)

    patched = layout(sd15)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "spy", spy)
    tiny.sample(patched)
    assert runs[0] is runs[-1] and not runs[0]._kept and runs[0].guider is None


# Line 8


def test_negative_rows_are_untouched(sd15, technique):
    """CFG 0 shows the negative prediction alone."""
    assert same(tiny.sample(technique(sd15), cfg=0.0), tiny.sample(sd15, cfg=0.0))


def test_without_a_negative_call(sd15, technique):
    found = tiny.sample(technique(sd15), cfg=1.0)
    assert found.isfinite().all() and not same(found, tiny.sample(sd15, cfg=1.0))


def reordered(model, order):
    """Makes the host run its conditions in another order, or each alone."""

    def wrapper(apply_model, args):
        kinds, c = args["cond_or_uncond"], args["c"]
        x, t = args["input"].chunk(len(kinds)), args["timestep"].chunk(len(kinds))
        parts = {name: value.chunk(len(kinds)) for name, value in c.items() if isinstance(value, torch.Tensor)}
        results = [None] * len(kinds)
        for chunks in [[i] for i in range(len(kinds))] if order == "alone" else [list(reversed(range(len(kinds))))]:
            options = {**c["transformer_options"], "cond_or_uncond": [kinds[i] for i in chunks]}
            options["uuids"] = [c["transformer_options"]["uuids"][i] for i in chunks]
            call = {
                **c,
                **{name: torch.cat([value[i] for i in chunks]) for name, value in parts.items()},
                "transformer_options": options,
            }
            out = apply_model(torch.cat([x[i] for i in chunks]), torch.cat([t[i] for i in chunks]), **call).chunk(len(chunks))
            for place, i in enumerate(chunks):
                results[i] = out[place]
        return torch.cat(results)

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize("order", ["reversed", "alone"])
def test_the_order_and_number_of_conditions_in_a_call_do_not_matter(sd15, technique, order):
    patched = technique(sd15)
    # Another batch order sums in another order: float32 rounding, amplified by random weights.
    torch.testing.assert_close(tiny.sample(reordered(patched, order)), tiny.sample(patched), rtol=1e-3, atol=1e-2)


def test_several_positives_with_masks_ranges_and_areas(sd15, technique):
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    positives = [
        *tiny.conditioning(sd15, "a street", mask=mask, mask_strength=1.0),
        *tiny.conditioning(sd15, "a house", start_percent=0.0, end_percent=0.4),
        *tiny.conditioning(sd15, "a tree", area=(8, 10, 4, 2)),
        *tiny.conditioning(sd15, " ".join(["word"] * 200)),
    ]
    found = tiny.sample(technique(sd15), positives, steps=3)
    assert found.isfinite().all() and not same(found, tiny.sample(sd15, positives, steps=3))


def test_scheduled_weight_hooks(sd15, technique):
    """Hooks make the host run conditions in separate calls and swap weights in between."""
    hooked = tiny.conditioning(sd15, "a street", hooks=weight_hooks(sd15))
    patched = technique(sd15)
    found = tiny.sample(patched, hooked, steps=3)
    assert found.isfinite().all() and not same(found, tiny.sample(patched, tiny.conditioning(sd15, "a street"), steps=3))
    assert same(found, tiny.sample(patched, hooked, steps=3))


def weight_hooks(model):
    """A LoRA-like change of every text projection in the second half of the run, as a HookGroup."""
    group = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights = {
        key: ("diff", (torch.ones_like(weight) * 0.05,))
        for key, weight in model.model_state_dict().items()
        if "attn2.to_k" in key or "attn2.to_v" in key
    }
    hook.need_weight_init = False
    group.add(hook)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    group.set_keyframes_on_hooks(keyframes)
    return group


# Line 9


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_latent_of_a_batch_is_treated_alike(sd15, technique, batch):
    found = tiny.sample(technique(sd15), batch=batch)
    torch.testing.assert_close(found[:1], tiny.sample(technique(sd15), batch=1), rtol=1e-3, atol=1e-2)


# Line 10


@pytest.mark.parametrize("size", [(16, 24), (13, 19), (17, 11), (32, 8), (1, 1)])
def test_any_latent_size(model, technique, size):
    if size == (1, 1) and model.model.model_config.unet_config["context_dim"] == 2048:
        pytest.skip("the host's own SDXL upsampling needs two cells")
    found = tiny.sample(technique(model), size=size)
    assert found.shape[-2:] == size and found.isfinite().all() and not same(found, tiny.sample(model, size=size))


def test_a_deep_shrink_changes_the_grid_in_the_middle(sd15, technique):
    def shrink(h, options):
        if options["block"][1] == 2:
            h = torch.nn.functional.interpolate(h, scale_factor=0.5)
        return h

    def grow(h, hsp, options):
        return torch.nn.functional.interpolate(h, size=hsp.shape[-2:]), hsp

    shrunk = sd15.clone()
    shrunk.set_model_input_block_patch(shrink)
    shrunk.set_model_output_block_patch(grow)
    found = tiny.sample(technique(shrunk), size=(20, 12))
    assert found.isfinite().all() and not same(found, tiny.sample(shrunk, size=(20, 12)))


# Line 11


@pytest.mark.parametrize("words", [10, 100, 200])
def test_prompts_of_one_two_and_three_chunks(sd15, technique, words):
    prompt = tiny.conditioning(sd15, " ".join(["word"] * words))
    assert not same(tiny.sample(technique(sd15), prompt), tiny.sample(sd15, prompt))


# Line 13


@pytest.mark.parametrize("prediction", ["eps", "v", "zsnr", "flow"])
def test_percent_is_closed_at_both_ends_for_every_kind_of_model(prediction):
    model = tiny.tiny_model(prediction=prediction)
    for percent, calls in ((PercentRange(), 6), (PercentRange(0.0, 0.4), 2), (PercentRange(0.6, 1.0), 2)):
        patched, probe = probed(model, percent=percent)
        tiny.sample(patched, steps=6, scheduler="simple")
        sigmas = sorted(set(probe.seen[1:]), reverse=True)
        assert probe.seen[0] == "run" and len(sigmas) >= calls
        if percent.start == 0.0:
            full, everything = probed(model)
            tiny.sample(full, steps=6, scheduler="simple")
            assert sigmas[0] == max(everything.seen[1:])
        if percent == PercentRange():
            assert len(sigmas) == 6


def test_percent_follows_a_schedule_that_a_later_node_changed(sd15):
    import comfy.model_sampling

    class Shifted(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    patched, probe = probed(sd15, percent=PercentRange(0.0, 0.5))
    shifted = Shifted()
    shifted.set_parameters(shift=3.0)
    patched.add_object_patch("model_sampling", shifted)
    tiny.sample(patched, steps=4, scheduler="simple")
    assert len(probe.seen) > 1 and min(probe.seen[1:]) >= shifted.percent_to_sigma(0.5)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s_ancestral", "ddim", "uni_pc", "lcm"])
def test_samplers_and_partial_denoising(sd15, technique, sampler):
    patched = technique(sd15)
    for more in ({}, {"denoise": 0.5}, {"start_step": 1, "last_step": 2, "steps": 3}):
        assert tiny.sample(patched, sampler=sampler, **more).isfinite().all()


def test_frames_of_a_context_window_are_looked_up():
    class Window:
        index_list, dim = [4, 5, 6], 0

    assert grids.frame_indices({"context_window": Window()}, 3) == (4, 5, 6)
    assert grids.frame_indices({"ad_params": {"sub_idxs": [2, 3]}}, 2) == (2, 3)
    assert grids.frame_indices({}, 2) == (0, 1)


def test_a_model_without_text_attention_is_named(sd15):
    class Flux(torch.nn.Module):
        pass

    stranger = sd15.clone()
    stranger.add_object_patch("diffusion_model", Flux())
    with pytest.raises(ValueError, match="which is not supported"):
        layout(stranger)
