"""Regional References: which reference image each region uses, through the node's own calls."""

from __future__ import annotations

import pytest
import tiny
import tiny_dit
import torch
from joint_parts import TinyVAE, error
from pack.nodes.references import ExemplaryRegionalReferences
from pack.py.host.ifadapter import apply as instances_host
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.ifadapter.regional import Settings
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from tiny_dit import TinyTextEncoder, prompt, sample

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
WITH_REFERENCES = pytest.mark.parametrize("name", [n for n in tiny_dit.AVAILABLE if tiny_dit.FAMILIES[n].has_references])


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_dit.tiny_dit(name)
        return made[name]

    return get


def chairs(*seeds):
    return Instances(
        tuple(Instance(b, f"chair {s}", reference=tiny.picture(96, 64, seed=s)) for b, s in zip((LEFT, RIGHT), seeds))
    )


def node(model, name, text="a room", negative=None, **more):
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "megapixels": 1.0} | more
    return ExemplaryRegionalReferences.execute(model, prompt(name, text), TinyVAE(name), negative=negative, **values).args


@WITH_REFERENCES
def test_another_regions_reference_has_no_effect_together_with_its_own_text(name, models):
    """Each region has its own phrase, and cells of different regions attend to each other as little as the node allows."""
    results = []
    for seed in (2, 3):
        model, positive, negative = node(models(name), name, instances=chairs(1, seed), negative=prompt(name, "bad"))
        regions = Instances((Instance(LEFT, "a dog"), Instance(RIGHT, "a cat")))
        model = instances_host.apply(model, TinyTextEncoder(name), regions, settings=Settings(separate=10.0))
        results.append(sample(model, name, positive, negative, cfg=1.0))
    changes = (results[0] - results[1]).abs()
    assert changes[..., 8:].max() > 1e-4 and changes[..., :8].max() < changes[..., 8:].max() / 100


@WITH_REFERENCES
def test_strength_zero_and_an_empty_range_are_the_host_with_these_references(name, models):
    model = models(name)
    for change in ({"strength": 0.0}, {"start_percent": 0.4, "end_percent": 0.4}):
        patched, positive, _ = node(model, name, instances=chairs(1, 2), **change)
        assert patched is model
        assert len(positive[0][1]["reference_latents"]) == 2
    acting, positive, _ = node(model, name, instances=chairs(1, 2))
    assert error(sample(acting, name, positive), sample(model, name, positive)) > 1e-5


@WITH_REFERENCES
def test_masks_and_classes_say_the_same_as_boxes(name, models):
    labels = torch.full((1, 16, 16), 7, dtype=torch.uint8)
    labels[..., :8] = 1
    masks = torch.zeros(2, 16, 16)
    masks[0, :, :8], masks[1, :, 8:] = 1.0, 1.0
    images = torch.cat([instance.reference for instance in chairs(1, 2)])
    sources = (
        {"instances": chairs(1, 2)},
        {"references": images, "masks": masks},
        {"references": images, "semantic_map": SemanticMap(labels, named_palette("playground")), "classes": "sky\ntree"},
    )
    found = [sample(model, name, positive) for model, positive, _ in (node(models(name), name, **s) for s in sources)]
    assert error(found[1], found[0]) <= 1e-6 and error(found[2], found[0]) <= 1e-6


def test_references_that_are_there_already_belong_to_no_region(models):
    name = "flux"
    earlier = TinyVAE(name).encode(tiny.picture(64, 64, seed=9))
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "megapixels": 1.0}
    positive = prompt(name, "a room", reference_latents=[earlier])
    before = list(positive[0][1]["reference_latents"])
    model, patched, _ = ExemplaryRegionalReferences.execute(
        models(name), positive, TinyVAE(name), instances=chairs(1, 2), **values
    ).args
    assert len(patched[0][1]["reference_latents"]) == 3 and positive[0][1]["reference_latents"] == before
    contribution = model.model_options["transformer_options"]["patches"]["exemplary_joint"][0]
    assert contribution.first == 1
    assert sample(model, name, patched).isfinite().all()


def test_two_of_these_nodes_in_a_chain(models):
    name = "flux"
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "megapixels": 1.0}
    left, right = (Instances((instance,)) for instance in chairs(1, 2))
    model, positive, _ = node(models(name), name, instances=left)
    model, positive, _ = ExemplaryRegionalReferences.execute(model, positive, TinyVAE(name), instances=right, **values).args
    both, at_once, _ = node(models(name), name, instances=chairs(1, 2))
    assert error(sample(model, name, positive), sample(both, name, at_once)) <= 1e-6


def test_large_references_are_reduced_to_whole_patches(models):
    large = Instances((Instance(LEFT, "a chair", reference=tiny.picture(1500, 2000, seed=1)),))
    _, positive, _ = node(models("flux"), "flux", instances=large, megapixels=0.1)
    height, width = positive[0][1]["reference_latents"][0].shape[-2:]
    assert (height, width) == (34, 46)  # latent pixels of 8: 272 x 368 image pixels


@pytest.mark.parametrize(
    ("values", "message"),
    (
        ({}, "there is no reference image"),
        ({"instances": Instances((Instance(LEFT, "a chair"),))}, "there is no reference image"),
        ({"references": torch.zeros(2, 32, 32, 3)}, "references need regions"),
        ({"references": torch.zeros(2, 32, 32, 3), "masks": torch.ones(3, 8, 8)}, "2 references but 3 masks"),
        ({"references": torch.zeros(1, 32, 32, 3), "masks": torch.zeros(1, 8, 8)}, "the mask is empty"),
        ({"instances": chairs(1, 2), "strength": 1.5}, "strength is 1.5"),
        ({"instances": chairs(1, 2), "megapixels": 0.0}, "megapixels is 0.0"),
        ({"instances": chairs(1, 2), "start_percent": -1.0}, "start_percent is -1.0"),
    ),
)
def test_what_cannot_work_stops_with_a_sentence(values, message, models):
    with pytest.raises(ValueError, match=message):
        node(models("flux"), "flux", **values)


def test_models_without_references_are_refused(models, sd15):
    for model, name in ((models("chroma"), "chroma"), (sd15, "flux")):
        with pytest.raises(ValueError, match=r"takes no reference images. Load Flux.1 Kontext, Flux.2"):
            node(model, name, instances=chairs(1, 2))
