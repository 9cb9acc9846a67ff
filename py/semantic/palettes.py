"""Palettes: which label is which class, and which colour draws it."""

from __future__ import annotations

import colorsys
import difflib
import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from . import palette_data

Colour = tuple[int, int, int]

#: The label of a pixel without a class. Classes have the labels 0..254.
VOID = 255
MAX_CLASSES = 255
#: The choice that means: make a palette from the image; and the name of that palette.
AUTOMATIC_NAME = "colours in this image"
VOID_NAME = "void"
_VOID_NAMES = (VOID_NAME, "unlabeled", "unlabelled", "ignore")
_MAX_NAME = 80


@dataclass(frozen=True)
class Palette:
    """Class names and colours in label order. Two classes may share a colour (ADE20K has such a pair), never a name.

    `void_colour` draws label VOID. `is_open`: naming a new class adds it; the palettes of data sets are closed, so that a typing mistake
    is an error there and not a new class.

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
                raise ValueError(f"palette {self.name!r}: the class name {name!r} occurs twice; rename one.")
        object.__setattr__(self, "_labels", labels)

    def find(self, name: str) -> int | None:
        """The label of a class name, VOID for one of void's names, None for an unknown name.

        Case, spaces, `_`, `-` and the Unicode form do not matter: `Traffic_Light` is `traffic light`.
        """
        plain = _plain(name)
        if plain in self._labels:
            return self._labels[plain]
        return VOID if plain in _VOID_NAMES else None

    def label(self, name: str, where: str) -> int:
        """As `find`, but a whole number is taken as the label itself. `where` names the input in the message.

        Raises:
            ValueError: no such class; the message lists similar names.
        """
        label = self.find(name)
        if label is None and name.strip().isdecimal() and int(name) < len(self.names):
            label = int(name)
        if label is None:
            raise ValueError(f"{where}: {name.strip()!r} is not a class of the palette {self.name!r}. {self._suggestion(name)}")
        return label

    def class_name(self, label: int) -> str:
        """The name of a label; `void` for VOID."""
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
            ValueError: an empty, taken or overlong name, a name with a separator of lists in it, or no label left.
        """
        name = name.strip()
        if not name or len(name) > _MAX_NAME:
            raise ValueError(f"class name: {name[:40]!r} has {len(name)} characters; give 1 to {_MAX_NAME}.")
        if re.search(r",|\n|->", name):
            raise ValueError(
                f"class name: {name!r} contains a comma, a line break or '->', which separate names in lists; leave it out."
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
    for bit in range(7, -1, -1):
        red |= (index & 1) << bit
        green |= (index >> 1 & 1) << bit
        blue |= (index >> 2 & 1) << bit
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
    """An empty palette; naming a class adds it."""
    return Palette("own classes", (), (), is_open=True)


def palette_of_colours(colours: list[Colour]) -> Palette:
    """A palette whose classes are named by their colours, `#rrggbb`."""
    names = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours)
    return Palette(AUTOMATIC_NAME, names, tuple(colours), _free_void_colour(tuple(colours)), is_open=True)


#: The palettes that a user can choose by name, in the order of the menu. The names are stored in workflows: append only.
PALETTE_NAMES: tuple[str, ...] = (
    "Cityscapes / BDD100K",
    "ADE20K",
    "COCO-Stuff",
    "CelebAMask-HQ",
    "playground",
    "COCO panoptic",
    "OneFormer ADE20K",
    "OneFormer COCO panoptic",
    "face parsing (viridis)",
    "BiSeNet face parsing",
    "anime face segmentation",
    "Pascal VOC",
    "Cityscapes label IDs",
    "COCO-Stuff 171",
)
#: Palettes whose colours nobody paints: their maps come as class numbers.
NUMBERS_ONLY = frozenset({"COCO-Stuff 171"})
_TEXTS = {
    "Cityscapes / BDD100K": palette_data.CITYSCAPES,
    "ADE20K": palette_data.ADE20K,
    "CelebAMask-HQ": palette_data.CELEBAMASK_HQ,
    "COCO panoptic": palette_data.COCO_PANOPTIC,
    "face parsing (viridis)": palette_data.FACE_VIRIDIS,
    "BiSeNet face parsing": palette_data.BISENET_FACES,
    "anime face segmentation": palette_data.ANIME_FACES,
    "Cityscapes label IDs": palette_data.CITYSCAPES_IDS,
}
#: Where a class is black, void has another colour.
_VOID_COLOURS: dict[str, Colour] = {
    "CelebAMask-HQ": (255, 255, 255),
    "OneFormer ADE20K": (255, 255, 255),
    "OneFormer COCO panoptic": (255, 255, 255),
    "Pascal VOC": (224, 224, 192),
    "Cityscapes label IDs": (255, 255, 255),
}


