from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from pack.py.semantic import exemplar_index
from pack.py.semantic.exemplar_index import file_name, update
from pack.py.semantic.label_files import save_label_png
from pack.py.semantic.pairs import find_pairs, nearest, read_image, read_map
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.retrieval import GRID, SAMPLES, Summaries, Weights, rank, summarise
from pack.py.semantic.semantic_map import SemanticMap
from PIL import Image

CITY = named_palette("Cityscapes / BDD100K")
ADE = named_palette("ADE20K")


def a_map(*rows, palette=CITY, cell=8):
    """A map from rows of class names, each cell so many pixels wide and high."""
    labels = torch.tensor([[palette.find(name) for name in row.split()] for row in rows])
    return SemanticMap(labels.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[None], palette)


def random_map(seed, classes=8, size=(96, 160), palette=CITY):
    rng = np.random.default_rng(seed)
    labels = np.full(size, rng.integers(classes), dtype=np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        labels[y : y + rng.integers(8, 60), x : x + rng.integers(8, 90)] = rng.integers(classes)
    return SemanticMap(torch.from_numpy(labels)[None], palette)


def write_pair(folder, name, semantic_map, colour=(10, 20, 30)):
    """name.jpg and name_map.png; a sub-folder is made."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", semantic_map.size[::-1], colour).save(folder / f"{name}.jpg")
    Image.fromarray((semantic_map.to_image()[0] * 255).round().byte().numpy()).save(folder / f"{name}_map.png")


def touch_later(path):
    """As a later save would: another time even on coarse clocks."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 5_000_000_000))


# Ranking


@pytest.mark.parametrize("seed", range(5))
def test_a_map_is_its_own_first_choice_with_score_one(seed):
    maps = [random_map(seed * 100 + number) for number in range(20)]
    ranking = rank(maps[7], maps)
    assert ranking.order[0] == 7
    assert ranking.scores[7] == pytest.approx(1.0, abs=1e-12) and (np.delete(ranking.scores, 7) < 1.0).all()
    assert (np.diff(ranking.scores[ranking.order]) <= 0).all() and sorted(ranking.order) == list(range(20))


def textbook(target, candidate):
    """The three measures as sets of points and cells, one class at a time."""

    def points(semantic_map):
        return nearest(semantic_map.labels.numpy()[0], SAMPLES, SAMPLES)

    def cells(labels):
        step = SAMPLES // GRID
        blocks = [labels[y : y + step, x : x + step].ravel() for y in range(0, SAMPLES, step) for x in range(0, SAMPLES, step)]
        return np.array([np.bincount(block, minlength=256).argmax() for block in blocks])

    t, p = points(target), points(candidate)
    wanted = [label for label in np.unique(t) if label != VOID]
    share = {label: (t == label).sum() / (t != VOID).sum() for label in range(255)}
    other = {label: (p == label).sum() / max((p != VOID).sum(), 1) for label in range(255)}
    classes = np.mean([min(1.0, other[label] / share[label]) for label in wanted])
    proportions = sum(min(share[c], other[c]) for c in share) / sum(max(share[c], other[c]) for c in share)
    t, p = cells(t), cells(p)
    asked = t != VOID
    union = [((t == c) | (p == c) & asked) for c in np.unique(t[asked])]
    both = [((t == c) & (p == c)) for c in np.unique(t[asked])]
    return classes, proportions, np.mean([b.sum() / u.sum() for b, u in zip(both, union)])


@pytest.mark.parametrize("seed", range(4))
def test_the_measures_are_those_of_the_textbook(seed):
    def with_void(semantic_map):
        return SemanticMap(semantic_map.labels.masked_fill(semantic_map.labels == 3, VOID), CITY)

    maps = [with_void(random_map(seed * 50 + number, classes=5 + number % 3)) for number in range(6)]
    ranking = rank(maps[0], maps)
    expected = np.array([textbook(maps[0], each) for each in maps])
    np.testing.assert_allclose(ranking.measures, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rank(maps[0], maps, Weights(1, 0, 3)).scores, expected @ [0.25, 0, 0.75], rtol=0, atol=1e-12)


def test_more_of_the_right_thing_is_better():
    target = a_map("sky sky sky sky", "car road road car")
    candidates = [
        a_map("void void void void", "void void void void"),
        a_map("road road road road", "sky sky sky sky"),  # no car, upside down
        a_map("road car car road", "sky sky sky sky"),  # upside down
        a_map("sky sky sky sky", "road car car road"),  # cars elsewhere
        target,
    ]
    ranking = rank(target, candidates)
    assert ranking.order.tolist() == [4, 3, 2, 1, 0] and ranking.scores[0] == 0
    assert ranking.match(1).missing == (("car", 0.25),) and "lacks car (25.0 %)" in ranking.match(1).reasons()
    assert ranking.match(2).reasons().endswith("has every class")


def test_each_weight_has_its_say():
    target = a_map("sky sky", "road car")
    mirrored, little_car = (
        a_map("sky sky", "car road"),
        a_map(*["sky sky sky sky"] * 2, "road road road road", "road road road car"),
    )
    assert rank(target, [mirrored, little_car], Weights(1, 1, 0)).order[0] == 0
    assert rank(target, [mirrored, little_car], Weights(0, 0, 1)).order[0] == 1
    for bad in ((0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1)):
        with pytest.raises(ValueError, match="weights"):
            Weights(*bad)


def test_void_asks_for_nothing():
    target = a_map("sky sky void void", "road road void void")
    full = a_map("sky sky car bus", "road road car bus")
    assert rank(target, [full]).measures[0, 2] == 1.0
    with pytest.raises(ValueError, match="void everywhere"):
        rank(a_map("void void"), [full])
    with pytest.raises(ValueError, match="candidates"):
        rank(target, [])


def test_other_palettes_meet_by_the_names_of_classes():
    target = a_map("sky sky", "road person")
    ranking = rank(target, [a_map("wall wall", "bed bed", palette=ADE), a_map("sky sky", "road person", palette=ADE)])
    assert ranking.order[0] == 1 and ranking.scores[1] == pytest.approx(1.0) and ranking.scores[0] < 0.5


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (SAMPLES, SAMPLES), (720, 1280)])
def test_any_size_will_do(size):
    semantic_map = SemanticMap((torch.arange(size[0] * size[1]).reshape(1, *size) * 7 // max(size) % 19), CITY)
    assert rank(semantic_map, [random_map(1), semantic_map]).order[0] == 1


def test_a_batch_gets_the_exemplar_that_suits_all():
    first, second = a_map("sky sky", "road road"), a_map("sky sky", "car car")
    both = SemanticMap(torch.cat([first.labels, second.labels]), CITY)
    ranking = rank(both, [first, second, a_map("sky sky", "road car")])
    alone = [rank(each, [first, second, a_map("sky sky", "road car")]).measures for each in (first, second)]
    np.testing.assert_allclose(ranking.measures, (alone[0] + alone[1]) / 2, rtol=0, atol=1e-12)


def test_ties_are_broken_by_likeness_and_nothing_else_is():
    target = a_map("sky sky", "road car")
    candidates = [a_map("bus bus", "bus bus"), target, target, a_map("sky sky", "car road"), target]
    ranking = rank(target, candidates)
    assert list(ranking.best_first()) == [1, 2, 4, 3, 0]
    asked = []

    def likeness(candidate):
        asked.append(candidate)
        return [9.0, 0.1, 0.5, 9.0, 0.3][candidate]

    assert next(ranking.best_first(likeness)) == 2 and asked == [1, 2, 4]
    assert list(ranking.best_first(likeness)) == [2, 4, 1, 3, 0]
    assert list(ranking.best_first(likeness, margin=1.0)) == [3, 0, 2, 4, 1]


def test_a_hundred_thousand_candidates():
    rng = np.random.default_rng(0)
    stripes = rng.integers(0, 19, (100_000, GRID), dtype=np.uint8)
    counts = np.bincount((stripes + 19 * np.arange(100_000)[:, None]).ravel(), minlength=1_900_000).reshape(-1, 19)
    cells, counts = np.repeat(stripes, GRID, axis=1), (counts * (SAMPLES * SAMPLES // GRID)).astype(np.uint16)
    target = SemanticMap(torch.from_numpy(cells[77_777].reshape(1, GRID, GRID)), CITY)
    ranking = rank(target, Summaries(counts, cells, CITY))
    assert ranking.order[0] == 77_777 and ranking.scores[77_777] == pytest.approx(1.0)


# Folders


def test_pairs_side_by_side_and_in_sub_folders(tmp_path):
    flat, split = tmp_path / "flat", tmp_path / "split"
    for name in ("b", "deep/a"):
        write_pair(flat, name, random_map(1))
    Image.new("RGB", (4, 4)).save(flat / "alone.png")
    (flat / "notes.txt").write_text("no picture")
    (flat / ".hidden.png").write_bytes(b"")
    found = find_pairs(flat)
    assert (
        found.maps == ("b_map.png", "deep/a_map.png")
        and found.images == ("b.jpg", "deep/a.jpg")
        and found.unpaired == ("alone.png",)
    )
    for name in ("images/x/1.jpg", "maps/x/1.png", "maps/x/1.jpg", "maps/2.png", "outside.png"):
        (split / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(split / name)
    found = find_pairs(split)
    assert found.images == ("images/x/1.jpg",) and found.maps == ("maps/x/1.png",) and found.unpaired == ("maps/2.png",)


def test_folders_that_link_to_themselves_end(tmp_path):
    write_pair(tmp_path, "a", random_map(1))
    try:
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    except OSError:
        pytest.skip("no links here")
    assert find_pairs(tmp_path).maps == ("a_map.png",)


def test_the_fingerprint_follows_the_folder(tmp_path):
    write_pair(tmp_path, "a", random_map(1))
    seen = {find_pairs(tmp_path).fingerprint()}
    assert find_pairs(tmp_path).fingerprint() in seen
    write_pair(tmp_path, "b", random_map(2))
    seen.add(find_pairs(tmp_path).fingerprint())
    touch_later(tmp_path / "a.jpg")
    seen.add(find_pairs(tmp_path).fingerprint())
    (tmp_path / "b.jpg").rename(tmp_path / "c.jpg")
    seen.add(find_pairs(tmp_path).fingerprint())
    assert len(seen) == 4


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda folder: (folder.rmdir(), folder.write_text("")), "is a file"),
        (
            lambda folder: Image.new("RGB", (4, 4)).save(folder / "a.png"),
            r"no image with its map \(1 image files.*town_map.png",
        ),
    ],
)
def test_unusable_folders_are_named(tmp_path, prepare, message):
    folder = tmp_path / "streets"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(ValueError, match=f"folder: .*streets.*{message}"):
        find_pairs(folder)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (1, 8, 4, 3)


# Index


@pytest.fixture
def streets(tmp_path):
    folder = tmp_path / "streets"
    for number in range(5):
        write_pair(folder, f"street_{number}", random_map(number))
    return folder


def updated(folder, **more):
    return update(find_pairs(folder), CITY, 32.0, [folder / file_name(CITY, 32.0)], **more)


def test_a_read_folder_says_what_the_maps_say_and_stays_as_it_was(streets):
    before = {path.name: path.read_bytes() for path in streets.iterdir()}
    first = updated(streets)
    expected = summarise([random_map(number) for number in range(5)])
    np.testing.assert_array_equal(first.index.summaries.counts, expected.counts)
    np.testing.assert_array_equal(first.index.summaries.cells, expected.cells)
    after = {path.name: path.read_bytes() for path in streets.iterdir()}
    assert first.read == 5 and after.keys() - before.keys() == {first.file.name} and before.items() <= after.items()


def test_only_what_changed_is_read_again(streets):
    updated(streets)
    assert updated(streets).read == 0
    write_pair(streets, "street_2", random_map(40))
    touch_later(streets / "street_2_map.png")
    write_pair(streets, "street_9", random_map(9))
    (streets / "street_0_map.png").unlink()
    second = updated(streets)
    assert second.read == 2
    expected = summarise([random_map(number) for number in (1, 40, 3, 4, 9)])
    np.testing.assert_array_equal(second.index.summaries.counts, expected.counts)
    np.testing.assert_array_equal(second.index.summaries.cells, expected.cells)
    touch_later(streets / "street_1.jpg")
    assert updated(streets).read == 0  # the index knows maps only


def test_each_palette_and_tolerance_has_its_own_index(streets):
    updated(streets)
    assert len({file_name(CITY, 32.0), file_name(CITY, 31.0), file_name(ADE, 32.0)}) == 3
    other = update(find_pairs(streets), ADE, 32.0, [streets / file_name(ADE, 32.0)])
    assert other.read == 5 and updated(streets).read == 0


def test_corrupt_maps_are_skipped_named_and_read_again_only_once_repaired(streets):
    good = (streets / "street_1_map.png").read_bytes()
    (streets / "street_1_map.png").write_bytes(good[: len(good) // 2])
    (streets / "street_3_map.png").write_bytes(b"")
    (streets / "street_4_map.png").write_bytes(b"GIF89a" + bytes(range(256)))
    found = updated(streets).index
    assert found.readable().tolist() == [0, 2]
    assert all(f"street_{number}_map.png" in found.problems[f"street_{number}_map.png"] for number in (1, 3, 4))
    assert str(streets) not in "".join(found.problems.values())
    again = updated(streets)
    assert again.read == 0 and again.index.problems == found.problems
    (streets / "street_1_map.png").write_bytes(good)
    touch_later(streets / "street_1_map.png")
    repaired = updated(streets)
    assert repaired.read == 1 and repaired.index.readable().tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_index_is_made_anew(streets, seed):
    whole = updated(streets)
    rng = random.Random(seed)
    data = bytearray(whole.file.read_bytes())
    if seed % 2:
        data = data[: rng.randrange(len(data))]
    else:
        data[:200] = rng.randbytes(200)
    whole.file.write_bytes(data)
    again = updated(streets)
    assert again.read == 5
    np.testing.assert_array_equal(again.index.summaries.counts, whole.index.summaries.counts)
    assert updated(streets).read == 0


def test_an_interruption_keeps_what_was_read(streets, monkeypatch):
    monkeypatch.setattr(exemplar_index, "_AT_ONCE", 2)

    def stop(done, total):
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        updated(streets, progress=stop)
    steps = []
    assert updated(streets, progress=lambda *step: steps.append(step)).read == 3
    assert steps == [(0, 3), (2, 3), (3, 3)]
    assert not list(streets.glob(".*"))  # nothing half-written stays


def test_where_writing_is_refused_the_next_place_serves(streets, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    places = [tmp_path / "file" / "index.npy", tmp_path / "user" / "deep" / "index.npy"]
    assert update(find_pairs(streets), CITY, 32.0, places).file == places[1]
    assert update(find_pairs(streets), CITY, 32.0, places).read == 0
    assert update(find_pairs(streets), CITY, 32.0, places[:1]).file is None


# What people and disks bring


def test_one_bad_entry_is_skipped_and_named(streets, monkeypatch):
    (streets / "me").symlink_to(streets / "me")
    (streets / "loop.png").symlink_to(streets / "loop.png")
    os.mkfifo(streets / "pipe.png")
    os.mkfifo(streets / "pipe_map.png")
    (streets / "closed").mkdir()
    scan = os.scandir

    def refuse(path):  # permissions do not bind root
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_pairs(streets)
    assert len(found) == 5
    assert [each.split(": ")[0] for each in found.skipped] == ["closed/", "loop.png", "me", "pipe.png", "pipe_map.png"]
    assert "Permission denied" in found.skipped[0] and "not a regular file" in found.skipped[3]


def test_a_folder_that_is_not_one_of_exemplars_ends_the_scan(streets, monkeypatch):
    monkeypatch.setattr("pack.py.semantic.pairs.MOST_OTHERS", 20)
    assert len(find_pairs(streets)) == 5
    for number in range(21):
        (streets / f"{number}.txt").write_text("")
    with pytest.raises(ValueError, match=r"folder: .*streets.*more than .* 20 other files"):
        find_pairs(streets)


def test_accents_match_however_they_are_stored(tmp_path):
    write_pair(tmp_path, "a", random_map(1))
    (tmp_path / "a.jpg").rename(tmp_path / "caf\u00e9.jpg")
    (tmp_path / "a_map.png").rename(tmp_path / "cafe\u0301_map.png")
    found = find_pairs(tmp_path)
    assert found.images == ("caf\u00e9.jpg",) and found.maps == ("cafe\u0301_map.png",)
    assert read_image(tmp_path / found.images[0]).ndim == 4


@pytest.mark.parametrize("kind", ["grey", "16 bit", "palette indices", "saved by the pack"])
def test_maps_of_class_numbers_have_the_classes_of_coloured_ones(tmp_path, kind):
    semantic_map = random_map(3)
    labels = semantic_map.labels[0].numpy()
    write_pair(tmp_path, "a", semantic_map)
    expected = updated(tmp_path).index.summaries
    path = tmp_path / "a_map.png"
    if kind == "grey":
        Image.fromarray(labels).save(path)
    elif kind == "16 bit":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    elif kind == "palette indices":
        image = Image.fromarray(labels)
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 77)])
        image.save(path)
    else:
        save_label_png(path, semantic_map.labels[0], CITY)
    touch_later(path)
    found = updated(tmp_path)
    assert found.read == 1
    np.testing.assert_array_equal(found.index.summaries.counts, expected.counts)
    np.testing.assert_array_equal(read_map(path, CITY).labels, labels)


def test_a_map_is_turned_as_its_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), CITY.colours[0]).save(tmp_path / "a.png", exif=exif)
    assert read_map(tmp_path / "a.png", CITY).colours.shape == (8, 4, 4)


