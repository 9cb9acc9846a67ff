"""Paint by Example's files: the published pipeline's numbers from the same weights, what is missing, the playground's recipe, the score."""

from __future__ import annotations

import json

import comfy.sample
import comfy.samplers
import exemplars
import folder_paths
import pytest
import torch
from pack.lab.playground import paint_by_example_networks as playground_training
from pack.lab.playground.recipes import paint_by_example as recipe
from pack.lab.trainers import paint_by_example as paint_by_example_training
from pack.lab.training.loop import Schedule
from pack.lab.training.recipe import run_recipe
from pack.nodes import evaluation as evaluation_nodes
from pack.nodes import paint_by_example as nodes
from pack.py.host import folders, playground
from pack.py.host.paint_by_example import conditioning, loader, prepare
from pack.py.paint_by_example import checkpoint
from pack.py.paint_by_example.training import is_trained
from painting import WHOLE, hole, pictures, sample
from torch.testing import assert_close


@pytest.fixture(scope="module")
def pipe():
    return exemplars.pipeline()


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paint_by_example")
    folders.register()
    folder_paths.add_model_folder_path("paint_by_example", str(folder), is_default=True)
    exemplars.write(pipe, folder)
    yield folder
    folder_paths.folder_names_and_paths["paint_by_example"][0].remove(str(folder))


def test_both_layouts_give_identical_tensors(files):
    names = ("published.ckpt", "published.safetensors", "folder/unet/diffusion_pytorch_model.bin")
    first, *others = (loader.read_contents(name) for name in names)
    for other in others:
        for part in ("unet", "tower", "mapper"):
            one, two = getattr(first, part), getattr(other, part)
            assert one and one.keys() == two.keys(), part
            assert all(torch.equal(one[name], two[name]) for name in one), part


def test_the_same_weights_make_the_same_latents_as_the_published_pipeline(pipe, files, monkeypatch):
    """Its mask resizing and exemplar crop selected; ten steps of DDIM, guidance 5; latents to 1e-3, encoder output to 1e-5."""
    monkeypatch.setattr(loader.notices, "warn_user", lambda message: None)  # these files have no VAE
    model, encoder, vae = loader.load("published.ckpt")
    assert vae is None
    image, mask, exemplar = pictures(), hole(y0=10, y1=45, x0=20, x1=50), (pictures(1, 32, 48, 3) * 255).round() / 255
    pixels = pipe.feature_extractor(images=(exemplar[0] * 255).round().byte().numpy(), return_tensors="pt").pixel_values
    with torch.no_grad():
        token, null = pipe.image_encoder(pixels, return_uncond_vector=True)
    positive, negative = conditioning.make_conditioning(encoder, exemplar, fit="center_crop")
    assert_close(positive[0][0], token, rtol=0, atol=1e-5)
    assert torch.equal(negative[0][0], null)

    tiny_vae = exemplars.DiffusersVAE(pipe.vae)
    positive, negative, latent, _ = prepare.prepare(positive, negative, tiny_vae, image, mask, mask_resize="nearest", **WHOLE)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    first = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 10)[0]
    # The host scales noise to sigma where the first step is not its noisiest; DDIM's picture is noise of deviation 1 there.
    scaled = noise * (1 + first**2).sqrt() / first
    with torch.inference_mode():
        found = comfy.sample.sample(
            model, scaled, 10, 5.0, "euler", "ddim_uniform", positive, negative, latent["samples"], disable_pbar=True
        )
    expected = pipe(
        example_image=pixels,
        image=image.movedim(-1, 1) * 2 - 1,
        mask_image=mask[:, None],
        num_inference_steps=10,
        guidance_scale=5.0,
        latents=noise.clone(),
        output_type="latent",
    ).images
    assert_close(model.model.process_latent_in(found), expected, rtol=0, atol=1e-3)


def test_what_is_missing_is_said_before_anything_is_built(files):
    def says(text, *arguments):
        with pytest.raises(ValueError, match=text):
            loader.load(*arguments)

    says("'nothing.ckpt' is not in .*paint_by_example.*huggingface", "nothing.ckpt")
    (files / "half.ckpt").write_bytes((files / "published.ckpt").read_bytes()[:100_000])
    says("Load Paint by Example: half.ckpt cannot be read as weights", "half.ckpt")
    torch.save(torch.load(files / "folder" / "unet" / "diffusion_pytorch_model.bin"), files / "alone.bin")
    says(".alone.bin. contains no exemplar encoder.*encoder_file", "alone.bin")


# The playground


