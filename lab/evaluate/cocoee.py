"""Paint by Example's test bench, COCOEE, over a folder of results: region CLIP score, CLIP-FID and quality score, as its tables have them.

The bench has, for each number of twelve digits, `Ref_3500/<n>_ref.png` (exemplar) and `Mask_bbox_3500/<n>_mask.png` (hole); results are
`<n>.png`. "FID" in the paper is the Frechet distance of CLIP ViT-B/32 features, not Inception's, and so is called CLIP-FID here; its other side,
and the Gaussian mixture of the quality score, are real images of a folder (the paper: COCO test2017, 512 pixels, cut square).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...py.evaluation.judges import clip_embedders
from ...py.evaluation.regions import COMPONENTS, mixture_of, quality, region, region_scores
from ...py.evaluation.table import table
from .features import frechet_distance

log = logging.getLogger("exemplary")

SIDE, BATCH = 512, 32
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
Embed = Callable[[Sequence[Tensor]], Tensor]  # images [3, h, w] in 0..1 -> [n, c]


def measure(results: Path, bench: Path, embed: Embed, real: Path | None = None) -> dict[str, object]:
    """The row of one folder of results.

    Raises ValueError naming the folder or file that is missing.
    """
    files = sorted(file for file in results.glob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise ValueError(f"{results} contains no images. Results are named <number of twelve digits>.png.")
    scores, features = [], []
    for batch in _batches(files):
        pictures = [_read(file) for file in batch]
        boxes = [_box(_part(bench, "Mask_bbox_3500", f"{f.stem}_mask.png"), p.shape[-2:]) for f, p in zip(batch, pictures)]
        exemplars = [
            region(e, (0, 0, e.shape[2], e.shape[1]))
            for e in (_read(_part(bench, "Ref_3500", f"{f.stem}_ref.png")) for f in batch)
        ]
        painted = [region(p, box) for p, box in zip(pictures, boxes)]
        scores.append(region_scores(embed(painted), embed(exemplars)))
        features.append(embed(pictures))
    row: dict[str, object] = {"pictures": len(files), "CLIP score": float(torch.cat(scores).mean())}
    if real is not None:
        truth = torch.cat([embed([_square(file) for file in batch]) for batch in _batches(_pictures(real))])
        found = torch.cat(features)
        row |= {"CLIP-FID": frechet_distance(found, truth), "QS": quality(mixture_of(truth), found)}
    return row


def _pictures(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    if len(files) < COMPONENTS:
        raise ValueError(
            f"There are {len(files)} images in {folder}; {COMPONENTS} real images are needed at least, and thousands are better."
        )
    return files


def _batches(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for first in range(0, len(files), BATCH):
        yield files[first : first + BATCH]


def _part(bench: Path, folder: str, name: str) -> Path:
    path = bench / folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing. The bench is the folder that holds Ref_3500 and Mask_bbox_3500.")
    return path


def _read(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255).permute(2, 0, 1)


def _square(path: Path) -> Tensor:
    """The middle of an image, its short side resized to `SIDE`."""
    picture = Image.open(path).convert("RGB")
    scale = SIDE / min(picture.size)
    picture = picture.resize(
        (max(SIDE, round(picture.width * scale)), max(SIDE, round(picture.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
    cut = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))
    return torch.from_numpy(cut.astype(np.float32) / 255).permute(2, 0, 1)


def _box(path: Path, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The rectangle around a mask, in the pixels of an image of (height, width)."""
    found = (
        Image.open(path)
        .convert("L")
        .resize((size[1], size[0]), Image.Resampling.NEAREST)
        .point(lambda v: 255 * (v > 127))
        .getbbox()
    )
    if found is None:
        raise ValueError(f"{path} is empty.")
    return found


def main(arguments: list[str]) -> int:
    """Print the table of some folders of results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="cocoee")
    parser.add_argument("results", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--bench", required=True, type=Path)
    parser.add_argument("--clip", required=True, help="the folder of a CLIP model; papers use ViT-B/32")
    parser.add_argument("--real", type=Path, help="a folder of real images, for CLIP-FID and QS")
    options = parser.parse_args(arguments)
    try:
        embed, rows = clip_embedders(options.clip)[0], []
        for result in options.results:
            name, _, folder = result.rpartition("=")
            rows.append({"name": name or Path(folder).name, **measure(Path(folder), options.bench, embed, options.real)})
    except ValueError as error:
        log.error("%s", error)
        return 1
    log.info("%s", table(rows))
    return 0
