"""What users type into the node search finds the pack's nodes, on hosts that know search aliases."""

from __future__ import annotations

import dataclasses

import pytest
from comfy_api.latest import io
from pack.nodes import node_classes
from pack.nodes.search import SEARCH_ALIASES

NODES = {node.define_schema().node_id: node for node in node_classes()}
HOST_KNOWS_ALIASES = "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}
QUERIES = {
    "regional prompt": {"ExemplaryApplyIFAdapter", "ExemplaryInstanceLayout", "ExemplaryCA2SISAttention"},
    "box prompt": {"ExemplaryApplyIFAdapter", "ExemplaryInstanceLayout"},
    "attention couple": {"ExemplaryApplyIFAdapter", "ExemplaryCA2SISAttention"},
    "mask per prompt": {"ExemplaryApplyIFAdapter", "ExemplaryCA2SISAttention"},
    "layout": {"ExemplaryApplyIFAdapter", "ExemplaryInstanceLayout", "ExemplaryInstancesFromBoxes"},
    "reference image": {"ExemplaryApplyAMAdapter", "ExemplaryRegionalReferences", "ExemplaryExemplarConditioning"},
    "style transfer": {"ExemplaryApplyAMAdapter", "ExemplaryCA2SISEncodeStyle"},
    "inpaint with reference": {"ExemplaryPaintByExamplePrepare", "ExemplaryExemplarConditioning"},
    "two characters": {"ExemplarySNFGuider", "ExemplarySNFSampler", "ExemplaryRegionalReferences"},
    "face": {"ExemplaryCA2SISGenerate", "ExemplarySubjectEncode", "ExemplaryCropToEdit"},
    "hair": {"ExemplaryCA2SISMixStyles", "ExemplaryCA2SISEditShape"},
    "segmentation": {"ExemplarySemanticMapFromImage", "ExemplarySemanticMapPainter"},
}


def test_every_node_has_aliases():
    missing = sorted(set(NODES) - set(SEARCH_ALIASES))
    assert not missing, f"add them to nodes/search.py: {missing}"
    gone = sorted(set(SEARCH_ALIASES) - set(NODES))
    assert not gone, f"no such nodes: {gone}"


@pytest.mark.parametrize("query", sorted(QUERIES))
def test_a_query_finds_its_nodes(query):
    found = {node_id for node_id, aliases in SEARCH_ALIASES.items() if any(query in alias for alias in aliases)}
    assert QUERIES[query] <= found


@pytest.mark.parametrize("node_id", sorted(NODES))
def test_aliases_add_to_the_display_name(node_id):
    """An alias that repeats the name, or another alias, is of no use to a search."""
    aliases = SEARCH_ALIASES[node_id]
    assert aliases and all(alias == alias.lower().strip() for alias in aliases)
    assert len(set(aliases)) == len(aliases)
    assert NODES[node_id].define_schema().display_name.lower() not in aliases


@pytest.mark.parametrize("node_id", sorted(NODES))
def test_the_host_receives_the_aliases(node_id):
    info = NODES[node_id].GET_NODE_INFO_V1()
    if HOST_KNOWS_ALIASES:
        assert info["search_aliases"] == list(SEARCH_ALIASES[node_id])
    else:
        assert "search_aliases" not in info
