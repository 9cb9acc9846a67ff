"""The painter's text: read exactly, refused in a sentence when it is wrong, and painted over a map without touching the rest."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from pack.py.semantic.painting import (
    ERASED,
    OWN_CLASSES,
    UNPAINTED,
    Painting,
    apply_painting,
    describe_map,
    parse_painting,
    resize_labels,
    serialize_painting,
)
from pack.py.semantic.palettes import PALETTE_NAMES, VOID, named_palette, own_palette
from pack.py.semantic.semantic_map import SemanticMap
from PIL import Image

SKY, TREE = ("sky", (70, 130, 180)), ("tree", (0, 128, 0))


def labels_of(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def png(array, mode="L", **options) -> str:
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).convert(mode).save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def text(labels="", classes=(SKY, TREE), palette=OWN_CLASSES) -> str:
    listed = [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour)} for name, colour in classes]
    return json.dumps({"palette": palette, "classes": listed, "labels": labels})


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width: int, height: int, data: bytes, depth=8, kind=0, interlaced=0) -> str:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return base64.b64encode(file).decode()


def test_a_painting_goes_there_and_back():
    numbers = np.random.default_rng(0)
    labels = torch.from_numpy(numbers.choice([0, 1, ERASED, UNPAINTED], (37, 53)).astype(np.uint8))
    written = serialize_painting(Painting(labels, (SKY, ("cafe\u0301 \u732b", (1, 2, 3))), "ADE20K"))
    read = parse_painting(written)
    assert torch.equal(read.labels, labels) and read.palette == "ADE20K"
    assert read.classes == (SKY, ("cafe\u0301 \u732b", (1, 2, 3)))


def test_gray_and_palette_images_hold_the_numbers_themselves():
    array = np.array([[0, 1, 255], [254, 1, 0]], dtype=np.uint8)
    indexed = Image.fromarray(array)
    indexed = Image.frombytes("P", indexed.size, indexed.tobytes())
    indexed.putpalette([200, 10, 30] * 256)
    file = io.BytesIO()
    indexed.save(file, "PNG", bits=8)
    for found in (png(array), "data:image/png;base64," + png(array), base64.b64encode(file.getvalue()).decode()):
        assert parse_painting(text(found)).labels.tolist() == array.tolist()


def test_an_empty_text_and_an_empty_painting():
    assert parse_painting("") is None and parse_painting(" \n") is None
    nothing = apply_painting(parse_painting(""), 24, 16)
    assert nothing.size == (16, 24) and bool((nothing.labels == VOID).all())
    chosen = apply_painting(parse_painting(text(classes=(), palette="ADE20K")), 24, 16)
    assert chosen.palette == named_palette("ADE20K") and bool((chosen.labels == VOID).all())


@pytest.mark.parametrize("palette", PALETTE_NAMES)
def test_classes_of_a_palette_keep_its_labels(palette):
    names = named_palette(palette).names
    last = min(7, len(names) - 1)
    classes = ((names[last], (1, 2, 3)), ("dragon", (9, 8, 7)), (names[2].upper().replace(" ", "_"), (0, 0, 0)))
    found = apply_painting(Painting(labels_of([[0, 1, 2, UNPAINTED, ERASED]]), classes, palette), 5, 1)
    assert found.labels.tolist() == [[[last, len(names), 2, VOID, VOID]]]
    assert found.names == (*names, "dragon") and found.colours[:-1] == named_palette(palette).colours
    assert found.colours[-1] == (9, 8, 7)


def test_own_classes_are_the_palette_in_their_order():
    found = apply_painting(Painting(labels_of([[1, 0, UNPAINTED]]), (SKY, TREE)), 3, 1)
    assert found.names == ("sky", "tree") and found.colours == (SKY[1], TREE[1]) and found.palette.is_open
    assert found.labels.tolist() == [[[1, 0, VOID]]]


def test_painting_over_a_map_changes_only_what_is_painted():
    palette = named_palette("Cityscapes / BDD100K")
    numbers = torch.Generator().manual_seed(0)
    below = SemanticMap(torch.randint(0, 19, (3, 20, 30), generator=numbers, dtype=torch.uint8), palette)
    labels = torch.full((20, 30), UNPAINTED, dtype=torch.uint8)
    labels[:5], labels[5:8], labels[8:10] = 0, ERASED, 1
    found = apply_painting(Painting(labels, (("car", (0, 0, 0)), ("dragon", (250, 250, 1)))), 512, 512, below)
    assert found.labels.shape == (3, 20, 30)
    assert bool((found.labels[:, :5] == palette.find("car")).all()) and bool((found.labels[:, 5:8] == VOID).all())
    assert bool((found.labels[:, 8:10] == 19).all()) and found.names[19] == "dragon"
    assert torch.equal(found.labels[:, 10:], below.labels[:, 10:])
    assert apply_painting(None, 8, 8, below) is below


def test_another_size_takes_the_nearest_pixel():
    labels = labels_of([[0, 1], [2, 3]])
    assert resize_labels(labels, 4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert resize_labels(labels, 1, 1).tolist() == [[3]]
    wide = resize_labels(torch.arange(12, dtype=torch.uint8).reshape(3, 4), 8, 6)
    assert torch.equal(wide, torch.arange(12, dtype=torch.uint8).reshape(3, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_map_is_described_whole():
    palette = own_palette().with_class("sky", (1, 2, 3)).with_class("car", (250, 0, 0))
    found = json.loads(describe_map(SemanticMap(labels_of([[[0, 1, VOID]], [[1, 1, 1]]]), palette)))
    assert found["classes"] == [{"name": "sky", "color": "#010203"}, {"name": "car", "color": "#fa0000"}]
    assert found["void"] == "#000000" and found["palette"] == "own classes"
    image = Image.open(io.BytesIO(base64.b64decode(found["labels"].split(",")[1])))
    assert np.array(image).tolist() == [[0, 1, 255]]


WRONG = {
    "no JSON": ("{", "not JSON"),
    "deeply nested": ("[" * 200_000, "not JSON"),
    "a list": ("[]", "should be an object"),
    "a number": ("NaN", "should be an object"),
    "an unknown palette": (text(palette="nope"), "choose one of: own classes, Cityscapes"),
    "a palette that is no text": ('{"palette": [1]}', "choose one of"),
    "classes that are no list": ('{"classes": {"a": 1}}', "list of objects with name and color"),
    "a class without a color": ('{"classes": [{"name": "a"}]}', "class 0"),
    "a class that is no object": ('{"classes": ["a"]}', "class 0"),
    "a wrong color": ('{"classes": [{"name": "a", "color": "red"}]}', "#rrggbb"),
    "half a letter": ('{"classes": [{"name": "\\ud800", "color": "#000000"}]}', "ordinary text"),
    "too many classes": (text(classes=[(str(n), (0, 0, 0)) for n in range(255)]), "at most 254"),
    "labels that are no text": ('{"labels": [1]}', "PNG file as base64"),
    "no base64": (text("data:image/jpeg;base64,!!"), "PNG file as base64"),
    "no PNG": (text(base64.b64encode(b"GIF89a" * 20).decode()), "not a PNG"),
    "an empty file": (text("data:image/png;base64,"), "not a PNG"),
    "a JPEG named PNG": (text(base64.b64encode(b"\xff\xd8\xff" + b"0" * 90).decode()), "not a PNG"),
    "colours": (text(png(np.zeros((4, 4, 3)), "RGB")), "type 2 with 8 bits"),
    "gray with alpha": (text(png(np.zeros((4, 4)), "LA")), "type 4 with 8 bits"),
    "one bit": (text(png(np.zeros((4, 4)), "1")), "type 0 with 1 bits"),
    "16 bits": (text(raw_png(1, 1, zlib.compress(b"\0\0\0"), depth=16)), "with 16 bits"),
    "interlaced": (text(raw_png(1, 1, zlib.compress(b"\0\0"), interlaced=1)), "not interlaced"),
    "a huge size": (text(raw_png(2**31 - 1, 2**31 - 1, b"")), "1 to 8192 pixels"),
    "no size": (text(raw_png(0, 5, zlib.compress(b""))), "1 to 8192 pixels"),
    "no data": (text(raw_png(64, 64, b"")), "damaged"),
    "too little data": (text(raw_png(64, 64, zlib.compress(b"\0" * 65))), "damaged"),
    "broken data": (text(raw_png(64, 64, b"\x78\x9c" + b"\xff" * 50)), "damaged"),
    "a label beyond the classes": (text(png([[0, 1, 2]])), "contains the value 2, but there are 2 classes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(name):
    given, expected = WRONG[name]
    with pytest.raises(ValueError, match=r"^painting: ") as error:
        parse_painting(given)
    assert expected in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("names", [("sky", "Sky"), ("", "a"), ("a, b", "c"), ("a\nb", "c"), ("x" * 81, "c")])
def test_names_that_no_list_can_hold_are_refused(names):
    with pytest.raises(ValueError, match="painting: "):
        apply_painting(Painting(labels_of([[0, 1]]), tuple((name, (1, 2, 3)) for name in names)), 2, 1)


def test_a_name_of_void_paints_void():
    assert apply_painting(Painting(labels_of([[0, 1]]), (("Unlabeled", (9, 9, 9)), SKY)), 2, 1).labels.tolist() == [[[VOID, 0]]]


def test_damaged_texts_never_raise_anything_else():
    numbers = random.Random(0)
    whole = text(png(np.zeros((16, 16))))
    for _ in range(400):
        damaged = list(whole)
        for _ in range(numbers.randint(1, 6)):
            at = numbers.randrange(len(damaged))
            damaged[at] = chr(numbers.choice((numbers.randrange(32, 127), numbers.randrange(0x20, 0x2FF))))
        if numbers.random() < 0.3:
            damaged = damaged[: numbers.randrange(len(damaged))]
        try:
            parse_painting("".join(damaged))
        except ValueError as error:
            assert str(error).startswith("painting: ")


def test_a_small_file_cannot_fill_the_memory():
    bomb = text(raw_png(8192, 8192, zlib.compress(b"\0" * 1000)))
    with pytest.raises(ValueError, match="damaged"):
        parse_painting(bomb)
