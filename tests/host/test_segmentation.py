"""Segment Image on small random networks that are saved as people have them: a Hugging Face folder without network access."""

from __future__ import annotations

import json

import folder_paths
import pytest
import torch
from pack.nodes import segmentation as nodes
from pack.nodes import semantic_map_files as file_nodes
from pack.py.host.semantic import files, segmentation
from pack.py.playground.scenes import HELD_OUT, draw_scene
from pack.py.semantic.model_palettes import classes_in_palette
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.semantic_map import SemanticMap

CITY = named_palette("Cityscapes / BDD100K")
SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}


def id2label(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def backbone():
    from transformers import SwinConfig

    return SwinConfig(**SWIN, out_features=["stage1", "stage2", "stage3", "stage4"])


def segformer(names=CITY.names):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {
        "hidden_sizes": [8, 8, 16, 16],
        "num_attention_heads": [1, 1, 2, 2],
        "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 16,
    }
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, **id2label(names)))


def upernet(names=CITY.names):
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=backbone(), hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=32, **id2label(names)
    )
    return UperNetForSemanticSegmentation(config)


def mask2former(names=CITY.names):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    config = Mask2FormerConfig(
        backbone_config=backbone(),
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        **sizes,
        **id2label(names),
    )
    return Mask2FormerForUniversalSegmentation(config)


def oneformer(names=CITY.names):
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    sizes = {"conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    config = OneFormerConfig(
        backbone_config=backbone(), encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5, use_task_norm=False,
        text_encoder_width=32, text_encoder_num_layers=1, text_encoder_vocab_size=64, is_training=False, **sizes, **id2label(names),
    )  # fmt: skip
    return OneFormerForUniversalSegmentation(config)


NETWORKS = {"segformer": segformer, "upernet": upernet, "mask2former": mask2former, "oneformer": oneformer}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "segmentation", ([str(tmp_path / "segmentation")], set()))
    return tmp_path / "segmentation"


def save(network, place, size=None):
    torch.manual_seed(0)
    network.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"size": size or {"height": 64, "width": 64}}), encoding="utf-8")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_hugging_face_folder_makes_maps_of_any_size(folder, kind):
    save(NETWORKS[kind](), folder / kind)
    assert segmentation.models() == [segmentation.DETECTOR, kind]
    loaded = nodes.ExemplaryLoadSegmentationModel.execute(kind)[0]
    image = torch.rand(2, 75, 130, 3, generator=torch.Generator().manual_seed(1))
    semantic_map, notes = segmentation.segment(image, loaded)
    assert semantic_map.labels.shape == (2, 75, 130) and semantic_map.palette == CITY and not notes
    again, _ = segmentation.segment(image[1:], loaded)
    assert torch.equal(again.labels[0], semantic_map.labels[1]), "an image's map depends on its batch"
    tiled, _ = segmentation.segment(image[:1], loaded, tile_size=64)
    assert tiled.size == (75, 130)
    nothing, _ = segmentation.segment(image[:1], loaded, min_confidence=1.0)
    assert (nothing.labels == VOID).all()


def test_the_map_is_the_networks_own_answer(folder):
    network = segformer()
    save(network, folder / "a" / "b")
    loaded = segmentation.load("a/b", "float32")
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = network.eval()(((image[0].movedim(-1, 0) - mean) / std)[None]).logits
    expected = torch.nn.functional.interpolate(logits.softmax(dim=1), (64, 64), mode="bilinear").argmax(dim=1)
    assert torch.equal(segmentation.segment(image, loaded)[0].labels.long(), expected)


def test_the_detector_segments_drawn_images_at_once():
    scene = draw_scene("street", HELD_OUT, 128)
    image = torch.from_numpy(scene.image).float()[None] / 255
    semantic_map = nodes.ExemplarySegmentImage.execute(image, "automatic", 0, 0)[0]
    assert semantic_map.palette == named_palette("playground")
    assert (semantic_map.labels[0].numpy() == scene.labels).mean() > 0.9
    large = torch.nn.functional.interpolate(image.movedim(-1, 1), (400, 400), mode="bilinear").movedim(1, -1)
    tiled = nodes.ExemplarySegmentImage.execute(large, "automatic", 0, 320)[0]
    assert tiled.size == (400, 400)
    converted, _ = segmentation.segment(image, palette="Cityscapes / BDD100K")
    road = named_palette("playground").find("road")
    assert (converted.labels == CITY.find("road")).float().mean() == (semantic_map.labels == road).float().mean()


