"""CA2-SIS's trainer on folders and shards of pictures with maps: a file comes out that the Load node reads; a run resumes."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from pack.lab.trainers import ca2sis as ca2sis_training
from pack.lab.training.paired_data import pairs_in_folders, pairs_in_shards
from pack.lab.training.recipe import run_recipe
from pack.py.ca2sis import checkpoint
from pack.py.ca2sis.training import Vgg19
from PIL import Image

SMALL = {
    "style_dim": 4, "encoder_width": 1, "grid": [4, 4], "mask_size": [8, 8], "head_dims": [2, 2, 2, 2, 2], "noise_dim": 4,
    "noise_width": 8,
}  # fmt: skip


def encoded(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name in ("a", "b"):
            picture = encoded(rng.integers(0, 255, (80, 90, 3), dtype=np.uint8))
            labels = encoded(np.repeat(np.repeat(rng.integers(0, 3, (4, 5), dtype=np.uint8), 20, 0), 18, 1))
            (tmp_path / "images" / f"{name}.png").write_bytes(picture)
            (tmp_path / "maps" / f"{name}.png").write_bytes(labels)
            for ending, content in ((".png", picture), (".seg.png", labels)):
                member = tarfile.TarInfo(name + ending)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return tmp_path


def recipe(folder, **more):
    values = {
        "output": str(folder / "out"), "classes": ["none", "skin", "hair"], "images": str(folder / "images"),
        "maps": str(folder / "maps"), "config": SMALL, "batch": 1, "steps": 2, "noise_steps": 1, "sample_every": 1, **more,
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(values))
    return folder / "recipe.json"


def run(path):
    return run_recipe(ca2sis_training.CA2SISRecipe, ca2sis_training.train, path)


def test_folders_become_weights_that_load(data):
    assert run(recipe(data)) == 0
    found = checkpoint.load(data / "out" / "ca2sis.safetensors")
    assert found.labels == ("none", "skin", "hair") and found.config.image_size == (64, 64) and found.config.noise_dim == 4
    assert sorted(p.name for p in (data / "out").glob("*.png")) == ["ca2sis_0000001.png", "ca2sis_0000002.png"]
    assert run(recipe(data, steps=3)) == 0, "resumed"


def test_shards_hold_the_same_pairs(data):
    folders = pairs_in_folders(data / "images", data / "maps")
    shards = pairs_in_shards(str(data / "*.tar"))
    for a, b in zip(folders, shards, strict=True):
        assert a.image.read() == b.image.read() and a.map.read() == b.map.read()
    image, labels = shards[0].load_labels(64, torch.Generator().manual_seed(0))
    assert (
        image.shape == (3, 64, 64)
        and labels.shape == (64, 64)
        and image.abs().max() <= 1.2
        and set(labels.unique().tolist()) <= {0, 1, 2}
    )


def test_a_backbone_has_the_published_layers():
    state = {key: torch.zeros(shape) for key, shape in _vgg_shapes().items()}
    network = Vgg19(state)
    assert [f.shape[1] for f in network(torch.zeros(1, 3, 32, 32))] == [64, 128, 256, 512, 512]
    with pytest.raises(ValueError, match=r"lacks features\.0\.weight"):
        Vgg19({})


def _vgg_shapes():
    """torchvision's vgg19 up to its relu5_1: number of the layer, channels in and out."""
    convolutions = (
        (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256), (16, 256, 256),
        (19, 256, 512), (21, 512, 512), (23, 512, 512), (25, 512, 512), (28, 512, 512),
    )  # fmt: skip
    return {
        f"features.{n}.{part}": (b, a, 3, 3) if part == "weight" else (b,)
        for n, a, b in convolutions
        for part in ("weight", "bias")
    }


def _shard_without_maps(folder):
    path = folder / "pictures.tar"
    with tarfile.open(path, "w") as shard:
        for picture in sorted((folder / "images").iterdir()):
            shard.add(picture, picture.name)
    return path


def test_what_cannot_be_trained_is_said(data, caplog):
    for more, says in (
        ({"images": str(data / "none")}, "is not a folder"),
        ({"maps": str(data)}, "has a map of its name"),
        ({"classes": ["none", "skin"]}, "the map has labels 2"),
        ({"config": {"colour": 1}}, "colour"),
        ({"typo": 1}, "unknown: typo"),
        ({"batch": 0}, "batch is 0"),
        ({"images": None}, "or shards"),
        ({"shards": str(data / "*.zip")}, "There is no data file"),
        ({"shards": str(_shard_without_maps(data))}, "no <key>.jpg with <key>.map.png"),
    ):
        caplog.clear()
        assert run(recipe(data, **more)) == 1
        assert says in caplog.text
