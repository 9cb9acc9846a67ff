"""What shared workflows rely on: node ids, the order and types of inputs, the names of outputs. Append only, for ever.

`tests/interface.json` is the promise. A new node or a new input at the end of a node is added to it in the commit that adds it; the failing
test prints the lines to add. What stands there already may never change.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pack.nodes import node_classes

ROOT = Path(__file__).resolve().parents[2]
PROMISE = json.loads((ROOT / "tests" / "interface.json").read_text(encoding="utf-8"))
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in node_classes())}
LANGUAGES = ("en", "ja", "zh")


def interface(schema) -> dict[str, list[list[str]]]:
    """Inputs by name and type, required before optional as workflows store them, and outputs by type and name."""
    inputs = sorted(schema.inputs, key=lambda i: bool(i.optional))
    return {
        "inputs": [[i.id, i.get_io_type()] for i in inputs],
        "outputs": [[o.get_io_type(), o.display_name or o.get_io_type()] for o in schema.outputs],
    }


def words(language: str, file: str) -> dict:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


def shape(value):
    """The keys of nested objects, without the texts."""
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("node_id", sorted(set(PROMISE) | set(SCHEMAS)))
def test_the_interface_is_what_was_promised(node_id):
    assert node_id in SCHEMAS, f"{node_id} was released and is gone; keep it, marked as deprecated"
    now = interface(SCHEMAS[node_id])
    assert node_id in PROMISE, f"new node: add to tests/interface.json\n{json.dumps({node_id: now}, indent=1)}"
    for part in ("inputs", "outputs"):
        promised = PROMISE[node_id][part]
        assert now[part][: len(promised)] == promised, f"{node_id}: released {part} changed; append at the end instead"
        assert len(now[part]) == len(promised), f"{node_id}: add the new {part} to tests/interface.json: {now[part]}"


@pytest.mark.parametrize("node_id", sorted(SCHEMAS))
def test_a_node_explains_itself(node_id):
    schema = SCHEMAS[node_id]
    assert re.fullmatch(r"Exemplary[A-Z]\w+", node_id) and schema.category.startswith("exemplary/")
    assert schema.description and schema.display_name
    host_types = ("MODEL", "CONDITIONING", "LATENT", "VAE")
    assert not [i.id for i in schema.inputs if not i.tooltip and i.get_io_type() not in host_types]
    page = (ROOT / "js" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    missing = [i.id for i in schema.inputs if i.id not in page]
    assert not missing, f"the help page does not mention {missing}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_words_in_every_language(language):
    defs = words(language, "nodeDefs")
    assert set(defs) == set(SCHEMAS)
    for node_id, schema in SCHEMAS.items():
        found = defs[node_id]
        assert found["display_name"] and found["description"], node_id
        assert set(found.get("inputs", {})) == {i.id for i in schema.inputs}, node_id
        assert set(found.get("outputs", {})) == {str(k) for k in range(len(schema.outputs))}, node_id
    assert shape(words(language, "main")) == shape(words("en", "main"))


def test_the_english_words_are_those_of_the_nodes():
    defs = words("en", "nodeDefs")
    for node_id, schema in SCHEMAS.items():
        assert defs[node_id]["display_name"] == schema.display_name
        assert defs[node_id]["description"] == schema.description


def test_every_node_is_in_an_example():
    used = set()
    for path in (ROOT / "example_workflows").glob("*.json"):
        used |= {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
        assert path.with_suffix(".jpg").is_file(), f"{path.stem} has no thumbnail"
    assert set(SCHEMAS) <= used, f"in no example: {sorted(set(SCHEMAS) - used)}"
