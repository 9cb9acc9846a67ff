"""The nodes on transformer bases: the same calls as on Stable Diffusion."""

from __future__ import annotations

import pytest
import tiny
import tiny_dit
import torch
from joint_parts import error
from pack.py.host.ca2sis import attention as classes
from pack.py.host.ifadapter import apply as instances_host
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.ifadapter.regional import Settings
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from tiny_dit import TinyTextEncoder, prompt, sample

FAMILIES = pytest.mark.parametrize("name", tiny_dit.AVAILABLE)
WHOLE = (0.0, 0.0, 1.0, 1.0)
SKY, TREE = 1, 7


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


def phrases(model, name, *items, **more):
    return instances_host.apply(
        model, TinyTextEncoder(name), Instances(tuple(Instance(box, text) for box, text in items)), **more
    )


def class_map():
    labels = torch.full((1, 24, 32), TREE, dtype=torch.uint8)
    labels[:, :12] = SKY
    return SemanticMap(labels, named_palette("playground"))


def class_texts(
    model, name, texts=(("sky", "a red evening sky"), ("tree", "a tree in a storm")), semantic_map=None, base=None, **more
):
    prompts = None
    for label, text, *weight in texts:
        prompts = classes.class_prompt(label, prompt(name, text), *weight, prompts=prompts)
    settings = classes.Settings(**({"leak": 0.0, "base_weight": 0.0} | more))
    return classes.apply(model, semantic_map or class_map(), prompts, base, settings)


@FAMILIES
def test_an_instance_over_the_whole_image_is_the_prompt(name, models):
    model = models(name)
    found = sample(phrases(model, name, (WHOLE, "a red sofa")), name, prompt(name, "a room"))
    assert error(found, sample(model, name, prompt(name, "a red sofa"))) <= 2e-6


@FAMILIES
def test_the_background_phrase_stands_outside_of_all_boxes(name, models):
    model = models(name)
    acting = phrases(model, name, ((0.0, 0.0, 0.5, 1.0), "a wall"), background="a wall")
    assert (
        error(sample(acting, name, prompt(name, "a room"), batch=2), sample(model, name, prompt(name, "a room"), batch=2)) > 1e-3
    )


@FAMILIES
def test_strength_zero_and_an_empty_range_return_the_model_itself(name, models):
    model = models(name)
    assert phrases(model, name, (WHOLE, "a sofa"), strength=0.0) is model
    assert phrases(model, name, (WHOLE, "a sofa"), start_percent=0.5, end_percent=0.5) is model
    assert class_texts(model, name, strength=0.0) is model


@FAMILIES
def test_strength_leads_from_the_prompt_to_the_phrases_and_beyond(name, models):
    model = models(name)
    plain = sample(model, name, prompt(name, "a room"))
    distances = [
        error(sample(phrases(model, name, (WHOLE, "a red sofa"), strength=strength), name, prompt(name, "a room")), plain)
        for strength in (0.05, 0.5, 1.0, 1.5)
    ]
    assert 0 < distances[0] < min(distances[1:]) and distances[3] > distances[1]


@FAMILIES
def test_one_class_everywhere_is_the_prompt(name, models):
    model = models(name)
    everywhere = SemanticMap(torch.full((1, 24, 32), SKY, dtype=torch.uint8), named_palette("playground"))
    acting = class_texts(model, name, [("sky", "a red sky")], everywhere, isolate=1.0)
    assert error(sample(acting, name, prompt(name, "a street")), sample(model, name, prompt(name, "a red sky"))) <= 2e-6


@FAMILIES
def test_a_base_text_replaces_the_prompt(name, models):
    model = models(name)
    nowhere = SemanticMap(torch.full((1, 24, 32), TREE, dtype=torch.uint8), named_palette("playground"))
    nowhere.labels[:, 0, 0] = SKY
    acting = class_texts(model, name, [("sky", "a red sky")], nowhere, base=prompt(name, "a forest"))
    other = class_texts(model, name, [("sky", "a red sky")], nowhere, base=prompt(name, "a desert"))
    one, two = (sample(m, name, prompt(name, "a street")) for m in (acting, other))
    assert error(one, two) > 1e-3
    again = sample(acting, name, prompt(name, "a harbour"))
    assert error(one, again) <= 2e-6


@FAMILIES
def test_both_nodes_on_one_model_in_either_order(name, models):
    model, box = models(name), ((0.0, 0.5, 0.5, 1.0), "a red sofa")
    one = sample(class_texts(phrases(model, name, box), name, base_weight=1.0), name, prompt(name, "a room"))
    two = sample(phrases(class_texts(model, name), name, box), name, prompt(name, "a room"))
    for only in (phrases(model, name, box), class_texts(model, name, base_weight=1.0)):
        assert error(one, sample(only, name, prompt(name, "a room"))) > 1e-4
    assert one.isfinite().all() and two.isfinite().all()


