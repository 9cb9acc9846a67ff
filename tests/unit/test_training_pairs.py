"""Pairs of pictures and maps: found in folders and in shards, read one by one, faults named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pack.lab.training.paired_data import find_pairs
from PIL import Image


def png(value, size=(6, 4)):
    data = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


def check(pairs):
    assert [Path(pair.name.rpartition(":")[2]).stem for pair in pairs] == ["a", "b"]
    for value, pair, text in zip((51, 102), pairs, ("a street", "")):
        picture, coloured, caption = pair.load_colours()
        assert picture.shape == (4, 6, 3) and caption == text
        np.testing.assert_allclose(picture[..., 0], value / 255, atol=1e-6)
        np.testing.assert_allclose(coloured[..., 0], (value + 1) / 255, atol=1e-6)


def test_a_folder(tmp_path):
    for folder in ("images", "maps", "captions"):
        (tmp_path / folder).mkdir()
    for name, value in (("a", 51), ("b", 102), ("without_map", 3)):
        (tmp_path / "images" / f"{name}.png").write_bytes(png(value))
        if name != "without_map":
            (tmp_path / "maps" / f"{name}.png").write_bytes(png(value + 1))
    (tmp_path / "captions" / "a.txt").write_text("a street\n")
    check(find_pairs(tmp_path))


def test_shards(tmp_path):
    for shard, name, value in (("0.tar", "a", 51), ("1.tar", "b", 102)):
        with tarfile.open(tmp_path / shard, "w") as tar:
            files = {f"x/{name}.png": png(value), f"x/{name}.map.png": png(value + 1), "x/alone.png": png(0)}
            for file, data in files.items() if name == "b" else {**files, f"x/{name}.txt": b"a street"}.items():
                member = tarfile.TarInfo(file)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    check(find_pairs(tmp_path))


def test_nothing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"where no images are found. Give a folder with images/ and maps/"):
        find_pairs(tmp_path)
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        find_pairs(tmp_path)[0].load_colours()
