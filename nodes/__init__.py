"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import ifadapter, paint_by_example, playground, region_score, semantic_map


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    return [node for module in (semantic_map, ifadapter, paint_by_example, playground, region_score) for node in module.NODES]
