"""Retrieve Exemplar as the host calls it, on folders below its input directory and elsewhere."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from pack.nodes.retrieval import ExemplaryRetrieveExemplar as Node
from pack.py.host import playground
from pack.py.host.semantic import retrieval as host
from pack.py.playground.scenes import draw_scene
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.remap import remap
from pack.py.semantic.semantic_map import SemanticMap
from PIL import Image

CITY = named_palette("Cityscapes / BDD100K")
PLAYGROUND = named_palette("playground")


@pytest.fixture(autouse=True)
def places(tmp_path):
    """The host's directories, made empty and put back."""
    before = folder_paths.get_input_directory(), folder_paths.get_user_directory()
    for name in ("input", "user"):
        (tmp_path / name).mkdir()
    folder_paths.set_input_directory(str(tmp_path / "input"))
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield tmp_path
    folder_paths.set_input_directory(before[0])
    folder_paths.set_user_directory(before[1])


def street(seed):
    scene = draw_scene("street", seed, 64)
    return scene.image.copy(), SemanticMap(torch.from_numpy(scene.labels)[None], PLAYGROUND)


def save_map(path, semantic_map):
    Image.fromarray((semantic_map.to_image()[0] * 255).round().byte().numpy()).save(path)


@pytest.fixture
def streets(places):
    """Six drawn streets as pairs in input/streets."""
    folder = places / "input" / "streets"
    folder.mkdir()
    for seed in range(6):
        image, semantic_map = street(seed)
        Image.fromarray(image).save(folder / f"{seed}.png")
        save_map(folder / f"{seed}_map.png", semantic_map)
    return folder


def execute(**values):
    """As the host calls it: widgets the caller leaves out have their defaults, optional sockets are absent."""
    defaults = {i.id: i.default for i in Node.define_schema().inputs if not i.optional and hasattr(i, "default")}
    return Node.execute(**{**defaults, **values}).result


def ranked(report):
    """The names of the list, in order."""
    return [line.split(": ")[0].split(". ", 1)[1] for line in report.splitlines() if line[:2] in ("> ", "  ")]


def test_the_targets_own_pair_comes_first(streets):
    image, target = street(3)
    before = copy.deepcopy(target.labels)
    images, maps, scores, report = execute(target=target, folder="streets")
    torch.testing.assert_close(images[0], torch.from_numpy(image)[None] / 255, rtol=0, atol=0)
    assert len(images) == len(maps) == 1 and scores == [pytest.approx(1.0)]
    assert maps[0].palette is target.palette and torch.equal(maps[0].labels, target.labels) and torch.equal(target.labels, before)
    assert report.startswith("6 pairs, 6 maps read now. Index: ") and "> 1. 3.png: 1.000 (classes 1.00" in report
    assert len(ranked(report)) == 6 and "has every class" in report


def test_the_next_run_reads_nothing_and_says_the_same(streets):
    first = execute(target=street(2)[1], folder="streets")
    second = execute(target=street(2)[1], folder=str(streets))
    assert "6 pairs, 0 maps read now" in second[3] and second[3].splitlines()[1:] == first[3].splitlines()[1:]


def test_picks_follow_the_ranking(streets):
    target = street(1)[1]
    _, _, one_score, report = execute(target=target, folder="streets", pick=2)
    images, maps, scores, _ = execute(target=target, folder="streets", pick=2, count=3)
    order = ranked(report)
    expected = [torch.from_numpy(street(int(name.split(".")[0]))[0])[None] / 255 for name in order[1:4]]
    assert len(maps) == 3 and scores == sorted(scores, reverse=True) and scores[:1] == one_score
    for image, wanted in zip(images, expected):
        torch.testing.assert_close(image, wanted, rtol=0, atol=0)
    assert "are left" not in report
    *_, scores, report = execute(target=target, folder="streets", pick=2, count=64)
    assert len(scores) == 5 and "count is 64, but only 5 pairs are left from rank 2 on." in report
    with pytest.raises(ValueError, match="pick: 7, but the folder has 6 readable pairs; give 1 to 6"):
        execute(target=target, folder="streets", pick=7)


def test_maps_in_other_colours_and_sizes_meet_the_target(places):
    folder = places / "input" / "ade"
    (folder / "images").mkdir(parents=True)
    (folder / "maps").mkdir()
    labels = torch.full((1, 24, 40), CITY.find("sky"))
    labels[:, 12:] = CITY.find("road")
    labels[:, 12:, 20:] = VOID
    target = SemanticMap(labels, CITY)
    Image.new("RGB", (90, 60)).save(folder / "images" / "a.jpg")
    save_map(folder / "maps" / "a.png", remap(target, palette=named_palette("ADE20K")).semantic_map)
    images, maps, scores, _ = execute(target=target, folder="ade", palette="ADE20K")
    assert images[0].shape == (1, 60, 90, 3) and maps[0].size == (60, 90) and maps[0].palette is CITY
    assert scores[0] == pytest.approx(1.0)
    assert torch.equal(maps[0].labels[:, ::5, ::9][:, :, :10], target.labels[:, ::2, ::4])
    report = execute(target=target, folder="ade", palette="CelebAMask-HQ")[3]
    assert "is void in the palette 'CelebAMask-HQ'; the palette 'ADE20K' fits better." in report