def test_classes_find_their_data_set():
    assert classes_in_palette(CITY.names).palette == CITY
    coco = named_palette("COCO panoptic")
    assert classes_in_palette(coco.names).palette == coco
    ade = [f"{name}, other word" for name in named_palette("ADE20K").names]
    assert classes_in_palette(ade).palette.name == "ADE20K"
    celeb, bisenet = named_palette("CelebAMask-HQ"), named_palette("BiSeNet face parsing")
    assert classes_in_palette(celeb.names).palette == celeb and classes_in_palette(bisenet.names).palette == bisenet
    assert classes_in_palette(bisenet.names, celeb).labels.tolist() == [celeb.find(name) for name in bisenet.names]
    own = classes_in_palette(["cat", "dog", "hamster", "cat"])
    assert own.palette.names == ("cat", "dog", "hamster", "cat 3") and own.palette.is_open
    unnamed = classes_in_palette([f"LABEL_{n}" for n in range(19)])
    assert unnamed.unnamed and classes_in_palette([f"LABEL_{n}" for n in range(19)], celeb).palette == celeb
    with pytest.raises(ValueError, match="20 classes without names"):
        classes_in_palette([f"LABEL_{n}" for n in range(20)], celeb)
    lacking = classes_in_palette(["sky", "hamster"], CITY)
    assert lacking.unmatched == ("hamster",) and lacking.labels.tolist() == [CITY.find("sky"), VOID]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is not a folder with a config.json"),
        ("{", "cannot be loaded"),
        ('{"model_type": "bert"}', "its kind is 'bert'"),
        ('{"model_type": "segformer"}', "no model.safetensors"),
        ('{"model_type": "unheard_of"}', "cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_explained(folder, config, message):
    if config is not None:
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        segmentation.load("x")
    assert "weights_only" not in str(caught.value) and str(folder / "x") not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc", "\0", 3, None])
def test_no_folder_outside_is_loaded(folder, name):
    with pytest.raises(ValueError, match="is not a folder with a config"):
        segmentation.load(name)


# Save and Load Semantic Map


@pytest.fixture
def directories(tmp_path):
    kept = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    folder_paths.set_input_directory(str(tmp_path / "in"))
    folder_paths.set_output_directory(str(tmp_path / "out"))
    yield tmp_path
    folder_paths.set_input_directory(kept[0])
    folder_paths.set_output_directory(kept[1])


def test_a_map_survives_the_round_trip(directories):
    labels = torch.randint(0, 19, (2, 20, 30), dtype=torch.uint8)
    saved = file_nodes.ExemplarySaveSemanticMap.execute(SemanticMap(labels, CITY), "maps/town").ui["images"]
    assert [entry["filename"] for entry in saved] == ["town_00001_.png", "town_00002_.png"]
    for row, entry in enumerate(saved):
        name = f"{entry['subfolder']}/{entry['filename']} [output]"
        assert file_nodes.ExemplaryLoadSemanticMap.validate_inputs(image=name) is True
        found = file_nodes.ExemplaryLoadSemanticMap.execute(name, "playground", 32.0)[0]
        assert torch.equal(found.labels[0], labels[row]) and found.palette == CITY
        assert files.load(name.replace("/", "\\"), "playground", 32.0, "automatic", 0).semantic_map.palette == CITY
    third = files.save(SemanticMap(labels[:1], CITY), "maps/town")
    assert third[0][0] == "town_00003_.png"


@pytest.mark.parametrize(
    "name", ["", "../out/x.png", "/etc/hosts", "a\0b", "none.png", None, 3, "C:\\x.png", "\\\\host\\share\\x.png"]
)
def test_files_elsewhere_are_refused(directories, name):
    with pytest.raises(ValueError, match="there is no file"):
        files.load(name, "ADE20K", 32.0, "automatic", 0)


@pytest.mark.parametrize("prefix", ["", " ", "../x", "/etc/x"])
def test_a_bad_prefix_is_named(directories, prefix):
    with pytest.raises(ValueError, match="Save Semantic Map: filename_prefix"):
        files.save(SemanticMap(torch.zeros(1, 2, 2, dtype=torch.uint8), CITY), prefix)
