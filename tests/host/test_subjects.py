"""Subject models in the host: their files, and prompts with markers, on the playground's own text and image encoders."""

from __future__ import annotations

import folder_paths
import pytest
import torch
from pack.lab.playground import subject_networks as subject_training
from pack.lab.playground.persons import MARKER, draw_example, held_out_pairings
from pack.lab.playground.recipes import image_encoder, subject
from pack.nodes import snf as nodes
from pack.py.host import folders, playground
from pack.py.host.snf import subjects
from pack.py.playground import vocabulary
from pack.py.snf import checkpoint
from pack.py.snf.model import Postfuse
from pack.py.snf.training import is_trained, is_trained_in_encoder
from safetensors.torch import load_file, save_file

WIDTH = playground.CONTEXT_DIM


def small_file(path, amount=0.01):
    """A small subject model whose every changed weight is the base's plus `amount`."""
    layers = image_encoder.CONFIG["num_hidden_layers"]
    unet = {k: v + amount for k, v in playground.read_weights("unet").items() if is_trained(k)}
    tower = {k: v + amount for k, v in playground.read_weights("image_encoder").items() if is_trained_in_encoder(k, layers)}
    state = checkpoint.join_partial(unet, tower, Postfuse(WIDTH).state_dict())
    save_file({k: v.half().contiguous() for k, v in state.items()}, path)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of its own, with a small subject model, and other files."""
    path = tmp_path_factory.mktemp("face_diffuser")
    torch.manual_seed(0)
    small_file(path / "small.safetensors")
    (path / "cut.safetensors").write_bytes((path / "small.safetensors").read_bytes()[:1000])
    (path / "page.bin").write_text("<!DOCTYPE html><html></html>")
    weights = load_file(path / "small.safetensors")
    weights["postfuse_module.layer_norm.bias"][0] = float("nan")
    save_file(weights, path / "nan.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path / "lora.safetensors")
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths["face_diffuser"]
    folder_paths.folder_names_and_paths["face_diffuser"] = ([str(path), *paths], extensions)
    yield path
    folder_paths.folder_names_and_paths["face_diffuser"] = (paths, extensions)


@pytest.fixture(scope="module")
def loaded(folder):
    return nodes.ExemplaryLoadSubjectModel.execute("small.safetensors").args


@pytest.fixture(scope="module")
def clip():
    return playground.load_clip()


def pictures(count, size=128):
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(count))


def test_a_small_file_is_laid_over_the_playgrounds_base(loaded):
    model, vision, fuser = loaded
    base, found = playground.read_weights("unet"), model.model.diffusion_model.state_dict()
    changed = {key for key in base if not torch.equal(found[key].half(), base[key])}
    assert changed == {key for key in base if is_trained(key)} and len(changed) < len(base)
    assert fuser.width == WIDTH and vision.image_size == 128
    assert playground.load_model().model.diffusion_model is not model.model.diffusion_model


@pytest.mark.parametrize(
    "file, says",
    [
        ("cut.safetensors", "inside its header.*download is incomplete"),
        ("lora.safetensors", "is a LoRA"),
        ("none.safetensors", "huggingface.co/CodeGoat24"),
        ("page.bin", "it is a web page.*huggingface.co/CodeGoat24"),
        ("nan.safetensors", "weight 'layer_norm.bias' contains NaN"),
    ],
)
def test_other_files_are_explained(folder, file, says):
    with pytest.raises(ValueError, match=says):
        subjects.load(file)


def test_a_small_file_of_another_base_is_refused(folder):
    weights = checkpoint.join_partial({"input_blocks.1.1.proj_in.weight": torch.zeros(3, 3)}, {}, Postfuse(WIDTH).state_dict())
    base = checkpoint.SubjectParts(playground.read_weights("unet"), {}, {}, WIDTH)
    with pytest.raises(ValueError, match="another base: input_blocks"):
        checkpoint.split_partial(weights, base, "x")


def rows_that_differ(subject_cond, text_cond):
    return (subject_cond[0][0] != text_cond[0][0]).any(dim=-1).flatten().nonzero().flatten().tolist()


def test_each_marker_changes_the_row_of_its_word_and_no_other(clip, loaded):
    prompt = f"a person {MARKER} and a person{MARKER} in a park"
    found = nodes.ExemplarySubjectEncode.execute([clip], [loaded[1]], [loaded[2]], [prompt], [pictures(2)], ["noise"]).args
    assert rows_that_differ(*found) == [2, 5]
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a person and a person in a park"))
    assert torch.equal(found[1][0][0], plain[0][0])


def test_a_list_gives_one_person_a_marker_and_a_batch_in_it_is_one_person(clip, loaded):
    one, two = pictures(1), pictures(2)
    prompt = f"a person {MARKER} and a person {MARKER}"
    singles, _ = subjects.encode(clip, loaded[1], loaded[2], prompt, [one, two])
    again, _ = subjects.encode(clip, loaded[1], loaded[2], prompt, [one, two.flip(0)])
    torch.testing.assert_close(singles[0][0], again[0][0])
    other, _ = subjects.encode(clip, loaded[1], loaded[2], prompt, [one, two[:1]])
    assert not torch.allclose(singles[0][0], other[0][0])


def test_the_marker_of_fastcomposers_page_is_read_as_well(clip, loaded):
    found = subjects.encode(clip, loaded[1], loaded[2], "a person <A*> and a person <A*> in a park", [pictures(2)])
    same = subjects.encode(clip, loaded[1], loaded[2], f"a person {MARKER} and a person {MARKER} in a park", [pictures(2)])
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(found, same, strict=True))
    assert rows_that_differ(*found) == [2, 5]


def test_half_precision_alpha_and_masks_of_four_dimensions_give_the_same(clip, loaded):
    prompt, image = f"a person {MARKER}", pictures(1).half().float()
    mask = torch.zeros(1, 128, 128)
    mask[:, 20:100, 30:90] = 1
    expected = subjects.encode(clip, loaded[1], loaded[2], prompt, [image], [mask])[0][0][0]
    forms = (
        (image.half(), mask.half()),
        (torch.cat([image, image[..., :1]], dim=-1), mask[:, None]),
        (image, mask[..., None].bool()),
    )
    for images, masks in forms:
        assert torch.equal(subjects.encode(clip, loaded[1], loaded[2], prompt, [images], [masks])[0][0][0], expected)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"images": [torch.zeros(0, 8, 8, 3)]}, "images is empty"),
        ({"images": [torch.zeros(1, 8, 8, 2)]}, "images is a tensor of shape"),
        ({"images": [torch.full((1, 8, 8, 3), float("nan"))]}, "images contains NaN"),
        ({"fill": "nope"}, "fill is 'nope'; choose one of: noise, gray, black"),
        ({"prompt": 3}, "prompt is 3; it must be text"),
        ({"clip": None}, "clip input is empty"),
    ],
)
def test_odd_inputs_are_named(clip, loaded, change, says):
    given = {"clip": clip, "clip_vision": loaded[1], "fuser": loaded[2], "prompt": f"a person {MARKER}", "images": [pictures(1)]}
    with pytest.raises(ValueError, match=f"Subject Encode: .*{says}|Subject Encode: the {says}"):
        subjects.encode(**{**given, **change})


@pytest.mark.parametrize(
    "prompt, count, says",
    [
        (f"{MARKER} in a park", 1, "begins with a marker"),
        (f"a person {MARKER} {MARKER}", 2, "markers 1 and 2 follow each other"),
        (f"a person {MARKER} and a person {MARKER}", 1, "2 markers but there are only 1 images"),
        (f"a person {MARKER} and a person {MARKER}", 3, "3 images but only 2 markers"),
        ("a person", 1, "has no marker"),
        ("red " * 90 + f"person {MARKER}", 1, "more than 75 tokens"),
    ],
)
def test_mistakes_with_markers_are_explained(clip, loaded, prompt, count, says):
    with pytest.raises(ValueError, match=says):
        subjects.encode(clip, loaded[1], loaded[2], prompt, [pictures(count)])


def test_a_mask_crops_and_fills(clip, loaded):
    picture, mask = torch.full((40, 60, 3), 0.8), torch.zeros(20, 30)
    mask[5:15, 10:20] = 1
    for fill, around in (("black", 0.0), ("gray", 0.5)):
        mask[5, 10] = 0
        found = subjects.crop_to_mask(picture, mask, fill)
        assert found.shape == (20, 20, 3)
        assert found[0, 0].max() == pytest.approx(around, abs=0.12) and found[10, 10].min() == pytest.approx(0.8)
    prompt = f"a person {MARKER}"
    shown, hidden = (
        subjects.encode(clip, loaded[1], loaded[2], prompt, [pictures(1)], masks)[0][0][0] for masks in ((), (mask[None],))
    )
    assert not torch.equal(shown, hidden)
    with pytest.raises(ValueError, match="mask of image 1 is empty"):
        subjects.encode(clip, loaded[1], loaded[2], prompt, [pictures(1)], [torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match="2 masks for 1 images"):
        subjects.encode(clip, loaded[1], loaded[2], prompt, [pictures(1)], [torch.ones(3, 8, 8)[:2]])


def test_a_wide_picture_stands_on_a_black_square():
    found = subjects.pad_to_square(torch.ones(10, 40, 3), 40)
    assert found.shape == (40, 40, 3) and found[:15].max() == 0 and found[15:25].min() == 1


# The playground's training pictures, and a step of it


def test_examples_know_their_persons():
    for number in range(12):
        example = draw_example(number)
        words = vocabulary.split_words(example.text)
        assert [words[place - 1] for place in example.positions] == ["person"] * len(example.people)
        assert len(example.scene.instances) == len(example.references) == len(example.people)
        assert [i.attributes for i in example.scene.instances] == [who.attributes() for who in example.people]
        assert not vocabulary.unknown_words(example.text)
    pairing = held_out_pairings(1, people=2)[0]
    assert pairing.prompt.count(MARKER) == 2 and MARKER not in pairing.text and len(pairing.references) == 2


def test_one_training_step_changes_what_is_to_be_trained_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = playground.new_autoencoder()
    nets = subject_training.playground_networks(lambda images: model.taesd_encoder(images))
    before = {name: p.detach().clone() for net in (nets.unet, nets.tower) for name, p in net.named_parameters()}
    schedule = subject.Schedule(steps=1, learning_rate=1e-2, warmup=1, ema=0.0, mixed_precision="no")
    subject.train(nets, tmp_path, schedule, examples=6)
    changed = {
        name for net in (nets.unet, nets.tower) for name, p in net.named_parameters() if not torch.equal(p.detach(), before[name])
    }
    assert changed and all(is_trained(name) or "layers.4." in name or "layers.5." in name for name in changed)
    assert nets.postfuse.mlp1.fc2.weight.abs().sum() > 0
