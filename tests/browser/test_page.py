"""The page as a user has it: our nodes are registered, every example loads whole and queues what the converter says, no error."""

from __future__ import annotations

import pytest
from pack.devtools.workflow import to_prompt
from pack.nodes import node_classes
from pack.tests import live


def test_our_nodes_are_registered(page):
    registered = page.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    assert {node.define_schema().node_id for node in node_classes()} <= set(registered)


@pytest.mark.parametrize("path", [*live.WORKFLOWS, *live.EXAMPLES], ids=lambda path: path.stem)
def test_a_workflow_loads_whole_and_queues_what_the_converter_says(page, path, object_info):
    workflow = live.read(path)
    page.load(workflow)
    registered = set(page.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)"))
    virtual = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
    assert {node["type"] for node in workflow["nodes"]} <= registered | virtual
    assert page.page.evaluate("() => window.app.graph._nodes.length") == len(workflow["nodes"])
    assert page.page.evaluate("() => window.app.graph._nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert declared(page.prompt(), object_info) == declared(to_prompt(workflow, object_info), object_info)


def test_every_node_of_ours_can_be_placed_and_saved(page):
    page.page.evaluate("() => window.app.graph.clear()")
    for node in node_classes():
        name = node.define_schema().node_id
        assert (
            page.page.evaluate(
                "name => { const n = window.LiteGraph.createNode(name); window.app.graph.add(n); return n.type }", name
            )
            == name
        )
    saved = page.page.evaluate("() => window.app.graph.serialize()")
    page.load(saved)
    assert page.page.evaluate("() => window.app.graph._nodes.length") == len(node_classes())


def test_the_console_holds_no_error_of_ours(page, without_us):
    page.page.wait_for_timeout(500)
    # The frontend itself asks for the sizes of the files that a workflow's `properties.models` link to; its own policy forbids it.
    of_links = ("/resolve/main/", "fetchFileSize")
    ours = {line for line in page.complaints() - without_us if not any(part in line for part in of_links)}
    assert ours == set()


def declared(prompt: dict, object_info: dict) -> dict:
    """A prompt without node titles, which follow the user's language, and without what only the page knows (a preview's text)."""
    found = {}
    for key, node in prompt.items():
        known = {name for group in object_info[node["class_type"]]["input"].values() for name in group}
        values = {name: value for name, value in node["inputs"].items() if name in known}
        found[key] = (node["class_type"], optional_defaults(object_info[node["class_type"]]) | values)
    return found


def optional_defaults(info: dict) -> dict:
    """What the page fills in for widgets that came after a workflow was saved."""
    specs = (info["input"].get("optional") or {}).items()
    return {name: spec[1]["default"] for name, spec in specs if len(spec) > 1 and "default" in spec[1]}
