"""CA2-SIS on nodes: loads its weights into a host ModelPatcher, encodes images and maps of any size, generates images from codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...ca2sis import checkpoint, codes
from ...ca2sis.codes import GROUPS, VOID, Shape, ShapeMode, Style
from ...ca2sis.labels import BY_NAME, ORDERS, remap_table
from ...ca2sis.model import Config, Generator
from ...semantic.masks import present_names
from ...semantic.palettes import AUTOMATIC_NAME, Palette, named_palette
from ...semantic.remap import match_name
from ...semantic.semantic_map import SemanticMap
from .. import folders, networks, notices
from ..inputs import check_choice, check_image, check_integer, check_number, check_text

FOLDER = "ca2sis"
LINK = "https://github.com/TFonta/CA2SIS (latest_net_G.pth; for research use only)"
LOAD, STYLE, SHAPE, MIX, EDIT, DRAW, SAMPLE = (
    "Load CA2-SIS", "CA2-SIS Encode Style", "CA2-SIS Encode Shape", "CA2-SIS Mix Styles", "CA2-SIS Edit Shape", "CA2-SIS Generate",
    "CA2-SIS Sample Style",
)  # fmt: skip
NO_GROUP = "none"
ADE20K_CLASSES = 151


@dataclass(frozen=True, eq=False)
class LoadedCA2SIS:
    """A generator that the host loads and offloads."""

    patcher: Any
    labels: tuple[str, ...]
    file: str

    @property
    def config(self) -> Config:
        return self.patcher.model.config

    def ready(self) -> Generator:
        """The network, loaded by the host onto its compute device."""
        comfy.model_management.load_model_gpu(self.patcher)
        return self.patcher.model

    def here(self, tensor: Tensor) -> Tensor:
        """The tensor on the compute device, float32."""
        return tensor.to(self.patcher.load_device, torch.float32)


@dataclass(frozen=True, eq=False)
class EncodedShape:
    """Shape codes and the mask M_sw [b, k, h, w] they were encoded from: an edit changes the mask and encodes it again."""

    codes: Shape
    mask: Tensor
    loaded: LoadedCA2SIS


def load(file: str, final_activation: checkpoint.FinalActivation = "auto") -> LoadedCA2SIS:
    """Load a file of models/ca2sis; the architecture is detected from the weights.

    Raises:
        ValueError: no such file, or no complete generator; names what is wrong and what to do.
    """
    check_choice(final_activation, LOAD, "final_activation", checkpoint.FINAL_ACTIVATIONS)
    path = folders.path(FOLDER, file, LOAD, LINK)
    found = checkpoint.load(path, final_activation)
    labels = found.labels
    if len(labels) == ADE20K_CLASSES and labels == codes.class_names(ADE20K_CLASSES):
        labels = (*named_palette("ADE20K").names, "don't care")
    return LoadedCA2SIS(networks.load(Generator, found.weights, found.config), labels, file)


def masks_of(loaded: LoadedCA2SIS, semantic_map: SemanticMap, order: str, node: str) -> Tensor:
    """M, [b, k, h, w], in the size of the weights.

    Raises:
        ValueError: other proportions, or classes that these weights do not have.
    """
    own_h, own_w = loaded.config.image_size
    _check_proportions(semantic_map.size, (own_h, own_w), "the map", node)
    table = torch.tensor([*_table(loaded, semantic_map, order, node)], dtype=torch.long)
    labels = F.interpolate(semantic_map.labels[:, None].float(), (own_h, own_w), mode="nearest")[:, 0].long()
    dont_care = len(loaded.labels) == ADE20K_CLASSES
    return codes.one_hot(table[labels], len(loaded.labels), dont_care=dont_care)


def encode_style(loaded: LoadedCA2SIS, image: Tensor, semantic_map: SemanticMap, order: str = BY_NAME) -> Style:
    """S of images [b, h, w, 3] in 0..1 under their maps. Both are resized to the size of the weights.

    Raises:
        ValueError: image and map of different proportions, batches that do not fit, NaN in the image, unknown classes.
    """
    image = check_image(image, STYLE)
    own = loaded.config.image_size
    _check_proportions((image.shape[1], image.shape[2]), own, "the image", STYLE)
    mask = masks_of(loaded, semantic_map, order, STYLE)
    if len(image) != len(mask) and 1 not in (len(image), len(mask)):
        raise ValueError(f"{STYLE}: {len(image)} images and {len(mask)} maps: give the same number, or 1 for all.")
    pixels = F.interpolate(image.movedim(-1, 1), own, mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    with torch.no_grad():
        found = loaded.ready().encode_style(loaded.here(pixels), loaded.here(mask)).cpu()
    return Style(found, codes.present_classes(mask).expand(len(found), -1), loaded.labels)


def encode_shape(loaded: LoadedCA2SIS, semantic_map: SemanticMap, order: str = BY_NAME) -> EncodedShape:
    """z of maps of any size; see `masks_of` for what is refused."""
    return _shape_of(loaded, masks_of(loaded, semantic_map, order, SHAPE))


def mix_styles(base: Style, donor: Style, classes: str, group: str, strength: float, if_absent: Literal["keep", "use"]) -> Style:
    """The base with the donor's style in some classes; warns about those that the donor does not have.

    Raises:
        ValueError: unknown classes, none at all, codes of different weights.
    """
    strength = check_number(strength, MIX, "strength", 0.0, 1.0)
    chosen = _chosen(classes, group, base.labels, MIX)
    lacking = [donor.labels[c] for c in chosen if not bool(donor.present[:, c].any())]
    if lacking and if_absent == "keep":
        notices.warn_user(
            f"{MIX}: the donor has no {', '.join(lacking)}, so the base's code is kept. Choose another donor, or if_absent: use anyway."
        )
    return codes.mix_styles(base, donor, chosen, strength, if_absent)


def edit_shape(
    base: EncodedShape, donor: EncodedShape | None, classes: str, group: str, mode: ShapeMode, strength: float
) -> EncodedShape:
    """The base with the donor's shape of some classes; below strength 1 the codes are interpolated.

    Raises:
        ValueError: class 0 where it has no shape, no donor where one is needed, codes of different weights.
    """
    strength = check_number(strength, EDIT, "strength", 0.0, 1.0)
    chosen = _chosen(classes, group, base.codes.labels, EDIT)
    if donor is not None and donor.codes.labels != base.codes.labels:
        raise ValueError(f"{EDIT}: base and donor were encoded with different weights. Encode both with the same.")
    mask = codes.edit_shape(base.mask, None if donor is None else donor.mask, chosen, mode, base.loaded.config.has_background)
    if mode == "swap if both" and donor is not None:
        both = codes.present_classes(base.mask) & codes.present_classes(donor.mask)
        lacking = [base.codes.labels[c] for c in chosen if not bool(both[:, c].any())]
        if lacking:
            notices.warn_user(
                f"{EDIT}: base and donor do not both have {', '.join(lacking)}; these classes are not changed. Use the mode replace to change them."
            )
    edited = _shape_of(base.loaded, mask)
    if strength >= 1.0:
        return edited
    return EncodedShape(codes.mix_shapes(base.codes, edited.codes, strength=strength), mask, base.loaded)


def generate(loaded: LoadedCA2SIS, shape: EncodedShape, style: Style) -> Tensor:
    """IMAGE [b, h, w, 3] in 0..1; a batch of 1 is used for all of the other.

    Raises:
        ValueError: codes of other weights.
    """
    _check_same(loaded, shape.codes.labels, style.labels)
    if len(shape.codes) != len(style) and 1 not in (len(shape.codes), len(style)):
        raise ValueError(f"{DRAW}: {len(shape.codes)} shapes and {len(style)} styles: give the same number, or 1 for all.")
    with torch.no_grad():
        drawn = loaded.ready().decode(loaded.here(shape.codes.codes), loaded.here(style.codes))
    return ((drawn.float().cpu() + 1) / 2).clamp(0, 1).movedim(1, -1)


def sample_style(loaded: LoadedCA2SIS, shape: EncodedShape, seed: int, count: int) -> Style:
    """Random styles for the classes that a shape has.

    Raises:
        ValueError: weights without a noise network, a shape of other weights.
    """
    _check_same(loaded, shape.codes.labels, loaded.labels)
    seed = check_integer(seed, SAMPLE, "seed", 0, 2**64 - 1)  # what torch's generators take
    count = check_integer(count, SAMPLE, "count", 1, 64)
    present = shape.codes.present if len(shape.codes) == count else shape.codes.present[:1].expand(count, -1)
    noise = torch.randn(count, max(1, loaded.config.noise_dim), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = loaded.ready().sample_style(loaded.here(noise), present.to(loaded.patcher.load_device))
    return Style(found.float().cpu(), present, loaded.labels)


def attention_shares(loaded: LoadedCA2SIS, shape: EncodedShape, style: Style) -> Tensor:
    """The share of each class's code in the attention of each pixel of the first image, mean over the levels: [k, h, w], sums to 1 over k."""
    _check_same(loaded, shape.codes.labels, style.labels)
    with torch.no_grad():
        maps = loaded.ready().attention_maps(loaded.here(shape.codes.codes[:1]), loaded.here(style.codes[:1]))
    return torch.stack([F.interpolate(m.float().cpu(), loaded.config.image_size, mode="bilinear")[0] for m in maps]).mean(dim=0)


