"""Noise fusion: inputs that are wrong are refused by name, and nothing is ignored in silence."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import tiny
import torch
from fusing import ALWAYS, fused, lora, run, subject
from pack.nodes import snf as nodes
from pack.py.host.snf import models
from pack.py.host.snf.guider import FusionGuider
from pack.py.host.snf.run import Subject


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "where", ["force_mask", "forbid_mask", "cfg", "subject_cfg", "latent", "noise mask", "positive", "subject_text"]
)
def test_nan_and_infinity_are_refused_by_the_name_of_their_input(sd15, other, where, value):
    mask, latent, positive, text = torch.ones(1, 8, 8), torch.zeros(1, 4, 8, 8), None, tiny.conditioning(other, "a person")
    scene = tiny.conditioning(sd15, "a street")
    mask[0, 2, 3] = latent[0, 1, 2, 3] = value
    if where in ("positive", "subject_text"):
        bad = [[torch.full_like(text[0][0], value), dict(text[0][1])]]
        scene, text = (bad, text) if where == "positive" else (scene, bad)
    more = {"force": mask} if where == "force_mask" else {"forbid": mask} if where == "forbid_mask" else {}
    more |= {"cfg": value} if where == "subject_cfg" else {}
    with pytest.raises(ValueError, match=where):
        one = subject(other, positive=positive, text=text, **more)
        guider = FusionGuider(sd15, scene, scene, value if where == "cfg" else 5.0, [one])
        noise_mask = mask[None] if where == "noise mask" else None
        run(guider, latent=latent if where == "latent" else torch.zeros(1, 4, 8, 8), denoise_mask=noise_mask)


def test_a_black_mask_is_not_ignored_in_silence(sd15, other, caplog):
    """LoadImage gives 64 x 64 zeros for an image without transparency."""
    with pytest.raises(ValueError, match=r"force_mask is 0 everywhere.*image without transparency"):
        fused(sd15, subject(other, force=torch.zeros(1, 64, 64)))
    fused(sd15, subject(other, forbid=torch.zeros(1, 64, 64)))
    assert "forbid_mask is 0 everywhere" in caplog.text


def test_masks_of_any_form_act_alike(sd15, other):
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    found = [run(fused(sd15, subject(other, stages=ALWAYS, force=m))) for m in (mask, mask[None, None], mask.half(), mask.bool())]
    assert all(torch.equal(found[0], each) for each in found[1:])


@pytest.mark.parametrize(
    "latent, says",
    [
        (torch.ones(1, 16, 8, 8), "latent has 16 channels, but the scene model needs 4"),
        (torch.zeros(0, 4, 8, 8), "latent is empty"),
        (torch.zeros(4, 8, 8), "needs latents of single images"),
    ],
)
def test_latents_of_another_kind_are_named(sd15, other, latent, says):
    with pytest.raises(ValueError, match=says):
        run(fused(sd15, subject(other)), latent=latent)


def test_a_prompt_of_another_encoder_is_named(sd15, other):
    wide = [[torch.zeros(1, 77, 2048), {}]]
    with pytest.raises(ValueError, match="subject_positive has embeddings of width 2048, but TinySD15 needs width 64"):
        fused(sd15, subject(other, positive=wide))
    with pytest.raises(ValueError, match="subject_text is empty"):
        fused(sd15, Subject(other, tiny.conditioning(other, "a"), []))


def test_animatediff_on_one_model_is_named(sd15, other):
    animated = other.clone()
    animated.set_attachments("ADE_params", object())
    with pytest.raises(ValueError, match="AnimateDiff is on the subject model only"):
        fused(sd15, subject(animated))
    scene = sd15.clone()
    scene.set_attachments("ADE_params", object())
    assert fused(scene, subject(animated)).subjects


def test_unknown_choices_of_the_sampler_node_are_named(sd15, other):
    one = subject(other)
    scene = tiny.conditioning(sd15, "a street"), tiny.conditioning(sd15, "")
    for sampler, scheduler, says in (("nope", "normal", "sampler_name is 'nope'"), ("euler", 3, "scheduler is 3")):
        with pytest.raises(ValueError, match=rf"Subject Fusion Sampler \(SNF\): {says}; choose one of"):
            nodes.ExemplarySNFSampler.execute(
                sd15, *scene, other, one.positive, one.text, {"samples": torch.zeros(1, 4, 8, 8)}, 0, 2, 5.0, 5.0, sampler, scheduler,
                1.0, 0.31, 0.61,
            )  # fmt: skip


def test_copies_of_large_weights_are_announced_and_refused_where_they_do_not_fit(sd15, monkeypatch, caplog):
    guider = fused(lora(sd15, 0.01), subject(lora(sd15, -0.01)))
    monkeypatch.setattr(models, "LARGE_BYTES", 0)
    run(guider)
    assert "needs a copy of its weights" in caplog.text
    caplog.clear()
    run(guider)
    assert "needs a copy" not in caplog.text, "the copy is kept"
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args: 1000)
    with pytest.raises(ValueError, match=r"needs a copy of its weights.*Use the same LoRAs"):
        run(fused(lora(sd15, 0.01), subject(lora(sd15, -0.01))))
