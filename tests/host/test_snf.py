"""Noise fusion on real tiny models: who is asked when, what is shared and what is not, and every way of running a sampler."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import tiny
import torch
from fusing import ALWAYS, fused, lora, plain, run, subject
from pack.nodes import snf as nodes
from pack.py.host.snf.guider import FusionGuider, build_guider
from pack.py.host.snf.preview import draw_record
from pack.py.host.snf.run import PUBLISHED_STAGES, Subject
from pack.py.snf.fusion import PUBLISHED, MaskSettings
from pack.py.snf.schedule import Stage, Stages


def same_on_both_sides(model, cfg=5.0, second=None, stages=PUBLISHED_STAGES, **more):
    positive, negative = tiny.conditioning(model, "a street"), tiny.conditioning(model, tiny.NEGATIVE)
    both = FusionGuider(model, positive, negative, cfg, [Subject(second or model, positive, negative, cfg, stages)])
    return run(both, **more), plain(model, positive, negative, cfg, **more)


def spied(model, seen, name):
    """A clone whose calls are noted: (name, rows)."""

    def call(apply_model, args):
        seen.append((name, args["input"].shape[0]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    return clone


# Identity: whatever the mask says, two equal sides give what one gives, to the bit.


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_cfg_pp", "dpmpp_2s_ancestral"])
def test_equal_sides_are_the_plain_run(sd15, sampler):
    assert torch.equal(*same_on_both_sides(sd15, sampler=sampler))


def test_a_separate_copy_of_the_model_is_the_same_too(sd15):
    assert torch.equal(*same_on_both_sides(sd15, second=tiny.tiny_model()))


@pytest.mark.parametrize(
    "how",
    [
        {"batch": 3},
        {"size": (65, 97), "steps": 1, "stages": ALWAYS},
        {"denoise": 0.5},
        {"denoise_mask": torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], dim=-1)},
    ],
    ids=["batch 3", "520x776", "denoise 0.5", "noise mask"],
)
def test_equal_sides_are_the_plain_run_however_it_is_run(sd15, how):
    latent = torch.ones(how.get("batch", 1), 4, *how.get("size", (8, 8)))
    found, expected = same_on_both_sides(sd15, latent=latent, **how)
    assert torch.equal(found, expected) and found.shape == latent.shape


def test_equal_sides_at_cfg_1_are_the_plain_run_but_for_the_second_row_of_the_calls(sd15):
    """In the fusion both branches are asked, for the maps; one row of two is rounded otherwise than one row alone."""
    torch.testing.assert_close(*same_on_both_sides(sd15, cfg=1.0), rtol=1e-3, atol=1e-3)


def test_a_subject_whose_time_never_comes_changes_nothing(sd15, other):
    positive, negative = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, tiny.NEGATIVE)
    guider = FusionGuider(sd15, positive, negative, 5.0, [subject(other, stages=Stages(1.0, 1.0))])
    assert torch.equal(run(guider), plain(sd15, positive, negative))


def test_the_subject_alone_from_the_beginning_is_its_own_run(sd15, other):
    one = subject(other, stages=Stages(0.0, 0.0))
    assert torch.equal(run(fused(sd15, one)), plain(other, one.positive, one.text))


# Who is asked


def test_each_stage_asks_the_models_that_it_needs_with_both_branches_in_one_call(sd15, other):
    seen = []
    run(fused(spied(sd15, seen, "scene"), subject(spied(other, seen, "subject"))), steps=10, scheduler="simple")
    calls = [seen.count((name, 2)) for name in ("scene", "subject")]
    assert sum(calls) == len(seen), "every call has the two branches of one model"
    firsts = [name for name, _ in seen]
    scene_only, both = firsts.index("subject") - 1, 2 * (calls[0] + calls[1] - 10)
    assert firsts[: scene_only + 1] == ["scene"] * (scene_only + 1)
    assert firsts[scene_only : scene_only + both] == ["scene", "subject"] * (both // 2)
    assert firsts[scene_only + both :] == ["subject"] * (10 - scene_only - both // 2) != []


def test_cfg_1_still_has_two_branches_where_they_are_compared(sd15, other):
    seen = []
    both = fused(spied(sd15, seen, "scene"), subject(spied(other, seen, "subject"), cfg=1.0), cfg=1.0)
    run(both, steps=10, scheduler="simple")
    rows = {name: [r for n, r in seen if n == name] for name in ("scene", "subject")}
    assert rows["scene"][0] == 1 and rows["scene"][-1] == 2 and rows["subject"][0] == 2 and rows["subject"][-1] == 1


def test_a_third_branch_costs_no_third_call_and_counts(sd15, other):
    seen, kinds = [], []

    def note(executor, *args, **kwargs):
        kinds.extend(k for a in args if isinstance(a, dict) for k in a.get("cond_or_uncond", ()))
        return executor(*args, **kwargs)

    expert = spied(other, seen, "subject")
    expert.add_wrapper_with_key("diffusion_model", "test", note)
    negative = tiny.conditioning(other, "ugly")
    plainly = run(fused(sd15, subject(other, stages=ALWAYS)))
    one = subject(expert, stages=ALWAYS, negative=negative, text_guidance=3.0)
    assert not torch.equal(run(fused(sd15, one)), plainly)
    assert set(seen) == {("subject", 3)} and set(kinds) <= {0, 1}


def test_the_three_terms_are_what_the_formula_says(sd15):
    """null + t (text - null) + s (person - text) of one evaluation, from three plain predictions."""
    person, text, null = (tiny.conditioning(sd15, words) for words in ("a person with a face", "a person", "ugly"))
    one = Subject(sd15, person, text, 4.0, Stages(0.0, 0.0), null, 2.5)
    guided = fused(sd15, one)
    first = []
    run(guided, steps=1, callback=lambda step, x0, x, total: first.append(x0))
    alone = []
    for condition in (person, text, null):
        plain(sd15, condition, condition, 1.0, steps=1, callback=lambda step, x0, x, total: alone.append(x0))
    expected = alone[2] + 2.5 * (alone[1] - alone[2]) + 4.0 * (alone[0] - alone[1])
    # One row alone is rounded otherwise than one of three, and the noise level, 15, and the factors multiply that.
    torch.testing.assert_close(first[0], expected, rtol=1e-3, atol=2e-3)


# What happens at each place


def test_forced_and_forbidden_places(sd15, other):
    """Left half forced, right half forbidden: the subject's own prediction there, the scene's here, at the first evaluation."""
    left, right = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    left[..., :32], right[..., 32:] = 1, 1
    firsts = {}

    def first(name):
        return lambda step, x0, x, total: firsts.setdefault(name, x0)

    both = fused(sd15, subject(other, stages=ALWAYS, force=left, forbid=right))
    run(both, steps=2, callback=first("both"))
    run(fused(sd15, subject(other, stages=Stages(1.0, 1.0))), steps=2, callback=first("scene"))
    run(fused(sd15, subject(other, stages=Stages(0.0, 0.0))), steps=2, callback=first("subject"))
    assert torch.equal(firsts["both"][..., :4], firsts["subject"][..., :4])
    assert torch.equal(firsts["both"][..., 4:], firsts["scene"][..., 4:])


def test_what_is_forbidden_stays_the_scenes_to_the_end_and_only_then_is_it_asked(sd15, other):
    seen = []
    late, mask = Stages(0.0, 0.0), torch.zeros(8, 8)
    run(fused(spied(sd15, seen, "scene"), subject(other, stages=late, forbid=mask)))
    assert not seen
    mask[:4] = 1
    guider = fused(spied(sd15, seen, "scene"), subject(other, stages=late, forbid=mask))
    run(guider)
    assert len(seen) == 5
    shares = guider.record.shares(4)
    assert shares[0, 0, :4].eq(1).all() and shares[1, 0, 4:].eq(1).all()


def test_two_subjects_in_a_chain_keep_to_their_places(sd15, other):
    left, right = torch.zeros(8, 8), torch.zeros(8, 8)
    left[:, :4], right[:, 4:] = 1, 1
    third = tiny.tiny_model(seed=2)
    first = build_guider(
        subject(other, force=left), PUBLISHED, False, sd15, tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, "")
    )
    guider = build_guider(subject(third, force=right), PUBLISHED, False, guider=first)
    run(guider, steps=10)
    last = guider.record.shares(len(guider.record.evaluations) - 1)
    assert len(last) == 3 and last[1, 0, :, :4].eq(1).all() and last[2, 0, :, 4:].eq(1).all() and not last[0].any()
    assert len(first.subjects) == 1, "the guider that was extended is as it was"


@pytest.mark.parametrize(
    "settings", [MaskSettings(softness=0.5), MaskSettings(per_channel=True), MaskSettings(smoothing="gaussian")]
)
def test_every_setting_samples_and_differs(sd15, other, settings):
    one = subject(other, stages=ALWAYS)
    found = run(fused(sd15, one, settings=settings))
    assert found.isfinite().all() and not torch.equal(found, run(fused(sd15, one)))


# Models, patches, weights


def test_one_checkpoint_with_two_loras_is_two_models(sd15):
    """The same as if the LoRAs were in separate files; and the shared weights are as they were."""
    before = {key: value.clone() for key, value in sd15.model.state_dict().items()}
    shared = run(fused(lora(sd15, 0.01), subject(lora(sd15, -0.01))))
    apart = run(fused(lora(tiny.tiny_model(), 0.01), subject(lora(tiny.tiny_model(), -0.01))))
    comfy.model_management.unload_all_models()
    assert torch.equal(shared, apart)
    assert all(torch.equal(value, before[key]) for key, value in sd15.model.state_dict().items())


def test_patches_and_controlnets_act_on_their_own_side(sd15, other):
    """An attention patch on the subject is seen by the subject's calls alone."""
    calls = []
    patched = other.clone()
    patched.set_model_attn2_output_patch(lambda n, options: (calls.append(options["uuids"]), n)[1])
    run(fused(sd15, subject(patched, stages=Stages(0.5, 1.0))))
    assert calls
    calls.clear()
    scene = sd15.clone()
    scene.set_model_attn2_output_patch(lambda n, options: (calls.append(1), n)[1])
    run(fused(scene, subject(other, stages=Stages(0.0, 0.0))))
    assert not calls


