"""Networks, folders, notices and grids of the host rooms."""

from __future__ import annotations

import importlib

import comfy.model_management
import pytest
import tiny
import torch
from pack.py.host import grids, networks, notices
from pack.py.host.schedule import PercentRange


class Net(torch.nn.Module):
    def __init__(self, width, operations=torch.nn, dtype=None, device=None):
        super().__init__()
        self.layer = operations.Linear(width, width, dtype=dtype, device=device)


def test_a_network_of_ours_is_loaded_with_the_model_and_leaves_with_it(sd15):
    guest = networks.load(Net, Net(8).state_dict(), 8)
    model = sd15.clone()
    networks.serve(model, "exemplary", [guest])
    networks.serve(model, "exemplary", [guest])
    assert len(model.get_additional_models_with_key("exemplary")) == 1 and not sd15.get_additional_models()
    seen = []

    def callback(*args):
        seen.append([loaded.model.model for loaded in comfy.model_management.current_loaded_models])

    tiny.sample(model, callback=callback)
    assert any(network is guest.model for network in seen[0])
    comfy.model_management.unload_all_models()
    assert not any(loaded.model.model is guest.model for loaded in comfy.model_management.current_loaded_models)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        networks.load(Net, Net(4).state_dict(), 8)


def test_model_folders_keep_what_the_user_configured(tmp_path, monkeypatch):
    folder_paths = pytest.importorskip("folder_paths")
    folders = importlib.import_module("pack.py.host.folders")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"ifadapter": ([str(tmp_path / "mine")], set())})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    shipped = tmp_path / "assets" / "ca2sis"
    shipped.mkdir(parents=True)
    monkeypatch.setattr(folders, "SHIPPED", tmp_path / "assets")
    folders.register()
    folders.register()
    paths, extensions = folder_paths.folder_names_and_paths["ifadapter"]
    assert paths == [str(tmp_path / "mine"), str(tmp_path / "models" / "ifadapter")] and ".safetensors" in extensions
    assert str(shipped) in folder_paths.get_folder_paths("ca2sis")
    nested = tmp_path / "mine" / "sdxl"
    nested.mkdir(parents=True)
    (nested / "a.safetensors").touch()
    (nested / "notes.txt").touch()
    (only,) = folders.files("ifadapter")
    assert folders.path("ifadapter", only, "Load", "https://example.org").endswith("a.safetensors")
    with pytest.raises(ValueError, match=r"'gone.bin' is not in .*mine.*Download it from https://example.org"):
        folders.path("ifadapter", "gone.bin", "Load", "https://example.org")


def test_a_notice_without_a_server_is_in_the_log(caplog):
    notices.warn_user("nothing to do")
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize(
    "options, tokens, grid",
    [
        ({"activations_shape": [2, 64, 13, 19]}, 13 * 19, (13, 19)),
        ({"original_shape": [2, 4, 65, 97]}, 33 * 49, (33, 49)),
        ({"original_shape": [2, 4, 65, 97], "activations_shape": [2, 64, 4, 4]}, 17 * 25, None),
        ({"original_shape": [2, 4, 64, 64]}, 1000, None),
        ({}, 64, None),
    ],
)
def test_grids_come_from_the_shapes_the_host_gives(options, tokens, grid):
    assert grids.layer_grid(options, tokens) == grid


@pytest.mark.parametrize(
    "kinds, rows, chunks",
    [
        ([1, 0], 6, [(1, 3, 6)]),
        ([0, 1], 6, [(0, 0, 3)]),
        ([0, 0, 1], 3, [(0, 0, 1), (1, 1, 2)]),
        ([1], 2, []),
        ([0], 2, [(0, 0, 2)]),
        (None, 2, [(0, 0, 2)]),
        ([0, 1], 3, None),
        ([0, 1, 1], 2, None),
    ],
)
def test_conditional_rows_are_found_in_any_order(kinds, rows, chunks):
    assert grids.conditional_chunks({"cond_or_uncond": kinds}, rows) == chunks


@pytest.mark.parametrize("start, end", [(float("nan"), 1), (0, float("inf")), (-0.1, 1), (0, 1.01), ("0", 1), (None, 1)])
def test_percents_out_of_range_are_named(start, end):
    with pytest.raises(ValueError, match=r"Node: (start|end)_percent is"):
        PercentRange.checked(start, end, "Node")