def test_the_recipe_trains_and_its_file_is_what_the_loader_gives(tmp_path, monkeypatch):
    """Two steps; the file holds what was trained and nothing else, and comes back through the node."""
    nets = playground_training.playground_networks(lambda images: torch.nn.functional.avg_pool2d(images, 8)[:, [0, 1, 2, 0]])
    before = {name: p.clone() for name, p in nets.unet.named_parameters()}
    monkeypatch.setattr(recipe, "BATCH", 4)
    recipe.train(nets, tmp_path, Schedule(steps=2, learning_rate=1e-3, warmup=1, mixed_precision="no"), examples=6)
    for name, parameter in nets.unet.named_parameters():
        assert parameter.requires_grad == is_trained(name)
        if not is_trained(name):
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(nets.unet.state_dict()["input_blocks.0.0.weight"][:, 4:], before["input_blocks.0.0.weight"][:, 4:])

    folders.register()
    folder_paths.add_model_folder_path("paint_by_example", str(tmp_path), is_default=True)
    try:
        path = playground_training.export_weights(nets, tmp_path / "small.safetensors")
        assert path.stat().st_size < 10e6
        model, encoder, vae = nodes.ExemplaryLoadPaintByExample.execute("small.safetensors", loader.SAME_FILE).args
    finally:
        folder_paths.folder_names_and_paths["paint_by_example"][0].remove(str(tmp_path))
    loaded = model.model.diffusion_model.state_dict()
    for name, weight in nets.unet.state_dict().items():
        assert_close(loaded[name].float(), weight, rtol=1e-3, atol=1e-3)  # float16
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = nets.mapper(nets.pooled(recipe.normalise(pixels)))
    assert_close(encoder.encode(pixels), expected, rtol=1e-2, atol=1e-2)  # float16 weights
    positive, negative = conditioning.make_conditioning(encoder, pictures(1, 50, 40))
    ready = prepare.prepare(
        positive, negative, vae, pictures(1, 128, 128), hole(128, 128), **{**WHOLE, "width": 128, "height": 128}
    )
    assert sample(model, ready).isfinite().all()
    assert tuple(playground.load_model().model.concat_keys) == ()


def test_own_pictures_train_any_of_these_files(tmp_path):
    """One step of the user's trainer, from the playground's file; what comes out is loaded like every other."""
    from PIL import Image

    for number in range(2):
        pixels = (pictures(1, 140, 150, seed=number)[0] * 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "caption": "noise"} for n in range(2)],
        "annotations": [{"image_id": n, "bbox": [30, 20, 60, 70], "caption": "a thing"} for n in range(2)],
    }
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="ascii")
    nets = playground_training.playground_networks(lambda images: images)
    folders.register()
    folder_paths.add_model_folder_path("paint_by_example", str(tmp_path), is_default=True)
    try:
        playground_training.export_weights(nets, tmp_path / "start.safetensors")
        config = {"base": "start.safetensors", "data": str(tmp_path / "data.json"), "output": str(tmp_path), "name": "own"}
        config |= {"resolution": 128, "batch": 2, "accumulation": 1, "steps": 1, "warmup": 1, "learning_rate": 1e-2}
        (tmp_path / "config.json").write_text(
            json.dumps(config | {"mixed_precision": "no", "everything": False}), encoding="ascii"
        )
        assert (
            run_recipe(paint_by_example_training.PaintByExampleRecipe, paint_by_example_training.train, tmp_path / "config.json")
            == 0
        )
        start, own = (checkpoint.read(tmp_path / f"{name}.safetensors") for name in ("start", "own"))
        assert own.unet.keys() == start.unet.keys() and own.metadata["base"] == "playground"
        first = "input_blocks.0.0.weight"
        assert not torch.equal(own.unet[first], start.unet[first]) and not torch.equal(
            own.mapper["proj_out.weight"], start.mapper["proj_out.weight"]
        )
        assert loader.load("own.safetensors")[2] is not None
        (tmp_path / "config.json").write_text(json.dumps({"base": "x", "lr": 1}), encoding="ascii")
        with pytest.raises(ValueError, match="missing: data, output"):
            paint_by_example_training.PaintByExampleRecipe.from_file(tmp_path / "config.json")
    finally:
        folder_paths.folder_names_and_paths["paint_by_example"][0].remove(str(tmp_path))


def test_the_region_score_is_full_for_the_exemplar_itself():
    vision = playground.load_clip_vision()
    image, exemplar = pictures(2, 128, 128, seed=1), pictures(1, 128, 128, seed=2)
    image[0, 32:96, 32:96] = exemplar[0, ::2, ::2]
    mask = hole(128, 128, 32, 96, 32, 96)
    image[1] = 0.5
    run = evaluation_nodes.ExemplaryRegionCLIPScore.execute
    high, report = run(vision, image[:1], mask, exemplar[:, ::2, ::2]).args
    both, _ = run(vision, image, mask, exemplar[:, ::2, ::2]).args
    assert high > 99 and both < high and "image 1" in report
    with pytest.raises(ValueError, match="mask has 3 images, but image has 2"):
        run(vision, image, torch.cat([mask] * 3), exemplar)
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        run(vision, image, torch.zeros(1, 8, 8), exemplar)
