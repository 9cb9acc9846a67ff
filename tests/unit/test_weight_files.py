"""Weight files: what is read, whatever it is named, and what is refused in which words."""

from __future__ import annotations

import argparse
import os
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from pack.py.weight_files import WeightFileError, read_weights
from safetensors.torch import save_file

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)}


def write(path, container="safetensors"):
    if container == "safetensors":
        save_file(WEIGHTS, path, metadata={"made_by": "a test"})
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=container == "zip")
    return path


def refused(path, says):
    with pytest.raises(WeightFileError, match=says) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name} cannot be read as weights: ") and message.endswith(".")
    assert "weights_only" not in message and "\n" not in message
    return message


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.sft", "a.SAFETENSORS", "a.bin", "a.pt", "a.ckpt"])
def test_the_container_is_recognised_by_its_first_bytes_whatever_the_name(tmp_path, container, name):
    found = read_weights(write(tmp_path / name, container))
    assert set(found.tensors) == set(WEIGHTS) and all(torch.equal(found.tensors[key], WEIGHTS[key]) for key in WEIGHTS)
    assert found.metadata == ({"made_by": "a test"} if container == "safetensors" else {})


def test_nested_dictionaries_come_under_dotted_names(tmp_path):
    torch.save({"state_dict": WEIGHTS, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3}, tmp_path / "a.pt")
    assert set(read_weights(tmp_path / "a.pt").tensors) == {
        "state_dict.layer.weight",
        "state_dict.layer.bias",
        "optimizer.state.0.step",
    }


def test_the_bookkeeping_of_training_programs_is_passed_over(tmp_path):
    beside = {"args": argparse.Namespace(lr=1e-4), "folder": tmp_path, "best": np.float64(0.5)}
    torch.save({"model": WEIGHTS, **beside}, tmp_path / "a.ckpt")
    assert torch.equal(read_weights(tmp_path / "a.ckpt").tensors["model.layer.weight"], WEIGHTS["layer.weight"])


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", r"it is empty \(0 bytes\)\. Download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4521700000\n",
            r"only a Git LFS pointer of the weights \(4,521,700,000 bytes\)",
        ),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        (b'{"error": "Repository not found"}', "it is a JSON text of 33 bytes"),
        (b"Entry not found", "it is a text of 15 bytes"),
        (b"GGUF\x03\x00", "it is a GGUF file"),
        (b"7z\xbc\xaf\x27\x1c\x00", "it is a 7z archive"),
        (bytes(range(200, 256)), "neither a safetensors file nor a torch file"),
        (struct.pack("<Q", 1 << 40) + b"{}", "header of the safetensors file is damaged"),
        (struct.pack("<Q", 9) + b"{" + b"x" * 8, "header of the safetensors file is damaged"),
        (struct.pack("<Q", 7) + b'{"a":1}', "header of the safetensors file is damaged"),
        (b"\x80\x02.", "it is damaged"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_what_is_not_a_weight_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, says)


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
def test_an_incomplete_download_is_named_at_every_length(tmp_path, container):
    whole = write(tmp_path / "whole", container).read_bytes()
    for length in range(20, len(whole), max(1, len(whole) // 20)):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        refused(tmp_path / "cut.pt", "incomplete|damaged|more than weights")  # the name of a class may be cut
    (tmp_path / "cut.pt").write_bytes(whole[:-1])
    message = refused(tmp_path / "cut.pt", "incomplete|damaged")
    if container == "safetensors":
        assert f"it ends after {len(whole) - 1:,} of {len(whole):,} bytes" in message


def test_a_pickle_that_holds_more_than_weights_is_refused_and_does_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for new in (True, False):
        torch.save({"w": torch.ones(1), "x": Evil()}, tmp_path / "evil.bin", _use_new_zipfile_serialization=new)
        message = refused(tmp_path / "evil.bin", r"contains more than weights \((posix|nt)\.mkdir\)")
        assert "Take a safetensors file" in message
    assert not (tmp_path / "made").exists()


def test_a_few_bytes_cannot_ask_for_much_memory(tmp_path):
    torch.save({"w": torch.ones(1, dtype=torch.uint8).expand(2**18, 2**18)}, tmp_path / "bomb.pt")
    refused(tmp_path / "bomb.pt", r"'w' is \[262144, 262144\], more than")
    shared = torch.ones(1000)
    torch.save({str(number): shared for number in range(1000)}, tmp_path / "shared.pt")
    refused(tmp_path / "shared.pt", "more than the file's")
    write(tmp_path / "plain.pt", "zip")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry) + bytes(10_000_000))
    refused(tmp_path / "zip.pt", "compressed")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("model.safetensors", b"x")
    refused(tmp_path / "other.zip", "zip archive without weights")


@pytest.mark.parametrize(
    "tensor, says",
    [
        (torch.ones(3, 3).to_sparse(), "'w' is sparse"),
        (torch.empty(3, device="meta"), "'w' is without values"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "'w' is quantised"),
    ],
)
def test_weights_of_another_kind_are_named(tmp_path, tensor, says):
    torch.save({"w": tensor}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", says)


def test_a_file_without_weights_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "it contains no weights")


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
def test_damaged_files_are_read_or_refused_in_our_words(tmp_path, container):
    whole, rng = write(tmp_path / "whole", container).read_bytes(), random.Random(0)
    path, refusals = tmp_path / "damaged.pt", 0
    for _ in range(170):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path).tensors.values())
        except WeightFileError as error:
            refusals += 1
            assert str(error).startswith("damaged.pt cannot be read as weights: ") and "weights_only" not in str(error)
    assert refusals > 20
