"""Exemplar keys and reference images on every transformer family: exactness through the host's own sampling."""

from __future__ import annotations

import pytest
import tiny_dit
import torch
from joint_parts import Maps, SelfExemplar, applied, error, halves
from pack.py.host.joint import apply
from pack.py.host.schedule import PercentRange
from tiny_dit import conditioning, sample

FAMILIES = pytest.mark.parametrize("name", tiny_dit.AVAILABLE)
WITH_REFERENCES = pytest.mark.parametrize("name", [n for n in tiny_dit.AVAILABLE if tiny_dit.FAMILIES[n].has_references])


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


def with_itself(model, **more):
    return apply.install(model, SelfExemplar("Test Node", PercentRange(), **more))


@FAMILIES
@pytest.mark.parametrize("share", (0.4, 3.0))
def test_an_image_as_its_own_exemplar_changes_nothing(name, share, models):
    model, prompt = models(name), conditioning(name, 2)
    plain = sample(model, name, prompt, batch=2)
    assert error(sample(with_itself(model, share=share), name, prompt, batch=2), plain) <= 2e-6
    assert error(sample(with_itself(model, share=share, flipped=True), name, prompt, batch=2), plain) > 1e-4


@FAMILIES
def test_padding_tokens_of_the_image_do_not_disturb_that(name, models):
    model, prompt = models(name), conditioning(name, 2)
    size = {"flux2": (9, 13)}.get(name, (18, 22))
    plain = sample(model, name, prompt, size=size)
    assert error(sample(with_itself(model), name, prompt, size=size), plain) <= 2e-6


def edited(name, *references):
    return conditioning(name, 2, reference_latents=list(references))


def reference(name, seed, size=(8, 8)):
    shape = tiny_dit.latent_shape(name, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@WITH_REFERENCES
def test_a_reference_without_cells_has_no_effect(name, models):
    model = models(name)
    nowhere = torch.tensor([1.0, 0.0])[None, :, None, None]
    one, two, other = (reference(name, seed) for seed in (1, 2, 3))
    acting = applied(model, references=nowhere)
    assert torch.equal(sample(acting, name, edited(name, one, two)), sample(acting, name, edited(name, one, other)))
    assert error(sample(acting, name, edited(name, other, two)), sample(acting, name, edited(name, one, two))) > 1e-4


@WITH_REFERENCES
def test_the_reference_of_another_region_has_no_effect(name, models):
    """Exactly none where nothing else passes between regions: each has its own text, and cells are kept apart."""
    model = models(name)
    one, two, other = (reference(name, seed, (6, 10)) for seed in (1, 2, 3))
    texts = [conditioning(name, 3, 6), conditioning(name, 4, 6)]
    maps = {"weights": halves(), "references": halves()[:, 1:], "owner": torch.tensor([[[0, 1]]])}
    acting = applied(model, texts, **maps)
    results = [sample(acting, name, edited(name, *refs), cfg=1.0) for refs in ((one, two), (one, other))]
    assert torch.equal(results[0][..., :8], results[1][..., :8])
    assert (results[0][..., 8:] - results[1][..., 8:]).abs().max() > 1e-4


@WITH_REFERENCES
def test_the_models_other_references_stay_as_they_are(name, models):
    """A region's text over the whole image equals the prompt, with a reference that belongs to no region."""
    model, one = models(name), reference(name, 1)
    phrase = conditioning(name, 1, 12, reference_latents=[one])
    wanted = sample(model, name, phrase)
    weights = torch.zeros(1, 2, 1, 1)
    weights[:, 1] = 1
    found = sample(applied(model, [conditioning(name, 1, 12)], weights=weights), name, edited(name, one))
    assert error(found, wanted) <= 2e-6


@WITH_REFERENCES
def test_references_by_region_cost_no_extra_call_of_the_model(name, models, monkeypatch):
    calls = []
    model = models(name)
    forward = type(model.model.diffusion_model).forward
    monkeypatch.setattr(type(model.model.diffusion_model), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    sample(model, name, edited(name, reference(name, 1)))
    plain = len(calls)
    sample(applied(model, references=halves()[:, 1:2]), name, edited(name, reference(name, 1)))
    assert len(calls) == 2 * plain


def test_a_call_with_fewer_references_than_regions_has_those_it_has(models):
    model, name = models("flux"), "flux"
    acting = apply.install(model, Maps("Test Node", PercentRange(), references=halves()[:, 1:]))
    assert sample(acting, name, edited(name, reference(name, 1))).isfinite().all()
    assert torch.equal(sample(acting, name, conditioning(name, 2)), sample(model, name, conditioning(name, 2)))
