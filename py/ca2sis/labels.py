"""Which number means which class: CelebAMask-HQ's order, that of face parsers, and tables from one to the other."""

from __future__ import annotations

from collections.abc import Sequence

from .codes import CELEBAMASK_HQ, VOID

BY_NAME = "by name"
#: Orders of the numbers in a face parser's map, by what the menus call them.
ORDERS: dict[str, tuple[str, ...]] = {
    # The order of the data set; parsers that were trained on its labels as they are keep it (such as jonathandinu/face-parsing).
    "CelebAMask-HQ": CELEBAMASK_HQ,
    # BiSeNet trained by zllrunning/face-parsing.PyTorch, and what was made from it: its list of attributes from 1 on.
    "BiSeNet face parsing": (
        "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth", "u_lip",
        "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
    ),
}  # fmt: skip


def remap_table(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """For each label of `source` the label of the same name in `target`, VOID where there is none."""
    places = {name: label for label, name in enumerate(target)}
    return tuple(places.get(name, VOID) for name in source)
