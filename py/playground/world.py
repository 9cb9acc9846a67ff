"""The vocabulary of the drawn world: its classes, its colours and every word a caption may use.

Everything here is data. The scenes (`objects.py`, `streets.py`, `portraits.py`) draw with it, the tokenizer counts its words,
the detector names its classes. Orders are frozen: weights are trained on them, so append, never insert.
"""

from __future__ import annotations

from ..semantic.palette_data import PLAYGROUND

Colour = tuple[int, int, int]

#: name -> the colour that draws the class in a semantic map. The position in this dict is the label.
CLASSES: dict[str, Colour] = PLAYGROUND
CLASS_NAMES: tuple[str, ...] = tuple(CLASSES)
LABEL: dict[str, int] = {name: label for label, name in enumerate(CLASSES)}

OBJECTS: tuple[str, ...] = ("ball", "box", "star", "heart", "fish", "cup", "moon", "ring")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checked")

#: The colours of objects, houses, cars and shirts: far apart in CIELAB, so that an image can be judged by the nearest one.
COLOURS: dict[str, Colour] = {
    "red": (214, 38, 38),
    "orange": (245, 138, 30),
    "yellow": (250, 218, 60),
    "green": (48, 160, 72),
    "blue": (45, 92, 212),
    "purple": (138, 58, 172),
    "white": (246, 246, 244),
    "black": (38, 38, 42),
}
BACKDROPS: dict[str, Colour] = {
    "gray": (158, 160, 164),
    "beige": (224, 205, 172),
    "mint": (176, 224, 196),
    "lilac": (204, 184, 226),
    "teal": (92, 150, 158),
}

SKIES: dict[str, tuple[Colour, Colour]] = {  # top, horizon
    "day": ((96, 164, 232), (188, 220, 244)),
    "sunset": ((232, 120, 84), (252, 204, 132)),
    "night": ((16, 20, 58), (44, 52, 104)),
    "fog": ((162, 168, 176), (204, 208, 212)),
}
GRASSES: dict[str, Colour] = {"summer": (104, 172, 76), "autumn": (196, 160, 76), "winter": (232, 238, 244)}
TREES: dict[str, Colour] = {"summer": (44, 122, 52), "autumn": (214, 104, 36), "winter": (176, 200, 208)}
ROADS: dict[str, Colour] = {"gray": (112, 112, 118), "brown": (150, 112, 78), "black": (56, 56, 62)}

SKINS: dict[str, Colour] = {"pale": (250, 220, 196), "tan": (226, 176, 130), "brown": (160, 106, 70), "dark": (96, 62, 44)}
HAIRS: dict[str, Colour] = {
    "black": (34, 30, 34),
    "brown": (106, 66, 36),
    "blond": (236, 200, 104),
    "ginger": (208, 92, 36),
    "gray": (176, 178, 184),
    "blue": (60, 110, 214),
    "green": (60, 160, 96),
    "purple": (140, 70, 176),
}
HAIR_STYLES: tuple[str, ...] = ("short", "long", "curly", "spiky", "bun")
EYES: dict[str, Colour] = {"blue": (52, 120, 216), "green": (56, 160, 84), "brown": (120, 72, 32), "black": (30, 28, 30)}
MOUTHS: dict[str, Colour] = {"red": (200, 40, 56), "pink": (228, 120, 140), "brown": (136, 66, 56)}
PLACES: tuple[str, ...] = ("park", "beach", "city", "mountains", "room")

#: Part of the frozen vocabulary of the shipped text encoder: not to be reworded.
_GLUE = (
    "by "
    "a an the and on in of with at by two three no person people portrait face street background place "
    "house houses tree trees car cars road roof eyes hair shirt mouth glasses sky grass object objects picture drawing light window"
)
#: Every word the text encoder knows, sorted once and then frozen by the shipped weights.
WORDS: tuple[str, ...] = tuple(
    sorted(
        set(_GLUE.split())
        | set(OBJECTS)
        | set(TEXTURES)
        | set(COLOURS)
        | set(BACKDROPS)
        | set(SKIES)
        | set(GRASSES)
        | set(ROADS)
        | set(SKINS)
        | set(HAIRS)
        | set(HAIR_STYLES)
        | set(EYES)
        | set(MOUTHS)
        | set(PLACES)
        | set(CLASS_NAMES)
    )
)


def article(words: str) -> str:
    """`a red ball`, `an orange ball`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def join(parts: list[str]) -> str:
    """`x`, `x and y`, `x, y and z`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
