"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import ca2sis, ca2sis_attention, ifadapter, playground, semantic_map


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    return [node for module in (semantic_map, ifadapter, ca2sis, ca2sis_attention, playground) for node in module.NODES]
