"""What a user sees: one module a technique, each with its node classes in `NODES`."""

from __future__ import annotations

from . import (
    am_adapter,
    ca2sis,
    ca2sis_attention,
    evaluation,
    face_crop,
    ifadapter,
    instance_layout,
    paint_by_example,
    playground,
    references,
    retrieval,
    segmentation,
    semantic_map,
    semantic_map_files,
    semantic_map_painter,
    snf,
)
from .search import add_search_aliases


def node_classes() -> list:
    """Every node of the pack, in the order of the menu."""
    modules = (
        semantic_map,
        semantic_map_painter,
        semantic_map_files,
        segmentation,
        retrieval,
        am_adapter,
        ifadapter,
        instance_layout,
        references,
        snf,
        paint_by_example,
        ca2sis,
        ca2sis_attention,
        face_crop,
        playground,
        evaluation,
    )
    return [node for module in modules for node in module.NODES]


for _node in node_classes():
    add_search_aliases(_node)
