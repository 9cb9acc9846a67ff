"""A real main.py with the pack in it: it starts, the pack imports, and every node of the pack is there."""

from __future__ import annotations

import pytest
from pack.devtools.say import Trouble
from pack.nodes import node_classes
from pack.tests import live


def test_the_pack_imports_in_a_folder_with_a_space_a_hyphen_and_an_accent(comfyui):
    log = comfyui.log.read_text(encoding="utf-8", errors="replace")
    assert "exemplary pack-1.0" in log
    assert "IMPORT FAILED" not in log and "Cannot import" not in log, comfyui.log_tail(60)


def test_every_node_of_the_pack_is_offered_with_a_description(object_info):
    declared = {node.define_schema().node_id for node in node_classes()}
    assert declared == {name for name in object_info if name.startswith("Exemplary")}
    for name in declared:
        assert object_info[name]["description"] and object_info[name]["category"].startswith("exemplary")


def test_the_pack_writes_nothing_into_the_hosts_own_folders(comfyui):
    host = live.host().folder
    assert not list((host / "custom_nodes").glob("exemplary*"))
    assert (
        not (host / "user" / "comfyui.db").exists()
        or (host / "user" / "comfyui.db").stat().st_mtime < comfyui.folder.stat().st_ctime
    )


def test_a_taken_port_is_said_in_one_sentence(comfyui):
    with pytest.raises(Trouble, match=f"Port {comfyui.port} is taken"), live.comfyui("taken", port=comfyui.port):
        pass


def test_a_host_that_cannot_start_shows_its_last_lines():
    with pytest.raises(Trouble, match="did not start"), live.comfyui("broken", extra=["--no-such-option"]):
        pass