@pytest.mark.parametrize("seed", range(8))
def test_no_flipped_bit_of_an_index_changes_or_stops_anything(streets, seed):
    whole = updated(streets)
    good = whole.file.read_bytes()
    rng = random.Random(seed)
    for position in [rng.randrange(len(good)) for _ in range(3)] + [rng.randrange(130)]:
        data = bytearray(good)
        data[position] ^= 1 << rng.randrange(8)
        whole.file.write_bytes(data)
        again = updated(streets)
        np.testing.assert_array_equal(again.index.summaries.counts, whole.index.summaries.counts)
        np.testing.assert_array_equal(again.index.summaries.cells, whole.index.summaries.cells)
        assert again.index.names == whole.index.names


def test_an_index_whose_names_are_not_texts_is_rebuilt(streets, monkeypatch):
    whole = updated(streets)
    monkeypatch.setattr(exemplar_index, "_digest", lambda *_: "same")
    dumps = exemplar_index.json.dumps
    monkeypatch.setattr(
        exemplar_index.json, "dumps", lambda value: dumps({**value, "names": [[name] for name in value["names"]]})
    )
    exemplar_index._save(whole.index, [whole.file])
    monkeypatch.setattr(exemplar_index.json, "dumps", dumps)
    assert exemplar_index._load(whole.file, CITY) is None
    assert updated(streets).read == 5
