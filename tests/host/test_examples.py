"""The example workflows as files: every saved choice exists, models have links, nodes do not overlap and what is saved has a title.

Names of files are left to the machine that opens the workflow; any other saved choice must be one that the node has, in every example,
whether or not its files are there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfy_api.latest import io
from pack.devtools.workflow import needs
from pack.nodes import node_classes

import nodes

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
DOWNLOADED = [path for path in EXAMPLES if needs(path)]
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in node_classes())}
FILES = (".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth", ".png", ".jpg", ".jpeg", ".webp")
TITLE = 30  # height of a node's title bar, above its `pos`

#: Loaders and the index of the widget with a file name.
LOADERS = {
    "CheckpointLoaderSimple": 0,
    "LoraLoader": 0,
    "LoraLoaderModelOnly": 0,
    "ControlNetLoader": 0,
    "CLIPVisionLoader": 0,
    "UNETLoader": 0,
    "CLIPLoader": 0,
    "VAELoader": 0,
    "ExemplaryLoadIFAdapter": 0,
    "ExemplaryLoadPaintByExample": 0,
    "ExemplaryLoadSubjectModel": 0,
    "ExemplaryLoadCA2SIS": 0,
    "ExemplaryLoadAMAdapter": 0,
    "ExemplaryLoadControlNeXt": 0,
}
#: Saved files without a link: the user's own, any of a kind, or weights that have no direct link or are not published.
WITHOUT_LINK = {
    "style.safetensors",
    "style_a.safetensors",
    "style_b.safetensors",
    "identity.safetensors",
    "scene.safetensors",
    "portrait.safetensors",
    "clip_vision_vit_b_32.safetensors",
    "latest_net_G.pth",
    "am_adapter.safetensors",
    "controlnext_seg.safetensors",
}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def api_form(path: Path) -> dict:
    return read(ROOT / "tests" / "workflows" / f"{path.stem}.api.json")


def names(paths: list[Path]) -> list:
    return [pytest.param(path, id=path.stem) for path in paths]


def choices(kind: str) -> dict[str, list]:
    """The options of each combo of a node, of the pack or of the host."""
    if kind in SCHEMAS:
        return {i.id: list(i.options or ()) for i in SCHEMAS[kind].inputs if isinstance(i, io.Combo.Input)}
    found = nodes.NODE_CLASS_MAPPINGS.get(kind)
    if found is None:  # a node of the host that is not imported here; the server refuses its unknown choices
        return {}
    types = found.INPUT_TYPES()
    inputs = {**types.get("required", {}), **types.get("optional", {})}
    return {name: list(spec[0]) for name, spec in inputs.items() if isinstance(spec[0], (list, tuple))}


def is_file(value: object) -> bool:
    return isinstance(value, str) and value.lower().endswith(FILES)


def unknown_choices(prompt: dict) -> list[str]:
    """Saved choices that the nodes do not have, as readable lines."""
    found = []
    for key, node in prompt.items():
        options = choices(node["class_type"])
        for name, value in node["inputs"].items():
            if name in options and not isinstance(value, list) and not is_file(value) and value not in options[name]:
                found.append(f"{node['class_type']} (node {key}), {name}: {value!r} is not one of {options[name]}")
    return found


def folders_of_the_user(prompt: dict) -> set[str]:
    """Names of folders are the user's, as names of files: those of exemplars, and of segmentation models."""
    named = {"ExemplaryRetrieveExemplar": "folder", "ExemplaryLoadSegmentationModel": "model"}
    return {f"node {key}), {named[node['class_type']]}:" for key, node in prompt.items() if node["class_type"] in named}


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_every_saved_choice_exists(path):
    prompt = api_form(path)
    own = folders_of_the_user(prompt)
    assert not [line for line in unknown_choices(prompt) if not any(folder in line for folder in own)]


def test_an_unknown_choice_is_found():
    node = {"class_type": "ExemplarySemanticMapFromImage", "inputs": {"palette": "Cityscapes", "tolerance": 32.0}}
    assert len(unknown_choices({"2": node})) == 1
    node["inputs"]["palette"] = "Cityscapes / BDD100K"
    assert not unknown_choices({"2": node})


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_the_api_form_has_the_same_values(path):
    """The workflow and its API form do not drift apart: the values that are no links, by node."""
    prompt = api_form(path)
    for node in read(path)["nodes"]:
        key = str(node["id"])
        if key not in prompt:
            continue
        kept = [value for value in prompt[key]["inputs"].values() if not isinstance(value, list)]
        saved = [
            value for value in node["widgets_values"] if value not in ("fixed", "randomize", "increment", "decrement", "image")
        ]
        missing = [value for value in kept if value not in saved]
        assert not missing, f"node {key}: python3 dev.py convert {path.name}; {missing}"


@pytest.mark.parametrize("path", names(DOWNLOADED))
def test_every_loader_names_its_source(path):
    for node in read(path)["nodes"]:
        if node["type"] not in LOADERS:
            continue
        file = node["widgets_values"][LOADERS[node["type"]]]
        models = node["properties"].get("models", [])
        if file in WITHOUT_LINK or file.startswith("playground_"):
            assert not models
            continue
        assert [model["name"] for model in models] == [file], f"node {node['id']}: no link for {file!r}"
        for model in models:
            assert set(model) == {"name", "url", "directory"} and model["directory"]
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_no_nodes_overlap(path):
    boxes = []
    for node in read(path)["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append((f"{node['id']} {node['type']}", x, y - TITLE, x + width, y + height))
    for index, (one, left, top, right, bottom) in enumerate(boxes):
        for other, x0, y0, x1, y1 in boxes[index + 1 :]:
            assert not (left < x1 and x0 < right and top < y1 and y0 < bottom), f"{one} and {other} overlap"


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_groups_are_titled_and_apart(path):
    groups = read(path)["groups"]
    for index, group in enumerate(groups):
        assert group["title"] and group["title"] != "Group"
        x, y, width, height = group["bounding"]
        for other in groups[index + 1 :]:
            left, top, w, h = other["bounding"]
            assert not (x < left + w and left < x + width and y < top + h and top < y + height), (group["title"], other["title"])


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_notes_are_at_the_top_left(path):
    found = read(path)["nodes"]
    notes = [node for node in found if node["type"] == "MarkdownNote"]
    others = [node for node in found if node["type"] != "MarkdownNote"]
    assert notes and any(len(node["widgets_values"][0]) > 100 for node in notes)
    note = min(notes, key=lambda node: node["pos"][0])
    assert note["pos"][0] + note["size"][0] <= min(node["pos"][0] for node in others)
    assert note["pos"][1] <= min(node["pos"][1] for node in others)


@pytest.mark.parametrize("path", names(EXAMPLES))
def test_titles_say_what_is_made(path):
    workflow = read(path)
    about = workflow["extra"]["exemplary"]
    assert len(about["title"]) > 20 and about["caption"]
    untitled = [node["id"] for node in workflow["nodes"] if node["type"] in ("SaveImage", "PreviewAny") and not node.get("title")]
    assert not untitled, f"give these outputs a title: {untitled}"


def test_titles_are_distinct():
    titles = [read(path)["extra"]["exemplary"]["title"] for path in EXAMPLES]
    assert len(set(titles)) == len(titles)
    for task in ("regional prompts", "style transfer", "inpaint with a reference", "face edit", "two characters", "segmentation"):
        assert any(task in title.lower() for title in titles), f"no example is found by {task!r}"
