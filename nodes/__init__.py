"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import semantic_map


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    modules: list = [semantic_map]
    return [node for module in modules for node in module.NODES]
