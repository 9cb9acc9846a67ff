"""The nodes as the host calls them: schema, defaults, classmethod `execute`."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from pack.nodes import semantic_map as nodes
from pack.py.semantic.palettes import PALETTE_NAMES, VOID, named_palette

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = {
    "ExemplarySemanticMapFromImage": (
        ["image", "palette", "tolerance", "clean_edges", "palette_from", "reading", "first_class"],
        ["EXEMPLARY_SEMANTIC_MAP semantic_map", "STRING report"],
    ),
    "ExemplarySemanticMapFromMasks": (
        ["mask", "class_name", "palette", "background", "threshold", "semantic_map", "class_names"],
        ["EXEMPLARY_SEMANTIC_MAP semantic_map"],
    ),
    "ExemplarySemanticMapRemap": (
        ["semantic_map", "rules", "palette", "palette_from"],
        ["EXEMPLARY_SEMANTIC_MAP semantic_map", "STRING report"],
    ),
    "ExemplarySemanticMapToMask": (["semantic_map", "classes"], ["MASK mask"]),
    "ExemplarySemanticMapPreview": (["semantic_map"], ["IMAGE image", "IMAGE legend", "STRING coverage"]),
}


def schema_of(node):
    schema = node.define_schema()
    return schema, [i.id for i in schema.inputs], [f"{o.io_type} {o.display_name}" for o in schema.outputs]


def execute(node, **values):
    """As the host calls it: widgets the caller leaves out have their defaults, optional sockets are absent."""
    defaults = {
        i.id: i.default
        for i in node.define_schema().inputs
        if not i.optional and isinstance(i, io.WidgetInput if hasattr(io, "WidgetInput") else object) and hasattr(i, "default")
    }
    return node.execute(**{**defaults, **values})


def picture(*rows):
    """An image [1, h, w, 3] from rows of class names in Cityscapes colours, each cell 8 x 8 pixels."""
    palette = named_palette("Cityscapes / BDD100K")
    colours = torch.tensor([[palette.colours[palette.find(name)] for name in row] for row in rows]) / 255
    return colours.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)[None]


def test_ids_orders_and_names_are_for_ever():
    found = {node.define_schema().node_id: schema_of(node)[1:] for node in nodes.NODES}
    assert found == SCHEMAS


def test_the_choices_that_workflows_store_stay():
    choices = {
        f"{node.define_schema().node_id}.{i.id}": i.options
        for node in nodes.NODES
        for i in node.define_schema().inputs
        if getattr(i, "options", None)
    }
    known = ["Cityscapes / BDD100K", "ADE20K", "COCO-Stuff", "CelebAMask-HQ", "playground"]
    assert list(PALETTE_NAMES)[:5] == known
    assert choices["ExemplarySemanticMapFromImage.palette"][:6] == [*known, "colours in this image"]
    assert choices["ExemplarySemanticMapFromMasks.palette"][:6] == ["own classes", *known]
    assert choices["ExemplarySemanticMapRemap.palette"][:6] == ["keep", *known]


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_everything_is_explained(node):
    schema, inputs, outputs = schema_of(node)
    assert schema.description and schema.category == "exemplary/Semantic map"
    assert all(i.tooltip for i in schema.inputs) and all(o.tooltip for o in schema.outputs)
    page = (ROOT / "js" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in [*inputs, *(output.split()[1] for output in outputs)])


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_every_language_has_every_word(node, language):
    schema, inputs, outputs = schema_of(node)
    entry = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[schema.node_id]
    assert entry["display_name"] and entry["description"]
    assert list(entry["inputs"]) == inputs and all(words["name"] and words["tooltip"] for words in entry["inputs"].values())
    assert list(entry["outputs"]) == [str(index) for index in range(len(outputs))]
    assert all(words["name"] for words in entry["outputs"].values())
    if language == "en":
        assert entry["display_name"] == schema.display_name and entry["description"] == schema.description
        assert {i.id: i.tooltip for i in schema.inputs} == {name: words["tooltip"] for name, words in entry["inputs"].items()}
    text = json.dumps(entry, ensure_ascii=False)
    assert not set("@|") & set(text)  # the frontend's translator gives these a meaning


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_the_host_can_describe_it(node):
    info = node.GET_NODE_INFO_V1()
    assert info["category"] == "exemplary/Semantic map"
    json.dumps(info)


def test_a_picture_becomes_a_map_and_a_mask():
    semantic_map, report = execute(nodes.SemanticMapFromImage, image=picture(["sky", "sky"], ["road", "car"])).result
    assert report == "sky: 50.0 %\ncar: 25.0 %\nroad: 25.0 %" or report == "sky: 50.0 %\nroad: 25.0 %\ncar: 25.0 %"
    (mask,) = execute(nodes.SemanticMapToMask, semantic_map=semantic_map, classes="car, road").result
    assert mask.shape == (1, 16, 16) and mask[:, 8:].all() and not mask[:, :8].any()


def test_a_wrong_palette_warns(caplog):
    with caplog.at_level("WARNING", logger="exemplary"):
        _, report = execute(nodes.SemanticMapFromImage, image=picture(["sky", "road"]), palette="CelebAMask-HQ").result
    assert "'Cityscapes / BDD100K' or 'playground'" in report and "fits better" in report and "Warning: 100.0 %" in report
    assert "Semantic Map from Image: Warning" in caplog.text and "of the image is void" in caplog.text


def test_another_maps_palette_goes_before_the_chosen_one():
    first, _ = execute(nodes.SemanticMapFromImage, image=picture(["sky", "road"]), palette="colours in this image").result
    second, _ = execute(nodes.SemanticMapFromImage, image=picture(["road", "car"]), palette_from=first).result
    assert second.palette is first.palette and second.labels[0, 0, 0] == first.labels[0, 0, 8] and second.labels[0, 0, 8] == VOID


def test_masks_chain():
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    (begun,) = execute(nodes.SemanticMapFromMasks, mask=torch.ones(1, 8, 8), class_name="sky").result
    (grown,) = execute(nodes.SemanticMapFromMasks, mask=left, class_name="tower", semantic_map=begun).result
    assert grown.names == ("sky", "tower") and (grown.labels[:, :, :4] == 1).all() and (grown.labels[:, :, 4:] == 0).all()
    assert (begun.labels == 0).all()


def test_masks_with_a_data_sets_palette():
    (result,) = execute(
        nodes.SemanticMapFromMasks, mask=torch.eye(8)[None], class_name="car", palette="ADE20K", background="road"
    ).result
    assert result.palette.name == "ADE20K" and set(result.labels.unique().tolist()) == {6, 20}


def test_remap_to_another_palette(caplog):
    semantic_map, _ = execute(nodes.SemanticMapFromImage, image=picture(["sky", "rider"])).result
    with caplog.at_level("WARNING", logger="exemplary"):
        result, report = execute(nodes.SemanticMapRemap, semantic_map=semantic_map, palette="ADE20K").result
    assert result.labels[0, 0, 0] == 2 and result.labels[0, 0, 8] == VOID
    assert "rider" in report and "rider" in caplog.text
    back, _ = execute(nodes.SemanticMapRemap, semantic_map=result, palette_from=semantic_map, rules="void -> rider").result
    assert torch.equal(back.labels, semantic_map.labels)


def test_preview_gives_the_plain_map_a_legend_and_words(tmp_path):
    folder_paths.set_temp_directory(str(tmp_path))
    image = picture(["sky", "sky"], ["road", "car"])
    semantic_map, report = execute(nodes.SemanticMapFromImage, image=image).result
    output = execute(nodes.SemanticMapPreview, semantic_map=semantic_map)
    plain, legend, coverage = output.result
    torch.testing.assert_close(plain, image, rtol=0, atol=0)
    assert coverage == report and legend.shape[1] > 384
    assert len(list(tmp_path.rglob("*.png"))) == 1 and len(output.ui.as_dict()["images"]) == 1


@pytest.mark.parametrize(
    "node, values, message",
    [
        (nodes.SemanticMapFromImage, {"image": torch.full((1, 4, 4, 3), float("nan"))}, "image: 48 values are NaN"),
        (nodes.SemanticMapFromMasks, {"mask": torch.ones(1, 4, 4), "class_name": ""}, "class_name"),
        (nodes.SemanticMapFromMasks, {"mask": torch.ones(1, 4, 4), "palette": "ADE20K", "class_name": "sku"}, "'sku'.*'sky'"),
    ],
)
def test_bad_input_is_named(node, values, message):
    with pytest.raises(ValueError, match=message):
        execute(node, **values)