def test_a_post_cfg_function_of_a_model_acts_on_that_model(sd15, other):
    scene, expert = sd15.clone(), other.clone()
    sizes = {"scene": 0, "subject": 0}

    def counting(name):
        def function(args):
            sizes[name] += 1
            return args["denoised"]

        return function

    scene.set_model_sampler_post_cfg_function(counting("scene"))
    expert.set_model_sampler_post_cfg_function(counting("subject"))
    run(fused(scene, subject(expert, stages=ALWAYS)), steps=3)
    assert sizes == {"scene": 3, "subject": 3}


def test_both_models_are_known_to_memory_management_while_sampling(sd15, other):
    known = []

    def look(step, x0, x, total):
        known.append({id(loaded.model.model) for loaded in comfy.model_management.current_loaded_models})

    guider = fused(sd15, subject(other, stages=ALWAYS))
    run(guider, callback=look)
    assert all({id(sd15.model), id(other.model)} <= seen for seen in known)
    assert not guider.model_patcher.get_additional_models() and not sd15.get_additional_models()


def test_unloading_between_stages_is_healed(sd15, other):
    expert = lora(other, 0.01)
    expected = run(fused(sd15, subject(expert)), steps=10)
    guider = fused(sd15, subject(expert))
    stages = guider.subjects[0].stages.to_sigmas(sd15.get_model_object("model_sampling").percent_to_sigma)
    done = []
    plan = comfy.samplers.KSampler(sd15, 10, torch.device("cpu"), "euler", "normal").sigmas.tolist()
    last_scene = max(step for step, sigma in enumerate(plan[:-1]) if stages.stage_at(sigma) is Stage.SCENE)

    def at_the_change(step, x0, x, total):
        if step == last_scene:
            done.append(step)
            comfy.model_management.unload_all_models()

    assert torch.equal(run(guider, steps=10, callback=at_the_change), expected) and done


