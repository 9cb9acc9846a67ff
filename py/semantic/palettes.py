"""Palettes: which label is which class, and which colour draws it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from . import palette_data

Colour = tuple[int, int, int]

#: The label of a place that belongs to no class. Labels of classes are 0..254.
VOID = 255
MAX_CLASSES = 255
VOID_NAME = "void"
_VOID_NAMES = (VOID_NAME, "unlabeled", "unlabelled", "ignore")
_MAX_NAME = 80


@dataclass(frozen=True)
class Palette:
    """Class names and colours in label order. Two classes may share a colour (ADE20K has such a pair), never a name.

    `void_colour` draws label VOID. `is_open` says that a new class may be added by naming it; the palettes of data sets are closed,
    so that a typing mistake is an error there and not a new class.

    Raises:
        ValueError: more than 255 classes, names that are the same, a colour outside 0..255.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    void_colour: Colour = (0, 0, 0)
    is_open: bool = False
    _labels: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours):
            raise ValueError(
                f"palette {self.name!r}: {len(self.names)} names but {len(self.colours)} colours; give one colour a class."
            )
        if len(self.names) > MAX_CLASSES:
            raise ValueError(
                f"palette {self.name!r}: {len(self.names)} classes; a semantic map holds at most {MAX_CLASSES}. Merge some."
            )
        if not all(0 <= channel <= 255 for colour in (*self.colours, self.void_colour) for channel in colour):
            raise ValueError(
                f"palette {self.name!r}: a colour lies outside 0..255; give red, green and blue as whole numbers 0..255."
            )
        labels: dict[str, int] = {}
        for label, name in enumerate(self.names):
            if labels.setdefault(_plain(name), label) != label:
                raise ValueError(f"palette {self.name!r}: the class name {name!r} stands there twice; rename one.")
        object.__setattr__(self, "_labels", labels)

    def find(self, name: str) -> int | None:
        """The label of a class name, VOID for one of void's names, None for a name that is not there.

        Case, spaces, `_` and `-` do not matter: `Traffic_Light` is `traffic light`.
        """
        plain = _plain(name)
        if plain in self._labels:
            return self._labels[plain]
        return VOID if plain in _VOID_NAMES else None

    def label(self, name: str, where: str) -> int:
        """Like `find`, and a whole number counts as the label itself. `where` names the input for the message.

        Raises:
            ValueError: no such class; the message lists what comes close.
        """
        label = self.find(name)
        if label is None and name.strip().isdecimal() and int(name) < len(self.names):
            label = int(name)
        if label is None:
            raise ValueError(f"{where}: {name.strip()!r} is no class of the palette {self.name!r}. {self._suggestion(name)}")
        return label

    def class_name(self, label: int) -> str:
        return VOID_NAME if label == VOID else self.names[label]

    def colour_table(self) -> np.ndarray:
        """[256, 3] uint8: the colour of every label; unused labels have the void colour."""
        table = np.empty((256, 3), dtype=np.uint8)
        table[:] = self.void_colour
        if self.names:
            table[: len(self.names)] = self.colours
        return table

    def with_class(self, name: str, colour: Colour | None = None) -> Palette:
        """This palette with one more class, in the given colour or the next one that is free.

        Raises:
            ValueError: an empty, taken or overlong name, a name that lists could not hold, or no label left.
        """
        name = name.strip()
        if not name or len(name) > _MAX_NAME:
            raise ValueError(f"class name: {name[:40]!r} has {len(name)} characters; give 1 to {_MAX_NAME}.")
        if re.search(r",|\n|->", name):
            raise ValueError(
                f"class name: {name!r} holds a comma, a line break or '->', which separate names in lists; leave it out."
            )
        colours = (*self.colours, colour or _free_colour((*self.colours, self.void_colour)))
        void_colour = self.void_colour if self.void_colour not in colours else _free_void_colour(colours)
        return replace(self, names=(*self.names, name), colours=colours, void_colour=void_colour)

    def _suggestion(self, name: str) -> str:
        close = [
            self.names[self._labels[plain]] for plain in difflib.get_close_matches(_plain(name), self._labels, n=3, cutoff=0.6)
        ]
        if close:
            return f"Did you mean {' or '.join(repr(word) for word in close)}?"
        listed = ", ".join(self.names[:24]) + (", ..." if len(self.names) > 24 else "")
        return f"Its classes are: {listed or '(none)'}; and {VOID_NAME}."


