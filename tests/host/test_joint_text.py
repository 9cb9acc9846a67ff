"""Texts for regions on every transformer family: exactness of the mechanism through the host's own sampling."""

from __future__ import annotations

import pytest
import tiny_dit
import torch
from joint_parts import applied, error, halves, whole
from tiny_dit import conditioning, sample

FAMILIES = pytest.mark.parametrize("name", tiny_dit.AVAILABLE)
ODD = {"flux2": (9, 13), "cosmos": (18, 22), "anima": (18, 22)}  # patch 1; these take whole patches only


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


@FAMILIES
@pytest.mark.parametrize("cfg", (1.0, 4.0))
def test_a_region_over_the_whole_image_equals_its_text_as_the_prompt(name, cfg, models):
    model = models(name)
    phrase, prompt = conditioning(name, 1, 12), conditioning(name, 2)
    wanted = sample(model, name, phrase, cfg=cfg)
    found = sample(applied(model, [phrase], weights=whole()), name, prompt, cfg=cfg)
    assert error(found, wanted) <= 2e-6
    assert error(sample(model, name, prompt, cfg=cfg), wanted) > 1e-3


@FAMILIES
def test_other_regions_without_cells_change_nothing(name, models):
    model = models(name)
    texts = [conditioning(name, seed, length) for seed, length in ((3, 5), (1, 12), (4, 8))]
    found = sample(applied(model, texts, weights=whole(3, 1)), name, conditioning(name, 2))
    assert error(found, sample(model, name, texts[1])) <= 2e-6


@FAMILIES
def test_sizes_that_are_no_whole_patches_and_batches(name, models):
    model, size = models(name), ODD.get(name, (17, 21))
    phrase = conditioning(name, 1, 12)
    wanted = sample(model, name, phrase, size=size, batch=3)
    found = sample(applied(model, [phrase], weights=whole()), name, conditioning(name, 2), size=size, batch=3)
    assert error(found, wanted) <= 2e-6


@FAMILIES
def test_regions_that_are_kept_apart_do_not_see_each_others_text(name, models):
    model = models(name)
    owner = torch.tensor([[[0, 1]]])
    left, right, other = (conditioning(name, seed, 6) for seed in (1, 2, 3))
    one = sample(applied(model, [left, right], weights=halves(), owner=owner), name, conditioning(name, 4), cfg=1.0)
    two = sample(applied(model, [left, other], weights=halves(), owner=owner), name, conditioning(name, 4), cfg=1.0)
    assert torch.equal(one[..., :8], two[..., :8])
    assert (one[..., 8:] - two[..., 8:]).abs().max() > 1e-3


@FAMILIES
def test_outside_of_its_window_the_result_is_bit_identical(name, models):
    model, prompt = models(name), conditioning(name, 2)
    plain = sample(model, name, prompt)
    acting = applied(model, [conditioning(name, 1)], 0.9999, 1.0, weights=whole())
    assert torch.equal(sample(acting, name, prompt), plain)
    assert torch.equal(sample(model, name, prompt), plain), "the given MODEL was changed"


@FAMILIES
def test_the_negative_prompt_does_not_see_the_texts(name, models):
    """Two prompts that differ in the negative only differ as without regions: the negative's rows are what they were."""
    model = models(name)
    phrase, prompt = conditioning(name, 1), conditioning(name, 2)
    region = applied(model, [phrase], weights=whole())
    # At a cfg of 0 the result is the negative's prediction alone.
    assert error(sample(region, name, prompt, cfg=0.0), sample(model, name, prompt, cfg=0.0)) <= 2e-6


@FAMILIES
def test_long_sequences_use_channels_with_the_same_result(name, models, monkeypatch):
    from pack.py.host.joint import attention

    model = models(name)
    texts, prompt = [conditioning(name, 1), conditioning(name, 3)], conditioning(name, 2)
    region = applied(model, texts, weights=halves(), owner=torch.tensor([[[0, 1]]]))
    table = sample(region, name, prompt)
    monkeypatch.setattr(attention, "TABLE_TOKENS", 0)
    assert error(sample(region, name, prompt), table) <= 4e-6
    assert error(table, sample(model, name, prompt)) > 1e-3


@FAMILIES
def test_a_gain_of_one_is_free_and_more_goes_further(name, models):
    model, prompt = models(name), conditioning(name, 2)
    texts = [conditioning(name, 1, 6), conditioning(name, 3, 6)]
    plain = sample(model, name, prompt, steps=1, cfg=1.0)
    results = [
        sample(applied(model, texts, weights=halves(), amount=amount), name, prompt, steps=1, cfg=1.0)
        for amount in (None, 1.0, 1.5)
    ]
    assert torch.equal(results[0], results[1])
    assert error(results[2], results[0]) > 1e-3
    assert results[2].isfinite().all() and plain.isfinite().all()


@FAMILIES
def test_an_override_of_another_node_is_called_in_either_order(name, models):
    def sharper(func, q, *args, **kwargs):
        return func(q * 3.0, *args, **kwargs)

    def with_override(model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = sharper
        return clone

    model, phrase, prompt = models(name), conditioning(name, 1, 12), conditioning(name, 2)
    wanted = sample(with_override(model), name, phrase)
    before = sample(applied(with_override(model), [phrase], weights=whole()), name, prompt)
    after = sample(with_override(applied(model, [phrase], weights=whole())), name, prompt)
    assert error(before, wanted) <= 2e-6
    assert torch.equal(before, after)
    assert error(wanted, sample(model, name, phrase)) > 1e-3


@FAMILIES
def test_of_two_nodes_the_later_counts_where_both_cover_a_cell(name, models):
    model = models(name)
    first, second, prompt = (conditioning(name, seed, 6) for seed in (1, 2, 3))
    both = applied(applied(model, [first], weights=whole()), [second], weights=whole())
    assert error(sample(both, name, prompt), sample(model, name, second)) <= 2e-6
