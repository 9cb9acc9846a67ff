"""CA2-SIS's codes as plain data: styles mixed by class, masks and shape codes edited by class, what is absent.

Nothing here needs a network and nothing is written in place: every edit returns new codes. Batches: equal, or 1 for all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

#: CelebAMask-HQ's classes in label order; later ones are painted over earlier ones.
CELEBAMASK_HQ = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair",
    "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
#: Groups of CelebAMask-HQ's classes that are edited together, as the authors' scripts name them.
GROUPS: dict[str, tuple[int, ...]] = {
    "eyes": (4, 5),
    "expression": (10, 11, 12),
    "hair": (13,),
    "eyebrows": (6, 7),
    "eyes-brows": (4, 5, 6, 7),
    "skin": (1, 2),
    "nose": (2,),
    "background": (0,),
    "makeup": (5, 12),
}
#: The label of a pixel without a class.
VOID = 255

ShapeMode = Literal["swap if both", "replace", "add", "remove"]
SHAPE_MODES: tuple[ShapeMode, ...] = ("swap if both", "replace", "add", "remove")


@dataclass(frozen=True, eq=False)
class Style:
    """How each class looks.

    Args:
        codes: S, [b, k, code_dim].
        present: [b, k] bool, whether the row was read from pixels (else it holds only what the weights give an absent class).
        labels: k names.
    """

    codes: Tensor
    present: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.present.shape != self.codes.shape[:2] or len(self.labels) != self.codes.shape[1]:
            raise ValueError(
                f"CA2-SIS: style codes {list(self.codes.shape)} with presence {list(self.present.shape)} and {len(self.labels)} names; "
                "they must be [b, k, c], [b, k] and k."
            )

    def __len__(self) -> int:
        return self.codes.shape[0]

    def rows(self, pictures: Sequence[int]) -> Style:
        """The codes of these images, in this order."""
        return replace(self, codes=self.codes[list(pictures)], present=self.present[list(pictures)])


@dataclass(frozen=True, eq=False)
class Shape:
    """Where each class is.

    Args:
        codes: z, [b, k', e]. k' is k, or k - 1 where class 0 has no code.
        present: [b, k] bool, which classes the mask had.
        labels: k names.
    """

    codes: Tensor
    present: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        classes = len(self.labels)
        if (
            self.codes.ndim != 3
            or self.present.shape != (len(self.codes), classes)
            or self.codes.shape[1] not in (classes, classes - 1)
        ):
            raise ValueError(
                f"CA2-SIS: shape codes {list(self.codes.shape)} with presence {list(self.present.shape)} and {classes} names; "
                "they must be [b, k or k - 1, e], [b, k] and k."
            )

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def has_background(self) -> bool:
        """Whether class 0 has a code."""
        return self.codes.shape[1] == len(self.labels)

    def rows(self, pictures: Sequence[int]) -> Shape:
        """The codes of these images, in this order."""
        return replace(self, codes=self.codes[list(pictures)], present=self.present[list(pictures)])


def class_names(classes: int) -> tuple[str, ...]:
    """Names for k classes: CelebAMask-HQ's for 19, numbers for any other."""
    return CELEBAMASK_HQ if classes == len(CELEBAMASK_HQ) else tuple(f"class {i}" for i in range(classes))


def class_indices(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Numbers of classes that are given by name, by the name of a group of CelebAMask-HQ, or by number; sorted, each once.

    Raises:
        ValueError: a name that is neither.
    """
    known: dict[str, tuple[int, ...]] = {label: (i,) for i, label in enumerate(labels)}
    if tuple(labels) == CELEBAMASK_HQ:
        known = {**GROUPS, **known}  # "hair", "skin" and "nose" are classes first; the group skin is skin and nose
    found: set[int] = set()
    for name in names:
        text = name.strip()
        if text in known:
            found.update(known[text])
        elif text.isdecimal() and int(text) < len(labels):
            found.add(int(text))
        else:
            raise ValueError(
                f"CA2-SIS: no class is called {text!r}. There are: {', '.join(known)}, or a number up to {len(labels) - 1}."
            )
    return tuple(sorted(found))


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32, dont_care: bool = False) -> Tensor:
    """M, [b, k, h, w], from labels [b, h, w]. A void pixel (255) belongs to no class, or to the last one with `dont_care`.

    Raises:
        ValueError: labels that the weights do not have.
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(
            f"CA2-SIS: labels are {labels.dtype} of shape {list(labels.shape)}; give whole numbers [batch, height, width]."
        )
    labels = labels.long()
    void = labels == VOID
    if dont_care:
        labels, void = torch.where(void, classes - 1, labels), torch.zeros_like(void)
    wrong = labels[~void & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        unknown = wrong.unique().tolist()
        shown = ", ".join(map(str, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
        raise ValueError(
            f"CA2-SIS: the map has labels {shown}, these weights know 0..{classes - 1} ({VOID} is void). "
            "Remap the map to the classes of the weights, or load weights for this data set."
        )
    # A void pixel takes a channel too many, which is then dropped.
    index = torch.where(void, classes, labels)[:, None]
    mask = torch.zeros(labels.shape[0], classes + 1, *labels.shape[1:], dtype=dtype, device=labels.device)
    return mask.scatter_(1, index, 1.0)[:, :classes]


def present_classes(mask: Tensor) -> Tensor:
    """[b, k] bool: which classes have pixels in M [b, k, h, w]."""
    return (mask != 0).flatten(2).any(dim=-1)


def mix_styles(
    base: Style, donor: Style, classes: Collection[int], strength: float = 1.0, if_absent: Literal["keep", "use"] = "keep"
) -> Style:
    """S_p <- S_p + strength (S'_p - S_p) for the classes p; every other row stays as it was, bit for bit.

    Args:
        classes: whose style is taken.
        strength: 0 the base's, 1 the donor's.
        if_absent: where the donor has no pixels of a class: keep the base's row, or use what the weights give an absent class.

    Raises:
        ValueError: codes of different weights, batches that do not fit, unknown classes.
    """
    b = _together(base, donor, "style")
    taken = _chosen(classes, base.labels, base.codes.device).expand(b, -1)
    if if_absent == "keep":
        taken = taken & donor.present
    codes = torch.where(taken[..., None], torch.lerp(base.codes, donor.codes.to(base.codes), strength), base.codes)
    if strength == 0:
        return replace(base, codes=codes, present=base.present.expand(b, -1))
    seen = donor.present if strength == 1 else base.present | donor.present
    return replace(base, codes=codes, present=torch.where(taken, seen, base.present))


def mix_shapes(base: Shape, donor: Shape, classes: Collection[int] | None = None, strength: float = 1.0) -> Shape:
    """z_p <- (1 - strength) z_p + strength z'_p for the classes p, or for all if `classes` is None.

    Raises:
        ValueError: class 0 where it has no code, codes of different weights, batches that do not fit, unknown classes.
    """
    b = _together(base, donor, "shape")
    first = 0 if base.has_background else 1
    wanted = range(first, len(base.labels)) if classes is None else classes
    refuse_background(wanted, base.has_background)
    chosen = _chosen(wanted, base.labels, base.codes.device)
    mixed = torch.lerp(base.codes, donor.codes.to(base.codes), strength)
    codes = torch.where(chosen[:, first:, None], mixed, base.codes)
    if strength == 0:
        return replace(base, codes=codes, present=base.present.expand(b, -1))
    seen = donor.present if strength == 1 else base.present | donor.present
    return replace(base, codes=codes, present=torch.where(chosen, seen, base.present))


def edit_shape(
    base: Tensor, donor: Tensor | None, classes: Collection[int], mode: ShapeMode = "swap if both", has_background: bool = False
) -> Tensor:
    """The mask that drives the shape, with some classes' channels taken from another one. Nothing is repaired afterwards.

    Args:
        base, donor: M, [b, k, h, w]. The donor is not needed to remove.
        classes: whose channels.
        mode: "swap if both": the donor's channel where both have the class (the authors' rule); "replace": the donor's, even an
            empty one; "add": pixels of either; "remove": none.
        has_background: whether class 0 has a shape code in these weights (Config.has_background).

    Returns:
        [b, k, h, w]; channels may overlap or leave holes, and must: the generator fills them in.

    Raises:
        ValueError: class 0 without a code, masks of different sizes or classes, an unknown mode, no donor.
    """
    if mode not in SHAPE_MODES:
        raise ValueError(f"CA2-SIS: no shape edit is called {mode!r}; there are {', '.join(SHAPE_MODES)}.")
    refuse_background(classes, has_background)
    chosen = _chosen(classes, class_names(base.shape[1]), base.device)[:, :, None, None]
    if mode == "remove":
        return torch.where(chosen, torch.zeros_like(base), base)
    if donor is None:
        raise ValueError(f"CA2-SIS: the shape edit {mode!r} takes a class from another map: connect one.")
    if base.shape[1:] != donor.shape[1:]:
        sizes = (f"{m.shape[1]} classes at {m.shape[-1]}x{m.shape[-2]}" for m in (base, donor))
        raise ValueError(
            f"CA2-SIS: the maps differ: {' and '.join(sizes)}. Give both the same classes and size (nearest neighbour)."
        )
    _batch(len(base), len(donor), "maps")
    donor = donor.to(base)
    if mode == "add":
        return torch.where(chosen, torch.maximum(base, donor), base)
    if mode == "swap if both":
        chosen = chosen & (present_classes(base) & present_classes(donor))[:, :, None, None]
    return torch.where(chosen, donor, base)


def refuse_background(classes: Collection[int], has_background: bool) -> None:
    """Class 0 has no shape code in most weights.

    Raises:
        ValueError: it is asked for all the same.
    """
    if 0 in classes and not has_background:
        raise ValueError(
            "CA2-SIS: class 0 (background) has no shape in these weights: it is what the other classes leave. Take it off the classes; "
            "its style can be edited."
        )


def _chosen(classes: Collection[int], labels: Sequence[str], device: torch.device) -> Tensor:
    """[1, k] bool."""
    wrong = [c for c in classes if not 0 <= c < len(labels)]
    if wrong:
        raise ValueError(f"CA2-SIS: there is no class {wrong[0]}; these weights know 0..{len(labels) - 1}.")
    chosen = torch.zeros(1, len(labels), dtype=torch.bool)
    chosen[:, list(classes)] = True
    return chosen.to(device)


def _together(base: Style | Shape, donor: Style | Shape, what: str) -> int:
    if base.codes.shape[1:] != donor.codes.shape[1:] or base.labels != donor.labels:
        found = (f"{c.codes.shape[1]} x {c.codes.shape[2]}" for c in (base, donor))
        raise ValueError(
            f"CA2-SIS: the {what} codes come from different weights ({' and '.join(found)}). Encode both with the same."
        )
    return _batch(len(base), len(donor), f"{what} codes")


def _batch(base: int, donor: int, what: str) -> int:
    if base != donor and 1 not in (base, donor):
        raise ValueError(f"CA2-SIS: {base} and {donor} {what}: give the same number, or 1 for all.")
    return max(base, donor)