def test_an_interrupt_in_the_fusion_leaves_nothing_behind(sd15, other):
    guider = fused(sd15, subject(other))
    expected = run(guider, steps=10)

    def stop(step, x0, x, total):
        if isinstance(guider.record.evaluations[-1].shares, torch.Tensor):
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(guider, steps=10, callback=stop)
    assert sd15.model.current_patcher is None and other.model.current_patcher is None
    assert not guider.model_patcher.get_additional_models()
    assert torch.equal(run(guider, steps=10), expected)


def test_inputs_stay_as_they_were(sd15, other):
    positive = tiny.conditioning(other, "a person with a face")
    options = {key: str(value) for key, value in other.model_options.items()}
    keys = [set(facts) for _, facts in positive]
    run(fused(sd15, subject(other, positive=positive)))
    assert [set(facts) for _, facts in positive] == keys
    assert {key: str(value) for key, value in other.model_options.items()} == options


# One guider, several runs


def test_a_guider_used_twice_gives_the_same_and_keeps_nothing_of_the_first_run(sd15, other):
    guider = fused(sd15, subject(other))
    before = dict(vars(guider))
    first = run(guider)
    record = guider.record
    assert torch.equal(run(guider), first)
    assert guider.record is not record and len(guider.record.evaluations) == len(record.evaluations) == 5
    assert {name for name in vars(guider) if vars(guider)[name] is not before.get(name)} == {"record"}


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_guider_used_inside_its_own_run_changes_neither_run(sd15, other, step):
    """A callback samples with the same guider: in the scene stage, the fusion and the subject stage."""
    guider = fused(sd15, subject(other))
    alone, small = run(guider, steps=10), run(guider, steps=5, size=(8, 4), seed=1)
    inside = []

    def nested(number, x0, x, total):
        if number == step:
            inside.append(run(guider, steps=5, size=(8, 4), seed=1))

    assert torch.equal(run(guider, steps=10, callback=nested), alone)
    assert torch.equal(inside[0], small)
    assert guider.record.shape == (1, 8, 8) and len(guider.record.evaluations) == 10
    assert not guider.model_patcher.get_additional_models()


