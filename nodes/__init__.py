"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import ifadapter


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    modules: list = [ifadapter]
    return [node for module in modules for node in module.NODES]