def bit_colour(index: int) -> Colour:
    """The Pascal VOC rule: bits 0, 1, 2 of the index become the top bits of red, green, blue, the next three the bits below, ..."""
    red = green = blue = 0
    for place in range(7, -1, -1):
        red |= (index & 1) << place
        green |= (index >> 1 & 1) << place
        blue |= (index >> 2 & 1) << place
        index >>= 3
    return red, green, blue


def parse_colour(text: str) -> Colour:
    """`#rrggbb` or `rrggbb`.

    Raises:
        ValueError: anything else.
    """
    digits = text.strip().removeprefix("#")
    if not re.fullmatch(r"[0-9a-fA-F]{6}", digits):
        raise ValueError(f"colour: {text!r} is not a colour; write it as #rrggbb, for example #ff8800.")
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def own_palette() -> Palette:
    """The empty palette to which naming a class adds it."""
    return Palette("own classes", (), (), is_open=True)


def palette_of_colours(colours: list[Colour]) -> Palette:
    """A palette made from colours alone: the classes are named `#rrggbb`."""
    names = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours)
    return Palette("colours in this image", names, tuple(colours), _free_void_colour(tuple(colours)), is_open=True)


#: The palettes a user can choose by name, in the order of the menu. The names are stored in workflows: append only.
PALETTE_NAMES: tuple[str, ...] = ("Cityscapes / BDD100K", "ADE20K", "COCO-Stuff", "CelebAMask-HQ", "playground")


@cache
def named_palette(name: str) -> Palette:
    """One of PALETTE_NAMES.

    COCO-Stuff has the 182 classes of the data set's own label list, label = COCO id - 1 as in its label pictures, drawn by the VOC rule
    applied to the COCO id (its authors publish no colours). CelebAMask-HQ draws its background black, so void is white there.

    Raises:
        ValueError: an unknown name.
    """
    if name == "Cityscapes / BDD100K":
        return _parsed(name, palette_data.CITYSCAPES)
    if name == "ADE20K":
        return _parsed(name, palette_data.ADE20K)
    if name == "COCO-Stuff":
        names = _entries(palette_data.COCO_STUFF)
        return Palette(name, names, tuple(bit_colour(label + 1) for label in range(len(names))))
    if name == "CelebAMask-HQ":
        return replace(_parsed(name, palette_data.CELEBAMASK_HQ), void_colour=(255, 255, 255))
    if name == "playground":
        return Palette(name, tuple(palette_data.PLAYGROUND), tuple(palette_data.PLAYGROUND.values()))
    raise ValueError(f"palette: {name!r} is not known; choose one of: {', '.join(PALETTE_NAMES)}.")


def same_thing(name: str) -> tuple[str, ...]:
    """Other names for the same class in other palettes: `sofa` gives `couch`."""
    return _same_things().get(_plain(name), ())


@cache
def _same_things() -> dict[str, tuple[str, ...]]:
    groups = [tuple(_plain(word) for word in line.split(",")) for line in palette_data.SAME_THING.strip().splitlines()]
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


def _entries(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(";"))


def _parsed(name: str, text: str) -> Palette:
    pairs = [entry.rsplit(" ", 1) for entry in _entries(text)]
    return Palette(name, tuple(word for word, _ in pairs), tuple(parse_colour(digits) for _, digits in pairs))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())


def _free_colour(taken: tuple[Colour, ...]) -> Colour:
    """The first VOC colour that is at least 48 away from every taken one; with many classes, the one that is farthest away."""
    candidates = [bit_colour(index) for index in range(1, 512)]
    gaps = np.array(candidates)[:, None] - np.array(taken or [(-255, -255, -255)])
    nearest = np.square(gaps).sum(axis=-1).min(axis=1)
    free = np.flatnonzero(nearest >= 48**2)
    return candidates[free[0] if len(free) else nearest.argmax()]


def _free_void_colour(taken: tuple[Colour, ...]) -> Colour:
    for colour in ((0, 0, 0), (255, 255, 255), (128, 128, 128)):
        if all(sum((a - b) ** 2 for a, b in zip(colour, other)) >= 48**2 for other in taken):
            return colour
    return _free_colour(taken)
