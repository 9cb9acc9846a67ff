"""A workflow as users save it -> the prompt that the server runs, as the frontend's `app.graphToPrompt()` makes it.

The saved form lists a node's widget values by position; the prompt names them. Which input is a widget, and which one the
frontend follows with a "control after generate" box, comes from the server's /object_info.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .say import Trouble

VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
WIDGETS = {
    "INT",
    "FLOAT",
    "STRING",
    "BOOLEAN",
    "COMBO",
    "COLOR",
    "COLORS",
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    "CURVE",
    "RANGE",
    "PAINTER",
}
CONTROLS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
MUTED, BYPASSED = 2, 4


def described(workflow: dict) -> dict:
    """What an example says of itself: `title`, `caption`, `needs`; any of them may be missing."""
    return (workflow.get("extra") or {}).get("exemplary") or {}


def needs(path: Path) -> list[str]:
    """What an example needs that does not ship with the pack, in a user's words; usually nothing."""
    return described(json.loads(path.read_text(encoding="utf-8"))).get("needs", [])


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """The API form of a saved workflow.

    Raises:
        Trouble: a node is not installed on this server, or the workflow uses subgraphs.
    """
    graph = _Graph(workflow)
    prompt = {}
    for node in graph.nodes.values():
        kind = node["type"]
        if kind in VIRTUAL or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise Trouble(
                f"The workflow uses the node {kind}, which this ComfyUI does not have. Install the pack that brings it, or update ComfyUI."
            )
        info = object_info[kind]
        inputs = {
            name: {"__value__": value} if isinstance(value, list) else value for name, value in widget_values(node, info).items()
        }
        for place in node.get("inputs", []):
            source = graph.source(place.get("link"))
            if isinstance(source, _Value):
                inputs[place["name"]] = source.value
            elif source is not None:
                inputs[place["name"]] = list(source)
        title = node.get("title") or info.get("display_name") or kind
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}
    for node in prompt.values():  # what a muted or missing node would have fed
        node["inputs"] = {name: value for name, value in node["inputs"].items() if not _is_link(value) or value[0] in prompt}
    return prompt


def widget_values(node: dict, info: dict) -> dict[str, Any]:
    """A node's widget values by name."""
    values = node.get("widgets_values") or []
    names = [name for name, _ in widgets(info)]
    if isinstance(values, dict):
        return {name: values[name] for name in names if name in values}
    named = {}
    place = 0
    for name, controlled in widgets(info):
        if place >= len(values):
            break
        named[name] = values[place]
        place += 1
        if controlled and place < len(values) and values[place] in CONTROLS:
            place += 1
    return named


def widgets(info: dict) -> list[tuple[str, bool]]:
    """(name, whether a control box follows) for every input that the frontend shows as a widget, in order."""
    found = []
    for group in ("required", "optional"):
        specs = info["input"].get(group) or {}
        order = info.get("input_order", {}).get(group) or list(specs)
        for name in order:
            kind, options = specs[name][0], specs[name][1] if len(specs[name]) > 1 else {}
            if (isinstance(kind, list) or kind in WIDGETS or options.get("widgetType") in WIDGETS) and not options.get(
                "forceInput"
            ):
                control = options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed"))
                found.append((name, bool(control)))
    return found


class _Value:
    """What a primitive node feeds: the value itself instead of a link."""

    def __init__(self, value: Any):
        self.value = value


class _Graph:
    def __init__(self, workflow: dict):
        if (workflow.get("definitions") or {}).get("subgraphs"):
            raise Trouble(
                "The workflow holds subgraphs, which this converter does not read. Unpack them, or use File > Export (API) in the page."
            )
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow.get("links") or []:
            if isinstance(link, dict):
                link = [
                    link["id"],
                    link["origin_id"],
                    link["origin_slot"],
                    link["target_id"],
                    link["target_slot"],
                    link.get("type"),
                ]
            self.links[link[0]] = link

    def source(self, link_id: int | None) -> tuple[str, int] | _Value | None:
        """Where a link really comes from, through reroutes and bypassed nodes; None where that is nowhere."""
        seen = set()
        while link_id in self.links and link_id not in seen:
            seen.add(link_id)
            _, origin, slot = self.links[link_id][:3]
            node = self.nodes[origin]
            if node.get("mode", 0) == MUTED:
                return None
            if node["type"] == "PrimitiveNode":
                return _Value((node.get("widgets_values") or [None])[0])
            if node["type"] == "Reroute":
                link_id = node["inputs"][0].get("link")
            elif node.get("mode", 0) == BYPASSED:
                link_id = self._behind(node, slot)
            else:
                return str(origin), slot
        return None

    @staticmethod
    def _behind(node: dict, slot: int) -> int | None:
        """The link that a bypassed node passes on: the input in the output's place, or the first of its type."""
        kind = node["outputs"][slot]["type"]
        inputs = node.get("inputs", [])
        for place in (inputs[slot : slot + 1], inputs):
            for candidate in place:
                if candidate["type"] == kind:
                    return candidate.get("link")
        return None


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
