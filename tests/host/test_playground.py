"""The playground's models inside the host: ordinary MODEL, CLIP, VAE and CLIP_VISION, and good enough to be judged."""

from __future__ import annotations

import logging

import comfy.sample
import pytest
import torch
from pack.lab.evaluate import playground as evaluation
from pack.lab.evaluate.setup import Studio
from pack.lab.playground.recipes.image_encoder import normalise
from pack.nodes.playground import ExemplaryPlaygroundModels, ExemplaryPlaygroundScene
from pack.py.host import playground
from pack.py.playground import vocabulary


@pytest.fixture(scope="module")
def studio():
    return Studio()


def test_the_shipped_weights_fit_the_limit():
    assert sum(p.stat().st_size for p in playground.ASSETS.rglob("*") if p.is_file()) <= 96 * 1024**2


def test_the_node_gives_four_models_that_the_host_knows():
    model, clip, vae, vision = ExemplaryPlaygroundModels.execute().args
    assert model.model.model_config.unet_config["context_dim"] == playground.CONTEXT_DIM
    assert clip.encode_from_tokens(clip.tokenize("a red ball")).shape == (1, 77, playground.CONTEXT_DIM)
    assert vae.decode(torch.zeros(1, 4, 16, 16)).shape == (1, 128, 128, 3)
    assert vision.encode_image(torch.rand(1, 128, 128, 3))["image_embeds"].shape == (1, 128)


def test_latents_have_the_scale_of_stable_diffusion(studio):
    image = ExemplaryPlaygroundScene.execute("street", 1, 128, True).args[0]
    latent = studio.vae.encode(image)
    unit = studio.model.model.process_latent_in(latent)
    assert latent.shape == (1, 4, 16, 16) and 0.5 < float(unit.std()) < 2.0


def test_one_scene_comes_with_everything_about_it():
    image, labels, instances, caption, masks = ExemplaryPlaygroundScene.execute("objects", 3, 128, True).args
    assert image.shape == (1, 128, 128, 3) and labels.size == (128, 128)
    assert len(instances) == len(masks) and all(i.phrase in caption for i in instances)
    for instance, mask in zip(instances, masks):
        ys, xs = mask.nonzero(as_tuple=True)
        box = tuple(float(v) / 128 for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        assert instance.box == pytest.approx(box)


def test_unknown_words_are_named_in_a_notice(studio, caplog):
    with caplog.at_level(logging.WARNING, logger="exemplary"):
        cond = studio.encode("a purple dragon")
    assert "'dragon'" in caplog.text and "'purple'" not in caplog.text.split("It knows")[0]
    assert cond[0][0].isfinite().all()


def test_prompts_of_any_length_and_weight_encode(studio):
    for text, tokens in (
        ("", 77),
        ("(red:1.4) ball", 77),
        ("a red ball and " * 30, 154),
        ("ein Drache " * 80, 231),
        ("\U0001f600", 77),
    ):
        cond = studio.encode(text)[0][0]
        assert cond.shape[1] == tokens and cond.isfinite().all()


def test_training_computes_the_text_as_the_host_does(studio):
    text = playground.new_text_model()
    text.load_state_dict({k: v.float() for k, v in playground.read_weights("text_encoder").items()})
    tokens = torch.tensor(vocabulary.encode_padded(["a red ball on a mint background"]))
    expected = studio.encode("a red ball on a mint background")[0][0]
    # The host keeps the text encoder in half precision.
    torch.testing.assert_close(playground.text_features(text, tokens), expected.float(), atol=2e-2, rtol=0)


def test_training_computes_the_image_as_the_host_does():
    vision = playground.load_clip_vision()
    image = ExemplaryPlaygroundScene.execute("portrait", 2, 128, True).args[0]
    expected = vision.encode_image(image)["image_embeds"]
    pixels = normalise((255 * image.movedim(-1, 1)).round() / 255)
    torch.testing.assert_close(playground.image_features(vision.model.float(), pixels), expected.float(), atol=2e-2, rtol=2e-2)


def test_phrases_find_their_pictures(studio):
    """Of eight pictures with one object each, the image encoder and the projected text match at least six."""
    scenes = evaluation.held_out("objects", 8, first=60_000, count=1)
    vision = playground.load_clip_vision()
    images = vision.encode_image(evaluation.as_images(scenes).movedim(1, -1))["image_embeds"].float()
    tokens = [studio.clip.tokenize(scene.caption) for scene in scenes]
    studio.clip.cond_stage_model.clip_l.return_projected_pooled = True
    try:
        texts = torch.cat([studio.clip.cond_stage_model.encode_token_weights(t)[1] for t in tokens]).float()
    finally:
        studio.clip.cond_stage_model.clip_l.return_projected_pooled = False
    score = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    assert int((score.argmax(dim=1) == torch.arange(8)).sum()) >= 6


def test_two_runs_of_one_prompt_are_the_same_picture(studio):
    a, b = (studio.sample(studio.model, studio.encode("a red ball"), seed=1, steps=3) for _ in range(2))
    assert torch.equal(a, b)


def test_the_prompt_is_obeyed(studio):
    """A small sample of what `dev.py playground evaluate` measures in full: class and colour of one object."""
    scenes = evaluation.held_out("objects", 8, first=50_000, count=1)
    found = evaluation.detect_objects(studio.detector, studio.paint([s.caption for s in scenes], list(range(8))))
    right = sum(evaluation.shows(f, s.instances[0].name, s.instances[0].attributes["colour"]) for f, s in zip(found, scenes))
    assert right >= 6


def test_the_model_samples_sizes_it_was_not_made_for(studio):
    cond = studio.encode("a street by day")
    for h, w in ((24, 16), (13, 17)):
        latent = torch.zeros(2, 4, h, w)
        noise = comfy.sample.prepare_noise(latent, 0)
        out = comfy.sample.sample(
            studio.model, noise, 2, 4.0, "euler", "normal", cond, studio.encode(""), latent, seed=0, disable_pbar=True
        )
        assert out.shape == latent.shape and out.isfinite().all()
