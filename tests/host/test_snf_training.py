"""Face-diffuser's trainer in the host: both parts from pictures, captions and masks, resumed, and loaded as a user loads them; refusals.

The playground's models play Stable Diffusion 1.5 where a checkpoint is needed: the host's own loaders are told that they know its size.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import comfy.clip_vision
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import folder_paths
import numpy as np
import pytest
import torch
from pack.lab.playground.persons import MARKER, draw_example
from pack.lab.trainers import snf as snf_training
from pack.lab.training import persons_data, sampling
from pack.lab.training.frozen_base import FrozenBase
from pack.lab.training.recipe import run_recipe
from pack.nodes import snf as nodes
from pack.py.host import folders, playground
from pack.py.host.snf import subjects
from pack.py.snf import checkpoint
from pack.py.snf.training import is_trained
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("accelerate", reason="training needs accelerate (requirements-dev.txt)")


class Known(playground.PlaygroundModelConfig):
    """The playground's UNet as one of the models that the host finds in files."""

    unet_config = {"context_dim": playground.CONTEXT_DIM, "model_channels": playground.UNET_CONFIG["model_channels"]}

    def clip_target(self, state_dict={}):  # noqa: B006 (the host's own signature)
        return playground._ClipTarget


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Drawn persons: pictures, masks as files and as run lengths, captions with markers."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for number in range(4):
        drawn = draw_example(number)
        Image.fromarray(drawn.scene.image).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "caption": drawn.prompt})
        for place in range(1, len(drawn.people) + 1):
            mask = drawn.scene.instance_map == place
            Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{number}_{place}.png")
            annotations.append({"image_id": number, "mask": f"{number}_{place}.png"})
    (folder / "data.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "data.json"


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A folder with an ordinary checkpoint of the playground's models, which the host's loaders know."""
    monkeypatch.setattr(comfy.supported_models, "models", [Known, *comfy.supported_models.models])
    vae = {**playground.read_weights("vae"), "vae_scale": torch.tensor(playground.LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
    parts = {
        "model.diffusion_model.": playground.read_weights("unet"),
        "cond_stage_model.transformer.": playground.read_weights("text_encoder"),
        "first_stage_model.": vae,
    }
    state = {prefix + key: value for prefix, group in parts.items() for key, value in group.items()}
    save_file(state, tmp_path / "base.safetensors")
    return tmp_path


@pytest.fixture
def subject_folder(tmp_path, monkeypatch):
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths["face_diffuser"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "face_diffuser", ([str(tmp_path), *paths], extensions))
    return tmp_path


def recipe(file, folder, **more) -> snf_training.SNFRecipe:
    values = {"part": "subject", "base": "playground", "data": str(file), "output": str(folder), "resolution": 128, "batch": 2}
    values |= {
        "accumulation": 1,
        "steps": 2,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "sample_every": 2,
        "sample_steps": 1,
    }
    return snf_training.SNFRecipe(**(values | more))


def drawn_with(file, prompt, count):
    """A step of the loaded subject model, its own prompt and pictures; the three that were loaded."""
    model, vision, fuser = nodes.ExemplaryLoadSubjectModel.execute(file).args
    clip, pictures = playground.load_clip(), torch.rand(count, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    positive, negative = subjects.encode(clip, vision, fuser, prompt, [pictures])
    more = {"steps": 1, "cfg": 2.0, "side": 128}
    image = sampling.sample_image(model, playground.load_vae(), positive, negative, 0, **more)
    assert image.shape == (1, 3, 128, 128) and image.isfinite().all()
    return model, vision, fuser


def test_a_subject_model_of_the_playground_trains_resumes_and_loads(data, subject_folder):
    first = recipe(data, subject_folder, everything=False)
    losses = snf_training.train(first)
    assert len(losses) == 2 and all(np.isfinite(losses)) and min(losses) > 0
    assert len(list(subject_folder.glob("subject_0000002_*.png"))) == 2
    assert len(snf_training.train(dataclasses.replace(first, steps=3))) == 1, "two of the three steps are there already"
    model, vision, fuser = drawn_with("subject.safetensors", f"a person {MARKER} and a person {MARKER}", 2)
    base, found = playground.read_weights("unet"), model.model.diffusion_model.state_dict()
    changed = {key for key in base if not torch.equal(found[key].half(), base[key].half())}
    assert changed and all(is_trained(key) for key in changed)
    tower, before = vision.model.state_dict(), playground.read_weights("image_encoder")
    other = {key for key in before if not torch.equal(tower[key].half(), before[key].half())}
    assert other and all("layers.4." in key or "layers.5." in key for key in other)
    assert fuser.patcher.model.mlp1.fc2.weight.abs().sum() > 0, "the network that fuses persons has learnt"
    again = dataclasses.replace(first, name="more", steps=1, everything=True, start_from="subject.safetensors")
    assert len(snf_training.train(again)) == 1
    start, more = (load_file(subject_folder / f"{name}.safetensors") for name in ("subject", "more"))
    assert set(start) < set(more), "now the whole UNet"
    key = "postfuse_module.mlp1.fc2.weight"
    assert not torch.equal(start[key], more[key]) and torch.allclose(start[key], more[key], atol=3e-3), "it went on from there"
    subjects.load("more.safetensors")


def test_a_subject_model_on_a_checkpoint_is_a_whole_file(data, checkpoints, subject_folder, monkeypatch):
    monkeypatch.setattr(comfy.clip_vision, "load_clipvision_from_sd", lambda sd, *more: playground.load_clip_vision(sd))
    detected = comfy.model_detection.model_config_from_unet_config({**playground.UNET_CONFIG, "num_heads": 4})
    monkeypatch.setattr(comfy.model_detection, "model_config_from_diffusers_unet", lambda sd: detected)
    encoder = str(playground.ASSETS / "image_encoder.safetensors")
    config = {"base": str(checkpoints / "base.safetensors"), "image_encoder": encoder, "name": "own", "steps": 1}
    snf_training.train(recipe(data, checkpoints, **config))
    state = load_file(checkpoints / "own.safetensors")
    found = checkpoint.split_checkpoint(state)
    assert found.width == playground.CONTEXT_DIM and len(found.unet) == len(playground.read_weights("unet"))
    model, _, _ = drawn_with("own.safetensors", f"a person {MARKER} on a street", 1)
    loaded, base = model.model.diffusion_model.state_dict(), playground.read_weights("unet")
    for key, weight in base.items():
        torch.testing.assert_close(loaded[key].float(), weight.float(), rtol=0, atol=5e-3)  # one step away, under its own name
    assert any(not torch.equal(loaded[key].half(), weight.half()) for key, weight in base.items())


def test_a_scene_model_is_the_bases_checkpoint_with_another_unet(data, checkpoints):
    base = checkpoints / "base.safetensors"
    scene = recipe(data, checkpoints, part="scene", base=str(base))
    assert len(snf_training.train(scene)) == 2 and len(list(checkpoints.glob("scene_0000002_*.png"))) == 2
    assert len(snf_training.train(dataclasses.replace(scene, steps=3))) == 1
    before, after = load_file(base), load_file(checkpoints / "scene.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key].half(), after[key].half())}
    assert changed and all(key.startswith("model.diffusion_model.") for key in changed)
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoints / "scene.safetensors"))
    prompt = sampling.encode_prompt(clip, "a person in a park")
    image = sampling.sample_image(model, vae, prompt, prompt, 0, steps=1, cfg=1.0, side=128)
    assert image.shape == (1, 3, 128, 128) and image.isfinite().all()


def test_each_persons_token_mask_and_portrait_belong_together(data, monkeypatch):
    """What the loss of one batch is given, against the data written out; no drops, portraits in flat colours unchanged."""
    chosen = recipe(data, "", caption_drop=0.0, person_drop=0.0, masked=1.0, batch=6)
    base = FrozenBase.load("playground", torch.device("cpu"), torch.float32, "test")
    nets = snf_training.SubjectNetworks.begin(base, chosen)
    torch.nn.init.normal_(nets.postfuse.mlp1.fc2.weight)
    given = []
    monkeypatch.setattr(snf_training, "subject_loss", lambda *arguments: given.extend(arguments) or torch.zeros(()))
    monkeypatch.setattr(snf_training, "AUGMENTATION", lambda squares, rng: squares)
    number = [0]

    def flat(picture, mask, fill, number_of=1, rng=None):
        number[0] += 1
        return torch.full((4, 4, 3), number[0] / 20)

    monkeypatch.setattr(subjects, "crop_to_mask", flat)
    entries = persons_data.read_persons(str(data))
    snf_training.subject_step(nets, chosen, entries)(0, torch.Generator().manual_seed(0))
    _, _, context, positions, masks, used = given[:6]
    rows = torch.randint(len(entries), (6,), generator=torch.Generator().manual_seed(0)).tolist()
    assert {len(entries[row].persons) for row in rows} == {1, 2}, "a batch of both"
    person = 0
    for place, row in enumerate(rows):
        drawn = draw_example(row)
        count = len(drawn.people)
        assert used[place].tolist() == [True] * count + [False] * (2 - count)
        assert positions[place, :count].tolist() == drawn.positions
        text, _ = base.conditions([drawn.text], torch.tensor([False]), 128)
        for column in range(count):
            mask = torch.from_numpy(drawn.scene.instance_map == column + 1).float()
            torch.testing.assert_close(masks[place, column], mask.unflatten(0, (16, 8)).unflatten(2, (16, 8)).mean(dim=(1, 3)))
            person += 1
            embed = nets.embeds(torch.full((1, 3, 128, 128), person / 20))
            expected = nets.postfuse(text[0, positions[place, column]], embed[0])
            torch.testing.assert_close(context[place, positions[place, column]], expected, rtol=1e-3, atol=1e-3)


def test_stable_diffusions_weights_get_the_names_of_the_published_file():
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3, "channel_mult": [1, 2, 4, 4],
        "transformer_depth_middle": 1, "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
    }  # fmt: skip
    unet = UNetModel(**config, dtype=torch.float16, device=torch.device("meta"), operations=comfy.ops.disable_weight_init)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet, model_config=SimpleNamespace(unet_config=config)))
    names = snf_training.diffusers_names(model)
    assert len(set(names.values())) == len(unet.state_dict()) == 686
    assert names["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].startswith("down_blocks.0.attentions.0.")
    assert set(checkpoint.UNET_KEYS) <= set(names.values())
    renamed = {names[key]: value for key, value in unet.state_dict().items()}
    assert isinstance(comfy.model_detection.model_config_from_diffusers_unet(renamed), comfy.supported_models.SD15)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"data": "gone.json"}, "no data file"),
        ({"base": "gone.safetensors", "image_encoder": "x"}, "gone.safetensors' is not a file"),
        ({"start_from": "gone.safetensors"}, "gone.safetensors' is not in"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(data, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        snf_training.train(recipe(data, tmp_path, **change))
    assert not list(tmp_path.glob("*.ckpt"))


def test_an_image_encoder_that_does_not_fit_is_named(data, checkpoints, monkeypatch):
    base = str(checkpoints / "base.safetensors")
    save_file({"x": torch.zeros(1)}, checkpoints / "other.safetensors")
    for path, says in (
        (str(checkpoints / "gone.safetensors"), "is not a file"),
        (str(checkpoints / "other.safetensors"), "is not a CLIP vision model"),
    ):
        with pytest.raises(ValueError, match=says):
            snf_training.train(recipe(data, checkpoints, base=base, image_encoder=path))
    wide = SimpleNamespace(model=SimpleNamespace(visual_projection=torch.nn.Linear(8, 768)))
    monkeypatch.setattr(comfy.clip_vision, "load", lambda path: wide)
    with pytest.raises(ValueError, match="of width 768, the base needs text of width 128"):
        snf_training.train(recipe(data, checkpoints, base=base, image_encoder=base))


def test_markers_are_checked_before_the_first_step(data, tmp_path):
    content = json.loads(data.read_text())
    content["images"][0]["caption"] = f"{MARKER} in a park"
    (data.parent / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"SNF training: 0\.png: the prompt begins with a marker"):
        snf_training.train(recipe(data.parent / "wrong.json", tmp_path))


@pytest.mark.parametrize(
    "content, says",
    [
        ({"part": "person"}, "part is 'person'; it must be 'subject' or 'scene'"),
        ({"part": "subject", "base": "x"}, "needs image_encoder"),
        ({"part": "scene"}, "ComfyUI's loaders do not know"),
        ({"part": "scene", "base": "x", "start_from": "y"}, "start_from is for the part 'subject'"),
        ({"masked": 2}, "masked is 2; it is a share"),
        ({"everything": "yes"}, "everything is 'yes'"),
    ],
)
def test_a_recipe_says_what_is_wrong(tmp_path, content, says):
    config = {"part": "subject", "base": "playground", "data": "d", "output": "o"} | content
    (tmp_path / "c.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        snf_training.SNFRecipe.from_file(tmp_path / "c.json")
    assert run_recipe(snf_training.SNFRecipe, snf_training.train, tmp_path / "c.json") == 1
