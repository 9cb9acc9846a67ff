"""What the operations on a 2048 x 1024 semantic map cost, in processor time on one thread, and against naive forms of the same.

    python -P benchmarks/semantic_maps.py [--quick]

Naive: the full matrix of distances between pixels and palette (in strips, so that it fits into memory); one comparison a class over the
whole map for masks, remaps and images. Processor time, so that other programs do not count.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

if "pack" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest  # noqa: F401  puts the pack under its name

from pack.benchmarks.measure import at_most, milliseconds, one_thread, ratio, show
from pack.py.semantic.masks import mask_of_classes, paint_masks
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.preview import coverage_text, draw_legend
from pack.py.semantic.remap import remap
from pack.py.semantic.semantic_map import SemanticMap
from pack.py.semantic.snapping import colours_of_image, snap_to_palette

HEIGHT, WIDTH = 1024, 2048
MOST_MS = 1000.0


def figures(quick: bool) -> Iterator[dict]:
    with one_thread():
        for name in ("Cityscapes / BDD100K", "ADE20K"):
            yield from _figures(name, 1 if quick else 5)


def _figures(name: str, repeats: int) -> Iterator[dict]:
    palette = named_palette(name)
    semantic_map = _blocks(palette, seed=0)
    exact = semantic_map.to_image()
    noisy = _jpeg(exact)
    names = [palette.names[label] for label in semantic_map.labels.unique().tolist()]
    masks = torch.cat([mask_of_classes(semantic_map, word)[:1] for word in names[:12]])
    three = ", ".join(names[:3])
    swap = f"{names[0]} -> {names[1]}\n{names[1]} -> {names[0]}"
    operations: list[tuple[str, Callable, Callable | None]] = [
        ("from an exact image", lambda: snap_to_palette(exact, palette), lambda: _naive_labels(exact, palette)),
        ("from a JPEG", lambda: snap_to_palette(noisy, palette, clean_edges=False), lambda: _naive_labels(noisy, palette)),
        ("from a JPEG, edges cleaned", lambda: snap_to_palette(noisy, palette), None),
        ("palette of a JPEG", lambda: colours_of_image(noisy), None),
        ("from 12 masks", lambda: paint_masks(None, masks, ", ".join(names[:12]), palette=palette), None),
        ("remap", lambda: remap(semantic_map, swap), lambda: _naive_remap(semantic_map)),
        ("to mask, 3 classes", lambda: mask_of_classes(semantic_map, three), None),
        ("plain image", semantic_map.to_image, lambda: _naive_picture(semantic_map)),
        ("legend and coverage", lambda: (draw_legend(semantic_map), coverage_text(semantic_map)), None),
    ]
    for what, ours, naive in operations:
        cost = milliseconds(ours, repeats)
        yield at_most(f"{name}: {what}", cost, "ms", MOST_MS)
        if naive is not None:
            yield ratio(f"{name}: {what}, naive form / ours", milliseconds(naive, 1) / cost)


def _blocks(palette, seed: int) -> SemanticMap:
    rng = np.random.default_rng(seed)
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for _ in range(120):
        y, x = rng.integers(0, HEIGHT - 16), rng.integers(0, WIDTH - 16)
        labels[y : y + rng.integers(16, 300), x : x + rng.integers(16, 500)] = rng.integers(len(palette.names))
    return SemanticMap(torch.from_numpy(labels)[None], palette)


def _jpeg(image: torch.Tensor) -> torch.Tensor:
    data = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(data, "JPEG", quality=75)
    return torch.from_numpy(np.array(Image.open(data)))[None] / 255


def _naive_labels(image: torch.Tensor, palette) -> torch.Tensor:
    colours = torch.tensor([*palette.colours, palette.void_colour]) / 255
    strips = []
    for strip in image[0].split(64):
        distance, label = (strip[:, :, None] - colours).square().sum(dim=-1).min(dim=-1)
        strips.append(label.masked_fill((distance > (32 / 255) ** 2) | (label == len(palette.names)), VOID))
    return torch.cat(strips)


def _naive_remap(semantic_map: SemanticMap) -> torch.Tensor:
    labels = semantic_map.labels.long()
    result = torch.full_like(labels, VOID)
    for label in range(len(semantic_map.names)):
        result[labels == label] = label
    return result


def _naive_picture(semantic_map: SemanticMap) -> torch.Tensor:
    picture = torch.zeros(*semantic_map.labels.shape, 3)
    for label, colour in enumerate(semantic_map.colours):
        picture[semantic_map.labels == label] = torch.tensor(colour) / 255
    return picture


if __name__ == "__main__":
    show(figures("--quick" in sys.argv[1:]))
