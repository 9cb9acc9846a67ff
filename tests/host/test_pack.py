"""The pack in the host's own loader, in process."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_hosts_loader_takes_the_pack_from_a_folder_with_any_name(tmp_path):
    import nodes

    for name in ("__init__.py", "nodes", "py"):
        source = ROOT / name
        target = tmp_path / "exemplary pack-1.0 \u00e9" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(target.parent))), "the host could not import the pack"
    from pack.nodes import node_classes

    added = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("Exemplary")}
    assert added == {node.define_schema().node_id for node in node_classes()}
    assert all(nodes.NODE_CLASS_MAPPINGS[name] is node for name, node in before.items() if not name.startswith("Exemplary"))
    assert not {str(ROOT), str(ROOT / "py")} & set(sys.path)