def test_early_on_a_flow_model_counts_the_noise_of_flow(models):
    from pack.py.ca2sis.regional import early_gain

    assert early_gain(1.0, 4.0, is_flow=True) == 4.0
    assert early_gain(0.5, 4.0, is_flow=True) == 2.5
    model = models("flux")
    plain, early = class_texts(model, "flux"), class_texts(model, "flux", early=4.0)
    assert error(sample(early, "flux", prompt("flux", "a")), sample(plain, "flux", prompt("flux", "a"))) > 1e-3


@FAMILIES
def test_early_scales_the_share_of_the_text_without_a_second_attention(name, models, monkeypatch):
    """While the factor is 4 everywhere, it is the same as weights of 4; the base text keeps its weight."""
    from pack.py.host.ca2sis import transformer
    from pack.py.host.joint import attention

    model, text = models(name), prompt(name, "a street")
    monkeypatch.setattr(transformer, "early_gain", lambda sigma, early, is_flow: early)
    monkeypatch.setattr(attention.JointAttention, "_amplify", lambda *args: pytest.fail("a second attention"))
    both = [("sky", "a red sky"), ("tree", "a tree in a storm")]
    early = class_texts(model, name, both, base=text, base_weight=0.2, early=4.0)
    weighted = class_texts(model, name, [(*pair, 4.0) for pair in both], base=text, base_weight=0.2, early=1.0)
    found = sample(early, name, text)
    assert error(found, sample(weighted, name, text)) <= 2e-6
    assert error(found, sample(class_texts(model, name, both, base=text, base_weight=0.2), name, text)) > 1e-3


def test_classes_are_kept_apart_entirely_or_not_at_all(models, caplog):
    model, name = models("flux"), "flux"
    text = prompt(name, "a street")
    plain, partly, apart = (sample(class_texts(model, name, isolate=value), name, text) for value in (0.0, 0.9, 1.0))
    assert torch.equal(partly, plain) and error(apart, plain) > 1e-3
    assert "isolate" not in caplog.text
    class_texts(model, name, isolate=0.5)
    assert "isolate is 0.5" in caplog.text


def test_instances_that_are_kept_apart_mix_less(models):
    model, name = models("flux"), "flux"
    boxes = ((0.0, 0.0, 0.5, 1.0), "a dog"), ((0.5, 0.0, 1.0, 1.0), "a cat")
    plain = sample(phrases(model, name, *boxes), name, prompt(name, "a room"))
    assert (
        error(sample(phrases(model, name, *boxes, settings=Settings(separate=10.0)), name, prompt(name, "a room")), plain) > 1e-4
    )


def test_what_is_not_supported_says_so_before_sampling(models, monkeypatch):
    from pack.py.host.joint import families

    model = models("flux")
    monkeypatch.setattr(families, "FAMILIES", {})
    for act in (lambda: phrases(model, "flux", (WHOLE, "a sofa")), lambda: class_texts(model, "flux")):
        with pytest.raises(ValueError, match=r"this MODEL is Flux, which is not supported.*Qwen-Image"):
            act()


def test_video_lengths_stop_before_sampling(models):
    import comfy.sample

    acting = phrases(models("wan"), "wan", (WHOLE, "a sofa"))
    noise = torch.randn(1, 16, 3, 16, 16)
    with pytest.raises(ValueError, match="the latent has 3 frames"):
        comfy.sample.sample(
            acting,
            noise,
            2,
            4.0,
            "euler",
            "simple",
            prompt("wan", "a"),
            prompt("wan", "b"),
            torch.zeros_like(noise),
            disable_pbar=True,
        )


def test_texts_of_another_width_stop_before_sampling(models):
    acting = instances_host.apply(models("flux"), TinyTextEncoder("anima"), Instances((Instance(WHOLE, "a sofa"),)))
    with pytest.raises(ValueError, match="have width 1024, but the positive prompt has width 32"):
        sample(acting, "flux", prompt("flux", "a room"))


def test_masks_for_each_latent_of_a_batch(models):
    model, name = models("flux"), "flux"
    masks = torch.zeros(2, 16, 16)
    masks[0], masks[1, :1, :1] = 1.0, 1.0
    items = Instances((Instance(WHOLE, "a red sofa", masks),))
    acting = instances_host.apply(model, TinyTextEncoder(name), items)
    found = sample(acting, name, prompt(name, "a room"), batch=2)
    wanted = sample(model, name, prompt(name, "a red sofa"), batch=2)
    assert error(found[:1], wanted[:1]) <= 2e-6
    assert error(found[1:], wanted[1:]) > 1e-4
    with pytest.raises(ValueError, match="2"):
        sample(acting, name, prompt(name, "a room"), batch=3)


def test_the_unet_is_as_before(sd15):
    acting = phrases(sd15, "flux", (WHOLE, "a"), strength=0.0)
    assert acting is sd15
    assert "exemplary_joint" not in sd15.model_options["transformer_options"].get("patches", {})
    assert tiny.sample(sd15).isfinite().all()