@cache
def named_palette(name: str) -> Palette:
    """One of PALETTE_NAMES.

    COCO-Stuff has the 182 classes of the data set's label list, label = COCO ID - 1 as in its label images, drawn by the VOC rule
    applied to the COCO ID (its authors publish no colours); COCO-Stuff 171 leaves out the eleven that no image contains. The OneFormer
    palettes have the classes of ADE20K and COCO panoptic in the colours of `golden_angle_colour`.

    Raises:
        ValueError: an unknown name.
    """
    if name in _TEXTS:
        names, colours = _names_and_colours(_TEXTS[name])
    elif name == "playground":
        names, colours = tuple(palette_data.PLAYGROUND), tuple(palette_data.PLAYGROUND.values())
    elif name in ("COCO-Stuff", "COCO-Stuff 171"):
        names = _entries(palette_data.COCO_STUFF)
        if name != "COCO-Stuff":
            names = tuple(each for each in names if each not in palette_data.COCO_STUFF_UNUSED)
        colours = tuple(bit_colour(label + 1) for label in range(len(names)))
    elif name in ("OneFormer ADE20K", "OneFormer COCO panoptic"):
        names, _ = _names_and_colours(palette_data.ADE20K if name.endswith("ADE20K") else palette_data.COCO_PANOPTIC)
        colours = tuple(golden_angle_colour(label) for label in range(len(names)))
    elif name == "Pascal VOC":
        names = _entries(palette_data.PASCAL_VOC)
        colours = tuple(bit_colour(label) for label in range(len(names)))
    else:
        raise ValueError(f"palette: {name!r} is not known; choose one of: {', '.join(PALETTE_NAMES)}.")
    return Palette(name, names, colours, _VOID_COLOURS.get(name, (0, 0, 0)))


def golden_angle_colour(label: int) -> Colour:
    """The colour in which OneFormer preprocessors since 2025 paint a class: label 0 black, then hues a golden angle apart.

    Hue, saturation and value are cut to the 8 bits of OpenCV's HSV images (hue 0..179).
    """
    if label == 0:
        return (0, 0, 0)
    hue = int((label * 137.508) % 360 / 2)
    saturation = int((0.6 + 0.4 * (label % 3) / 2) * 255)
    value = int((0.7 + 0.3 * (label % 2)) * 255)
    red, green, blue = colorsys.hsv_to_rgb(hue / 180, saturation / 255, value / 255)
    return round(red * 255), round(green * 255), round(blue * 255)


def synonyms(name: str) -> tuple[str, ...]:
    """Other names of the same class in other palettes: `sofa` gives `couch`."""
    return _all_synonyms().get(_plain(name), ())


@cache
def _all_synonyms() -> dict[str, tuple[str, ...]]:
    groups = [tuple(_plain(word) for word in line.split(",")) for line in palette_data.SYNONYMS.strip().splitlines()]
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


def _entries(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(";"))


def _names_and_colours(text: str) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    pairs = [entry.rsplit(" ", 1) for entry in _entries(text)]
    return tuple(name for name, _ in pairs), tuple(parse_colour(digits) for _, digits in pairs)


def _plain(name: str) -> str:
    """The name without what does not matter. NFKC: macOS writes accents apart, and files may begin with a byte order mark."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name.replace("\ufeff", "")).strip().casefold())


def _free_colour(taken: tuple[Colour, ...]) -> Colour:
    """The first VOC colour at a distance of at least 48 from every taken one; with many classes, the farthest one."""
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
