"""The class names of a segmentation model as a palette: one of the data sets' where the classes are the same, else a new one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .palettes import MAX_CLASSES, VOID, Palette, named_palette, own_palette, synonyms
from .remap import match_name

#: Data sets whose class order models have, the likelier first.
DATA_SETS = (
    "ADE20K", "Cityscapes / BDD100K", "COCO panoptic", "CelebAMask-HQ", "BiSeNet face parsing", "Pascal VOC", "COCO-Stuff 171",
    "COCO-Stuff", "Cityscapes label IDs", "playground",
)  # fmt: skip
#: The share of classes whose name must be the data set's at the same number.
_SAME = 0.6
_UNNAMED = re.compile(r"(LABEL|class)[_ ]?\d+|\d+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ModelClasses:
    """A model's classes in a palette: `labels` [n] uint8, the palette's label of each class, VOID for those it lacks (`unmatched`)."""

    palette: Palette
    labels: np.ndarray
    unmatched: tuple[str, ...] = ()
    unnamed: bool = False


def classes_in_palette(names: Sequence[str], palette: Palette | None = None) -> ModelClasses:
    """The classes of a model by their names.

    Args:
        names: in the order of the model's outputs; of synonyms after a comma the first counts.
        palette: convert to this palette: by number where the model has its classes in its order or no names, else by name. None: the data
            set with the same classes, or a new palette with the model's names.

    Raises:
        ValueError: more classes than a map can have, or a model without names whose classes the palette cannot hold.
    """
    names = [re.split(r"[,;]", name)[0].strip() or f"class {number}" for number, name in enumerate(names)]
    if len(names) > MAX_CLASSES:
        raise ValueError(f"the model has {len(names)} classes; a semantic map holds at most {MAX_CLASSES}.")
    unnamed = all(_UNNAMED.fullmatch(name) for name in names)
    in_order = np.arange(len(names), dtype=np.uint8)
    if palette is not None:
        if unnamed and len(names) > len(palette.names):
            raise ValueError(
                f"the model has {len(names)} classes without names, the palette {palette.name!r} only {len(palette.names)}. "
                "Choose the palette of the data set that the model was trained on."
            )
        if unnamed or _is_same(names, palette):
            return ModelClasses(palette, in_order, unnamed=unnamed)
        return _by_name(names, palette)
    if not unnamed:
        for name in DATA_SETS:
            if _is_same(names, named_palette(name)):
                return ModelClasses(named_palette(name), in_order)
        for name in DATA_SETS:
            found = _by_name(names, named_palette(name))
            if len(names) > 2 and not found.unmatched and len(set(found.labels.tolist())) == len(names):
                return found
    own = own_palette()
    for number, name in enumerate(names):
        own = own.with_class(name if own.find(name) is None else f"{name} {number}")
    return ModelClasses(own, in_order, unnamed=unnamed)


def _is_same(names: Sequence[str], palette: Palette) -> bool:
    """Whether most classes have their name or a synonym at the same number of the palette."""
    if len(names) != len(palette.names):
        return False
    same = sum(any(palette.find(each) == label for each in (name, *synonyms(name))) for label, name in enumerate(names))
    return same >= _SAME * len(names)


def _by_name(names: Sequence[str], palette: Palette) -> ModelClasses:
    labels = [match_name(name, palette) for name in names]
    table = np.array([VOID if label is None else label for label in labels], dtype=np.uint8)
    lacking = tuple(name for name, label in zip(names, labels) if label is None and palette.find(name) != VOID)
    return ModelClasses(palette, table, lacking)
