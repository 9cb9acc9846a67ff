"""The playground's transformer base: references as further rows, regions that choose among them, a training pass equal to the host's."""

from __future__ import annotations

from dataclasses import replace

import comfy.sample
import pytest
import torch
from pack.lab.playground.recipes import transformer as recipe
from pack.lab.playground.recipes import transformer_network as network
from pack.py.host import playground_transformer as transformer
from pack.py.host.ifadapter.references import RegionalReferences
from pack.py.host.joint.apply import install
from pack.py.host.schedule import PercentRange
from pack.py.ifadapter.instances import Instance

CONFIG = {key: value for key, value in transformer.NETWORK_CONFIG.items() if key != "image_model"}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(3)
    net = network.new_network(CONFIG)
    with torch.no_grad():
        for parameter in net.parameters():
            if not bool(parameter.any()):
                parameter.normal_(0, 0.05)
    return net.state_dict()


@pytest.fixture(scope="module")
def model(weights):
    return transformer.load_transformer(weights)


def latent(seed: int, h: int, w: int) -> torch.Tensor:
    return torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(seed)) * 5


def conditioning(seed: int, *references: torch.Tensor) -> list:
    text = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(seed))
    return [[text, {"reference_latents": list(references)} if references else {}]]


def sample(model, positive, negative=None) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(5))
    negative = negative or conditioning(2)
    zeros = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", positive, negative, zeros, disable_pbar=True, seed=1)


def test_the_training_pass_is_the_hosts_forward_pass(weights):
    net = network.new_network(CONFIG)
    net.load_state_dict(weights)
    x, sigma, text = latent(1, 16, 16), torch.tensor([0.6]), torch.randn(1, 9, 128)
    with torch.no_grad():
        wanted = net(x, sigma, context=text, num_tokens=9, transformer_options={})
        padded = torch.cat([text, torch.zeros(1, 23, 128)], dim=1)
        found = network.predict(
            net, x, sigma, padded, torch.arange(32)[None] < 9, network.rotary_table(net, 32, 16, 16), dtype=torch.float32
        )
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_references_lie_side_by_side_and_a_wide_one_is_refused():
    references = [latent(1, 8, 8), latent(2, 8, 8), latent(3, 4, 6)]
    assert transformer.place_references(references, 16) == ([(0, 0), (0, 8), (8, 0)], 12)
    with pytest.raises(ValueError, match="256 pixels wide"):
        transformer.place_references([latent(1, 4, 32)], 16)


def test_a_reference_changes_the_image_and_none_changes_nothing(model):
    plain = sample(model, conditioning(1))
    assert plain.shape == (1, 4, 8, 16)
    assert (sample(model, conditioning(1, latent(7, 8, 8))) - plain).abs().max() > 1e-3


def test_a_region_attends_to_its_reference_only(model):
    """With a reference that no region covers, what is in it has exactly no effect."""
    whole = Instance((0.0, 0.0, 1.0, 1.0), "all")
    nowhere = Instance((0.0, 0.0, 1.0, 1.0), "none", strength=0.0)
    acting = install(model, RegionalReferences("Test", PercentRange(), (), 0, (whole, nowhere), 1.0))
    images = [
        sample(
            acting, conditioning(1, latent(7, 8, 8), latent(other, 8, 8)), conditioning(2, latent(7, 8, 8), latent(other, 8, 8))
        )
        for other in (8, 9)
    ]
    assert torch.equal(*images)
    changed = sample(acting, conditioning(1, latent(6, 8, 8), latent(8, 8, 8)), conditioning(2, latent(6, 8, 8), latent(8, 8, 8)))
    assert (changed - images[0]).abs().max() > 1e-3


def test_a_regional_reference_is_seen_in_its_box_only():
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]]).repeat(2, 1, 1)
    bias = recipe.regional_bias(boxes, torch.tensor([2, 2]), torch.tensor([True, False])).float()[:, 0]
    assert not bool(bias[1].any()), "the other row sees everything"
    cells, references = slice(recipe.TEXT, recipe.TEXT + 256), slice(recipe.TEXT + 256, None)
    seen = (bias[0, cells, references] == 0).view(16, 16, 8, 16)
    assert bool(seen[0, 0, :, :8].all()) and not bool(seen[0, 0, :, 8:].any())
    assert bool(seen[15, 15, :, 8:].all()) and not bool(seen[0, 15].any())
    assert bool((bias[0, : recipe.TEXT, references] < 0).all()) and bool((bias[0, references, cells] < 0).all())


def test_training_steps_change_all_parts_and_resume_from_a_checkpoint(tmp_path):
    config = {**CONFIG, "n_layers": 3}
    table = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))

    def encode(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images[:, :1]], dim=1)[:, :, ::8, ::8]

    def trained(steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)
        net = network.new_network(config)
        schedule = replace(recipe.SCHEDULE, steps=steps, cooldown=1, warmup=1, checkpoint_every=1, mixed_precision="no")
        recipe.train(net, lambda tokens: table[tokens], encode, tmp_path, schedule, examples=64, compiled=False)
        return {name: value.clone() for name, value in net.state_dict().items()}

    first, second = trained(2), trained(3)
    assert all(bool(value.isfinite().all()) for value in second.values())
    moved = {name.split(".")[0] for name, value in second.items() if not torch.equal(value, first[name])}
    assert moved >= {"layers", "noise_refiner", "context_refiner", "x_embedder", "cap_embedder", "final_layer"}
    assert torch.load(tmp_path / "transformer.ckpt", weights_only=True)["step"] == 3
