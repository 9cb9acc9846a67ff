"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import evaluation, ifadapter, paint_by_example, playground, retrieval, semantic_map


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    modules = (semantic_map, retrieval, ifadapter, paint_by_example, playground, evaluation)
    return [node for module in modules for node in module.NODES]
