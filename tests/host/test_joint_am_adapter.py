"""AM-Adapter's weight-free modes on transformer bases, by the node's own call."""

from __future__ import annotations

import pytest
import tiny
import tiny_dit
import torch
from joint_parts import TinyVAE, error
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.am_adapter import cache
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from tiny_dit import prompt, sample

FAMILIES = pytest.mark.parametrize("name", tiny_dit.AVAILABLE)
MODES = pytest.mark.parametrize("mode", ("automatic", "class_bias", "hard_mask", "concat_only", "masactrl"))


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def empty_store():
    cache.store().clear()


def one_class(label, h=32, w=48):
    return SemanticMap(torch.full((1, h, w), label, dtype=torch.uint8), named_palette("playground"))


def applied(model, name, *, exemplar_map=None, target_map=None, batch=1, **more):
    # 16 image pixels are one latent pixel of Flux.2, 8 of the others.
    size = (192, 256) if tiny_dit.FAMILIES[name].patch == 1 else (96, 128)
    image = tiny.picture(*size, batch=batch)
    maps = exemplar_map or tiny.street_map(96, 128), target_map or tiny.street_map(ground=0.7)
    return am_adapter.apply(model, TinyVAE(name), image, *maps, **more)


@FAMILIES
def test_the_exemplar_has_an_effect_on_the_positive_rows_only(name, models):
    model = models(name)
    plain = sample(model, name, prompt(name, "a street"))
    assert error(sample(applied(model, name), name, prompt(name, "a street")), plain) > 1e-4
    # A cfg of 0 is the negative's prediction alone.
    plain = sample(model, name, prompt(name, "a street"), cfg=0.0)
    assert error(sample(applied(model, name), name, prompt(name, "a street"), cfg=0.0), plain) <= 2e-6


@MODES
@pytest.mark.parametrize("name", ("flux", "qwen", "z_image"))
def test_every_mode_samples_batches_and_several_exemplars(name, mode, models):
    model = models(name)
    acting = applied(model, name, mode=mode, balance=0.5, batch=2)
    found = sample(acting, name, prompt(name, "a street"), batch=2, size=(18, 22))
    assert found.isfinite().all()
    assert error(found, sample(model, name, prompt(name, "a street"), batch=2, size=(18, 22))) > 1e-4


@FAMILIES
@pytest.mark.parametrize("mode", ("hard_mask", "masactrl"))
def test_cells_whose_class_the_exemplar_lacks_attend_to_themselves(name, mode, models):
    model = models(name)
    acting = applied(model, name, mode=mode, exemplar_map=one_class(1), target_map=one_class(3))
    assert error(sample(acting, name, prompt(name, "a street")), sample(model, name, prompt(name, "a street"))) <= 2e-6


@FAMILIES
def test_a_mask_of_zero_has_no_effect(name, models):
    model = models(name)
    acting = applied(model, name, mask=torch.zeros(1, 16, 16))
    assert error(sample(acting, name, prompt(name, "a street")), sample(model, name, prompt(name, "a street"))) <= 2e-6


@FAMILIES
def test_strength_zero_returns_the_model_and_outside_of_the_window_is_bit_identical(name, models):
    model = models(name)
    assert applied(model, name, strength=0.0) is model
    acting = applied(model, name, start_percent=0.9999)
    assert torch.equal(sample(acting, name, prompt(name, "a street")), sample(model, name, prompt(name, "a street")))


@pytest.mark.parametrize("source", ("noise", "clean", "invert", "invert_cached"))
def test_all_sources_and_the_store(source, models, monkeypatch):
    model, name = models("flux"), "flux"
    calls = []
    network = type(model.model.diffusion_model)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    acting = applied(model, name, source=source)
    one = sample(acting, name, prompt(name, "a street"), steps=3, cfg=1.0)
    first = len(calls)
    assert torch.equal(sample(acting, name, prompt(name, "a street"), steps=3, cfg=1.0), one)
    assert len(calls) - first == 3, "the second run reads exemplars from the store"
    assert error(one, sample(model, name, prompt(name, "a street"), steps=3, cfg=1.0)) > 1e-4


def test_two_exemplars_in_a_chain_share_the_attention(models):
    model, name = models("lumina2"), "lumina2"
    both = applied(applied(model, name), name, strength=0.5)
    assert error(sample(both, name, prompt(name, "a")), sample(applied(model, name), name, prompt(name, "a"))) > 1e-5


def test_an_exemplars_own_prompt(models):
    model, name = models("qwen"), "qwen"
    one = sample(applied(model, name), name, prompt(name, "a street"))
    two = sample(applied(model, name, prompt=prompt(name, "a photo of a harbour")), name, prompt(name, "a street"))
    assert error(one, two) > 1e-5


def test_a_matcher_is_refused_and_what_works_is_named(models):
    with pytest.raises(ValueError, match=r"matcher works on Stable Diffusion only, but this MODEL is Flux. .*class_bias"):
        am_adapter.apply(models("flux"), None, None, None, None, adapter=object())


def test_models_with_further_channels_are_refused():
    model = tiny_dit.tiny_dit("flux", in_channels=48)
    with pytest.raises(ValueError, match="further input channels"):
        applied(model, "flux")