def test_damaged_files_are_skipped_and_named(streets, caplog):
    target = street(4)[1]
    order = ranked(execute(target=target, folder="streets")[3])
    (streets / order[0]).write_bytes((streets / order[0]).read_bytes()[:90])
    (streets / order[2].replace(".png", "_map.png")).write_bytes(b"")
    Image.new("RGB", (4, 4)).save(streets / "holiday.jpg")
    with caplog.at_level("WARNING", logger="exemplary"):
        *_, report = execute(target=target, folder="streets")
    assert ranked(report) == [order[1], *order[3:]] and "> 1. " + order[1] in report
    assert all(name in report and name in caplog.text for name in (order[0], order[2].replace(".png", "_map.png")))
    assert "Without a partner: holiday.jpg" in report
    for path in streets.glob("*_map.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"folder: none of the 6 maps .* can be read.*_map.png: not a readable image"):
        execute(target=target, folder="streets")


def test_a_changed_folder_runs_again_and_an_unchanged_one_does_not(streets):
    first = Node.fingerprint_inputs(folder="streets", pick=1)
    assert Node.fingerprint_inputs(folder="streets", pick=1) == first
    execute(target=street(0)[1], folder="streets")
    assert Node.fingerprint_inputs(folder="streets", pick=1) == first  # the index is no change
    (streets / "0.png").unlink()
    assert Node.fingerprint_inputs(folder="streets", pick=1) != first
    assert "does not exist" in Node.fingerprint_inputs(folder="nowhere")
    assert Node.fingerprint_inputs(pick=1) != Node.fingerprint_inputs(pick=1)


@pytest.mark.parametrize(
    "folder, message",
    [
        ("", "folder: '' is not a folder"),
        ("a\0b", "is not a folder"),
        ("../outside", "is outside of .*input. Give the full path"),
        ("streets/../../outside", "is outside of"),
        ("nowhere", "nowhere' does not exist"),
        ("streets/0.png", "is a file"),
        ("empty", "contains no image with its map"),
        ("x" * 5000, "folder: .{300,500}$"),
    ],
)
def test_unusable_folders_stop_with_a_sentence(streets, places, folder, message):
    (places / "outside").mkdir()
    (places / "input" / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        execute(target=street(0)[1], folder=folder)


def test_a_path_pasted_with_quotes_is_understood(streets):
    assert host.resolve(f' "{streets}" ') == streets and host.resolve("./streets") == streets


def test_void_targets_and_lonely_images_stop_before_the_folder_is_read(streets):
    with pytest.raises(ValueError, match="target: the map is void everywhere"):
        execute(target=SemanticMap(torch.full((1, 4, 4), VOID), PLAYGROUND), folder="streets")
    with pytest.raises(ValueError, match="image: clip_vision is not connected"):
        execute(target=street(0)[1], folder="streets", image=torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="weights"):
        execute(target=street(0)[1], folder="streets", classes_weight=0.0, proportions_weight=0.0, layout_weight=0.0)
    assert not list(streets.glob("exemplary_index*"))


def test_image_features_decide_between_equals(places):
    folder, target = places / "input" / "looks", street(0)[1]
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(street(seed)[0]).save(folder / f"{seed}.png")
        save_map(folder / f"{seed}_map.png", target)
    encoder = playground.load_clip_vision()
    wanted = torch.from_numpy(street(2)[0])[None] / 255
    assert ranked(execute(target=target, folder="looks")[3])[0] == "0.png"
    images, *_, report = execute(target=target, folder="looks", clip_vision=encoder, image=wanted)
    assert ranked(report)[0] == "2.png" and torch.equal(images[0], wanted)
    assert ranked(execute(target=target, folder="looks", clip_vision=encoder)[3]) == [f"{seed}.png" for seed in range(4)]
    with pytest.raises(ValueError, match=r"image contains NaN"):
        execute(target=target, folder="looks", clip_vision=encoder, image=torch.full((1, 8, 8, 3), torch.nan))


def test_image_features_do_not_touch_a_clear_lead(streets):
    target, encoder = street(5)[1], playground.load_clip_vision()
    plain = ranked(execute(target=target, folder="streets")[3])
    other = torch.from_numpy(street(0)[0])[None] / 255
    with_features = execute(target=target, folder="streets", clip_vision=encoder, image=other, tie=0.0)
    assert ranked(with_features[3]) == plain and with_features[2] == [pytest.approx(1.0)]


def test_a_folder_that_cannot_be_written_is_indexed_in_the_user_directory(streets, places, monkeypatch):
    temporary = tempfile.NamedTemporaryFile

    def refuse(*args, dir, **more):  # permission bits do not bind every user who runs tests
        if Path(dir) == streets:
            raise PermissionError(13, "read-only")
        return temporary(*args, dir=dir, **more)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    report = execute(target=street(0)[1], folder="streets")[3]
    assert str(places / "user" / "exemplary" / "retrieval") in report and not list(streets.glob("exemplary_index*"))
    assert "0 maps read now" in execute(target=street(0)[1], folder="streets")[3]


def test_progress_is_shown_and_an_interrupt_is_obeyed(streets, monkeypatch):
    steps = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: steps.append((value, total)))
    execute(target=street(0)[1], folder="streets")
    assert steps[0] == (0, 6) and steps[-1] == (6, 6)
    (streets / "0_map.png").touch()
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            execute(target=street(0)[1], folder="streets")
    finally:
        comfy.model_management.interrupt_current_processing(False)
    execute(target=street(0)[1], folder="streets")


def test_the_outputs_are_lists_but_the_report():
    schema = Node.define_schema()
    assert [o.is_output_list for o in schema.outputs] == [True, True, True, False]
    assert isinstance(schema.inputs[0], io.Input) and schema.inputs[2].options[0] == host.AS_TARGET