def _shape_of(loaded: LoadedCA2SIS, mask: Tensor) -> EncodedShape:
    with torch.no_grad():
        found = loaded.ready().encode_shape(loaded.here(mask)).cpu()
    return EncodedShape(Shape(found, codes.present_classes(mask), loaded.labels), mask, loaded)


def _table(loaded: LoadedCA2SIS, semantic_map: SemanticMap, order: str, node: str) -> list[int]:
    """The weights' label of each of the map's 256 labels. Raises ValueError for classes that the map shows and the weights lack."""
    source = semantic_map.palette
    order = check_choice(order, node, "label_order", (BY_NAME, *ORDERS))
    table = [VOID] * 256
    if order != BY_NAME:
        if source.name == AUTOMATIC_NAME:
            raise ValueError(
                f"{node}: label_order is {order!r}, but the map's palette is {AUTOMATIC_NAME!r}, whose numbers are ranks by area and not those "
                "of a face parser. Load the parser's map with the palette 'CelebAMask-HQ' and reading 'class numbers', or set label_order to "
                f"{BY_NAME!r}."
            )
        names = ORDERS[order]
        for label, found in enumerate(remap_table(names, loaded.labels)):
            table[label] = found
    elif loaded.labels == codes.class_names(len(loaded.labels)) and len(loaded.labels) != len(codes.CELEBAMASK_HQ):
        names = source.names  # weights without names: by number
        if len(names) != len(loaded.labels):
            raise ValueError(
                f"{node}: these weights ({loaded.file}) have {len(loaded.labels)} classes without names, the map's palette "
                f"{source.name!r} {len(names)}. Make the map with the palette of the weights' data set."
            )
        table[: len(names)] = range(len(names))
    else:
        names = source.names
        target = Palette(loaded.file, loaded.labels, tuple((0, 0, 0) for _ in loaded.labels))
        for label, name in enumerate(names):
            found_label = match_name(name, target)
            table[label] = VOID if found_label is None else found_label
    shown = semantic_map.counts().sum(dim=0)
    unknown = [source.class_name(label) for label in range(VOID) if shown[label] and table[label] == VOID]
    if unknown:
        few = ", ".join(unknown[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
        raise ValueError(
            f"{node}: the map shows {few} (palette {source.name!r}), which these weights ({loaded.file}) do not support. Supported classes: "
            f"{', '.join(loaded.labels[:24])}. Use Semantic Map Remap to map those classes to supported ones or to void, or load weights trained on "
            f"this data set{'; for ADE20K none were published' if source.name == 'ADE20K' else ''}."
        )
    if not any(shown[label] for label in range(VOID)):
        raise ValueError(
            f"{node}: the map is void everywhere ({present_names(semantic_map)}). Check the palette it was made with."
        )
    return table


def _check_proportions(size: tuple[int, int], own: tuple[int, int], what: str, node: str) -> None:
    (h, w), (own_h, own_w) = size, own
    if not 0.98 < (w / h) / (own_w / own_h) < 1.02:
        raise ValueError(
            f"{node}: {what} is {w}x{h}, but these weights draw {own_w}x{own_h}: crop or pad image and map to these proportions first. "
            "Any size will do then."
        )


def _check_same(loaded: LoadedCA2SIS, *labels: Sequence[str]) -> None:
    if any(tuple(found) != loaded.labels for found in labels):
        raise ValueError(f"{DRAW}: these codes were made with weights of other classes. Encode them again with {loaded.file!r}.")


def _chosen(classes: str, group: str, labels: tuple[str, ...], node: str) -> tuple[int, ...]:
    group = check_choice(group, node, "group", (NO_GROUP, *GROUPS))
    names = [part for part in check_text(classes, node, "classes").replace("\n", ",").split(",") if part.strip()]
    if group != NO_GROUP:
        if labels != codes.CELEBAMASK_HQ:
            raise ValueError(
                f"{node}: the groups are CelebAMask-HQ's, these weights have {', '.join(labels[:24])}. Name them in classes."
            )
        return tuple(sorted({*GROUPS[group], *codes.class_indices(names, labels)}))
    if not names:
        raise ValueError(f"{node}: no class is chosen. Name at least one in classes: {', '.join(labels[:24])}.")
    return codes.class_indices(names, labels)
