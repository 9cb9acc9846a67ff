"""Reference images by region: which of an edit model's reference images every image cell attends to.

The host appends `reference_latents` of a CONDITIONING to the sequence of tokens of models that are trained for them. A bias on the columns
of those tokens decides who attends to them (`py/joint/bias.py`); no weights and no further model calls are needed.

    w_j(p) = 1 - strength (1 - m_j(p))        m_j: share of the cell p that region j covers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.utils
import node_helpers
import torch
from torch import Tensor

from ...ifadapter.instances import Instance, Instances, check_mask, shorten
from ...ifadapter.regional import Settings, instance_mask
from ...semantic.masks import mask_of_classes
from ...semantic.semantic_map import SemanticMap
from ..grids import Rows, batch_error
from ..inputs import check_image, check_number
from ..joint import families
from ..joint.apply import install
from ..joint.contribution import Contribution
from ..run import SamplingRun
from ..schedule import PercentRange

NODE = "Regional References"
KEY = "reference_latents"  # what the host reads from a CONDITIONING
MULTIPLE = 16  # pixels: sides of reference images are whole patches for every VAE
_EDGES = Settings()


@dataclass(frozen=True, eq=False)
class RegionalReferences(Contribution):
    """References `first`, `first` + 1, ... of the conditioning, each for the cells of one region."""

    first: int = 0
    regions: tuple[Instance, ...] = ()
    strength: float = 1.0

    def before_run(self, run: SamplingRun) -> None:
        super().before_run(run)
        for region in self.regions:
            if region.mask is not None and region.mask.shape[0] not in (1, run.latent_shape[0]):
                raise batch_error(NODE, f"the mask of {shorten(region.phrase)}", region.mask.shape[0], run.latent_shape[0])

    def reference_weights(self, run: SamplingRun, part: Rows) -> tuple[int, Tensor]:
        def make() -> Tensor:
            masks = [instance_mask(region, *part.grid, part.view, _EDGES) * min(1.0, region.strength) for region in self.regions]
            frames = max(mask.shape[0] for mask in masks)
            return torch.stack([mask.expand(frames, *part.grid) for mask in masks], dim=1)

        covered = run.get_or_make((self, "covered", part.grid, part.view), make)
        return self.first, 1 - self.strength * (1 - covered)


def apply(
    model: Any,
    vae: Any,
    positive: Any,
    negative: Any,
    regions: list[Instance],
    strength: float,
    percent: PercentRange,
    megapixels: float,
) -> tuple[Any, Any, Any]:
    """(MODEL, positive, negative) with every region's reference. Nothing given is changed.

    Raises:
        ValueError: before sampling: a MODEL without references, no region, no VAE, or references that cannot be counted.
    """
    families.require_references(model, NODE)
    strength = check_number(strength, NODE, "strength", 0.0, 1.0)
    megapixels = check_number(megapixels, NODE, "megapixels", 0.01, 16.0)
    if not regions:
        raise ValueError(
            f"{NODE}: there is no reference image. Connect instances with a reference on each, or references with masks or a semantic_map."
        )
    if vae is None:
        raise ValueError(f"{NODE}: the VAE input is empty. Connect the VAE of this MODEL.")
    first = _count_references(positive, "positive")
    if negative is not None and _count_references(negative, "negative") != first:
        raise ValueError(
            f"{NODE}: positive has {first} reference images already, negative {_count_references(negative, 'negative')}. Give both the same, or "
            "leave negative empty."
        )
    latents = [_encode(vae, region, megapixels) for region in regions]
    positive = node_helpers.conditioning_set_values(positive, {KEY: latents}, append=True)
    if negative is not None:
        negative = node_helpers.conditioning_set_values(negative, {KEY: latents}, append=True)
    if strength > 0.0 and not percent.empty:
        model = install(model, RegionalReferences(NODE, percent, (), first, tuple(regions), strength))
    return model, positive, negative


def find_regions(
    instances: Instances | None, references: Tensor | None, masks: Tensor | None, semantic_map: SemanticMap | None, classes: str
) -> list[Instance]:
    """Every reference image with its region: of instances that have one, and of a batch with masks or classes, in this order.

    Args:
        references: [n, h, w, 3]. masks: [n, h, w]. classes: n lines, each with the classes that use the reference of that line.

    Raises:
        ValueError: numbers of references and regions that differ, an empty region.
    """
    found = [instance for instance in instances or () if instance.reference is not None and instance.strength > 0.0]
    if references is None:
        return found
    count, lines = references.shape[0], [line for line in classes.splitlines() if line.strip()]
    if masks is None and semantic_map is None:
        raise ValueError(
            f"{NODE}: references need regions. Connect masks, one per reference, or a semantic_map and write classes."
        )
    if masks is not None:
        areas = [(f"mask {number}", mask[None]) for number, mask in enumerate(masks.reshape(-1, *masks.shape[-2:]), start=1)]
    else:
        areas = [(line.strip(), mask_of_classes(semantic_map, line)) for line in lines]  # type: ignore[arg-type]
    if len(areas) != count:
        what = "masks" if masks is not None else "lines in classes"
        raise ValueError(
            f"{NODE}: there are {count} references but {len(areas)} {what}. Give one for each reference, in the same order."
        )
    for (name, area), reference in zip(areas, references):
        area = check_mask(area, name)
        found.append(Instance((0.0, 0.0, 1.0, 1.0), name, area, reference=reference[None]))
    return found


def _count_references(conditioning: Any, name: str) -> int:
    counts = {len(values.get(KEY) or ()) for _, values in conditioning}
    if not counts:
        raise ValueError(f"{NODE}: {name} is empty. Connect the output of a text encoder.")
    if len(counts) > 1:
        raise ValueError(
            f"{NODE}: the combined parts of {name} have {' and '.join(map(str, sorted(counts)))} reference images. Give all parts the same."
        )
    return counts.pop()


def _encode(vae: Any, region: Instance, megapixels: float) -> Tensor:
    """The latent of a region's reference, at most so large, with sides that are whole patches."""
    image = check_image(region.reference, NODE, f"the reference of {shorten(region.phrase)}")
    height, width = image.shape[1:3]
    factor = min(1.0, (megapixels * 1e6 / (height * width)) ** 0.5)
    size = [max(MULTIPLE, round(side * factor / MULTIPLE) * MULTIPLE) for side in (width, height)]
    pixels = comfy.utils.common_upscale(image[:1].movedim(-1, 1), *size, "area", "disabled").movedim(1, -1)
    return vae.encode(pixels)