# Inputs that cannot work


def test_models_that_do_not_fit_are_refused_by_name(sd15, sdxl):
    with pytest.raises(ValueError, match=r"latent spaces \(SD15 and SDXL\).*TinySDXL"):
        fused(sd15, subject(sdxl))
    with pytest.raises(ValueError, match=r"\(epsilon and v\)"):
        fused(sd15, subject(tiny.tiny_model(prediction="v")))
    with pytest.raises(ValueError, match="noise schedules"):
        fused(tiny.tiny_model(prediction="v"), subject(tiny.tiny_model(prediction="zsnr")))


def test_what_cannot_work_is_refused_before_sampling(sd15, other):
    with pytest.raises(ValueError, match="connect subject_negative"):
        fused(sd15, subject(other, text_guidance=2.0))
    with pytest.raises(ValueError, match="force_mask has a batch of 2, but 3 latents"):
        run(fused(sd15, subject(other, force=torch.ones(2, 8, 8))), batch=3)
    with pytest.raises(ValueError, match="not of videos"):
        run(fused(sd15, subject(other)), latent=torch.zeros(1, 4, 2, 8, 8))
    with pytest.raises(ValueError, match="1 x 8 pixels is too small"):
        run(fused(sd15, subject(other)), size=(1, 8))
    one = subject(other)
    with pytest.raises(ValueError, match="positive, negative is not connected"):
        build_guider(one, PUBLISHED, False, sd15)
    with pytest.raises(ValueError, match="given twice"):
        build_guider(one, PUBLISHED, False, sd15, guider=fused(sd15, one))
    with pytest.raises(ValueError, match="guider input is CFGGuider"):
        build_guider(one, PUBLISHED, False, guider=comfy.samplers.CFGGuider(sd15))


# The nodes


def test_the_sampler_node_is_the_guider_node_with_a_sampler(sd15, other):
    one = subject(other)
    scene = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, "")
    persons = other, one.positive, one.text
    latent = {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(1, 64, 64)}
    numbers = 5, 4, 5.0, 5.0, "euler", "normal", 1.0, 0.31, 0.61
    result, guider = nodes.ExemplarySNFSampler.execute(sd15, *scene, *persons, latent, *numbers).args
    (same,) = nodes.ExemplarySNFGuider.execute(
        *persons, 5.0, 5.0, 0.31, 0.61, "average", 1.0, 0.0, False, 0.0, 1.0, False, sd15, *scene
    ).args
    noise = comfy.sample.prepare_noise(latent["samples"], 5)
    plan = comfy.samplers.KSampler(sd15, 4, torch.device("cpu"), "euler", "normal")
    with torch.inference_mode():
        expected = same.sample(
            noise, latent["samples"], comfy.samplers.sampler_object("euler"), plan.sigmas, latent["noise_mask"], seed=5
        )
    assert torch.equal(result["samples"], expected) and "noise_mask" in result and guider.record.evaluations


def test_the_preview_shows_every_evaluation(sd15, other):
    guider = fused(sd15, subject(other))
    with pytest.raises(ValueError, match="has not sampled yet"):
        draw_record(guider.record, torch.zeros(1, 4, 8, 8), 1)
    latent = run(guider, steps=10, batch=2, size=(8, 12))
    for image, size in ((None, (64, 96)), (torch.rand(1, 50, 70, 3), (50, 70)), (torch.rand(2, 50, 70, 1), (50, 70))):
        maps, line, plot = nodes.ExemplarySaliencyPreview.execute(guider, {"samples": latent}, 2, image).args
        assert maps.shape == (10, *size, 3) and line.shape[0] == plot.shape[0] == 1 and line.shape[2] <= 2048
        assert min(line.shape[1:3]) > 190, "the grid is large enough to see"
        assert min(t.min() for t in (maps, line, plot)) >= 0 and max(t.max() for t in (maps, line, plot)) <= 1
    coverage = guider.record.coverage()
    assert coverage[0].tolist() == [1, 0] and coverage[-1].tolist() == [0, 1]
    torch.testing.assert_close(coverage.sum(dim=1), torch.ones(10))
    with pytest.raises(ValueError, match="picture is 3"):
        draw_record(guider.record, latent, 3)
    with pytest.raises(ValueError, match="8 x 8 pixels"):
        draw_record(guider.record, torch.zeros(1, 4, 8, 8), 1)


def test_the_overlay_sends_a_second_preview_and_changes_nothing(sd15, other, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    sent, steps = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **more: sent.append(preview[1].size))
    one = subject(other)
    found = run(fused(sd15, one, overlay=True), callback=lambda *a: steps.append(a))
    assert torch.equal(found, run(fused(sd15, one))) and len(sent) == len(steps) == 5 and set(sent) == {(8, 8)}
