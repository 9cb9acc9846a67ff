"""The trainers in the host: a run on the playground from a COCO-style file, resumed; what an SDXL-shaped base is given; refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from pack.lab.trainers import ifadapter as ifadapter_training
from pack.lab.training import frozen_base
from pack.lab.training.recipe import run_recipe
from pack.py.host import hooks, playground
from pack.py.ifadapter import checkpoint
from pack.py.ifadapter.training import Batch, Prepared
from pack.py.playground.scenes import draw_scene
from PIL import Image

pytest.importorskip("accelerate", reason="training needs accelerate (requirements-dev.txt)")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three drawn scenes as a COCO-style file with pictures."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for number in range(3):
        scene = draw_scene("objects", number, count=2 + number % 2)
        Image.fromarray(scene.image).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "caption": scene.caption})
        for each in scene.instances:
            x0, y0, x1, y1 = (128 * edge for edge in each.box)
            annotations.append({"image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0], "caption": each.phrase})
    (folder / "data.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "data.json"


def recipe(file, folder, **more) -> ifadapter_training.IFAdapterRecipe:
    values = {"base": "playground", "data": str(file), "output": str(folder), "resolution": 128, "batch": 2, "accumulation": 1}
    values |= {"steps": 2, "warmup": 1, "learning_rate": 1e-2, "mixed_precision": "no", "sample_every": 2, "sample_steps": 1}
    return ifadapter_training.IFAdapterRecipe(**(values | more))


def test_a_run_trains_saves_draws_and_resumes(data, tmp_path):
    small = {"dim": 32, "dim_head": 16, "heads": 2, "layers": [["middle", 0, 0], ["output", 3, 0]]}
    first = recipe(data, tmp_path, adapter=small)
    losses = ifadapter_training.train(first)
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    config, state = checkpoint.read(tmp_path / "ifadapter.safetensors")
    assert [layer.place for layer in config.layers] == [("middle", 0, 0), ("output", 3, 0)] and config.dim == 32
    assert any(float(state[f"adapter_modules.{layer.key}.alpha"].abs()) > 0 for layer in config.layers)
    assert len(list(tmp_path.glob("ifadapter_0000002_*.png"))) == 2
    assert len(ifadapter_training.train(dataclasses.replace(first, steps=3))) == 1, "two of the three steps are there already"
    again = dataclasses.replace(first, name="more", steps=1, start_from=str(tmp_path / "ifadapter.safetensors"), adapter={})
    assert len(ifadapter_training.train(again)) == 1


def test_an_sdxl_base_reads_zeros_for_a_dropped_prompt_and_has_sizes(sdxl):
    base = frozen_base.FrozenBase(sdxl.clone(), tiny.tiny_clip(True), None, CPU, "test")
    text, more = base.conditions(["a ball", "a cup"], torch.tensor([False, True]), side=128)
    assert text.shape == (2, 77, 80) and text[0].any() and not text[1].any()
    assert more["y"].shape == (2, 48 + 1536) and not more["y"][1, :48].any() and more["y"][0, :48].any()
    assert base.encoders() == (("l", 32), ("g", 48))


def test_other_bases_read_the_empty_text_for_a_dropped_prompt(sd15):
    base = frozen_base.FrozenBase(sd15.clone(), tiny.tiny_clip(False), None, CPU, "test")
    text, more = base.conditions(["a ball", "a cup"], torch.tensor([False, True]), side=128)
    assert torch.equal(text[1], base.empty[0]) and not torch.equal(text[0], text[1]) and more == {}


def test_training_predicts_what_sampling_will(sd15):
    """An untrained adapter leaves the frozen UNet's prediction as it is; a trained one changes it, with gradients."""
    unet = sd15.model.diffusion_model
    config = ifadapter_training.playground_config(unet)
    network = ifadapter_training.IFAdapter(dataclasses.replace(config, encoders=(("l", 64),)))
    x, t, context = torch.randn(2, 4, 8, 12), torch.tensor([3, 700]), torch.randn(2, 77, 64)
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.9], [0.3, 0.2, 1.0, 0.6]]]).repeat(2, 1, 1)
    words = (torch.randn(2, 2, 3, 7, 64), torch.randn(2, 2, 1, 64), torch.full((2, 2), 5))
    batch = Batch(*words, boxes, torch.tensor([[True, True], [True, False]]))
    plain = unet(x, t, context=context)
    out = ifadapter_training.predict_with(unet, network.config, x, t, context, Prepared(network, batch))
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-4)
    for module in network.adapter_modules.values():
        module.alpha.data.fill_(1.0)
    out = ifadapter_training.predict_with(unet, network.config, x, t, context, Prepared(network, batch))
    out.square().mean().backward()
    assert not torch.allclose(out, plain) and all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"base": "gone.safetensors"}, "gone.safetensors' is not a file"),
        ({"data": "gone.json"}, "no data file"),
        ({"adapter": {"layers": [["output", 99, 0]]}}, "no text attention at"),
        ({"adapter": {"wings": 2}}, "wings"),
        ({"adapter": {"text_layers": [-9]}}, "hidden layer -9"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_the_first_step(data, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        ifadapter_training.train(recipe(data, tmp_path, **change))
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize(
    "content, says",
    [
        ("no", "cannot be read as JSON"),
        ('{"base": "playground"}', "missing: data, output"),
        ('{"base": "", "data": "", "output": "", "speed": 3}', "unknown: speed"),
        ('{"base": "", "data": "", "output": "", "batch": 0}', "batch is 0"),
        ('{"base": "", "data": "", "output": "", "resolution": 100}', "multiple of 64"),
    ],
)
def test_a_configuration_file_says_what_is_wrong(tmp_path, content, says):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        ifadapter_training.IFAdapterRecipe.from_file(tmp_path / "c.json")
    assert run_recipe(ifadapter_training.IFAdapterRecipe, ifadapter_training.train, tmp_path / "c.json") == 1


def test_the_playground_gets_its_own_small_adapter():
    model = playground.load_model()
    base = frozen_base.FrozenBase(model, playground.load_clip(), None, CPU, "test")
    assert ifadapter_training.config_for(base, {}) == ifadapter_training.playground_config(model.model.diffusion_model)
    assert len(ifadapter_training.config_for(base, {}).layers) == len(hooks.attention_blocks(model.model.diffusion_model))
