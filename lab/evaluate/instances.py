"""Instance success of folders of generated images, with the layouts they were made from.

`dev.py evaluate --layouts FILE NAME=FOLDER ...` runs `main`. FILE is layout data in COCO's format (`lab.training.layout_data`) whose
file names are those of the results; every folder is a row of the table.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...py.evaluation import judges
from ...py.evaluation.detection import Judge, Outcome, Wanted, find_outcomes
from ...py.evaluation.table import table
from ...py.host import playground
from ...py.host.evaluation.instances import PLAYGROUND, Score, load_named_judge
from ..training.files import IMAGE_ENDINGS
from ..training.images import open_rgb, to_tensor
from ..training.layout_data import LayoutEntry, read_layouts
from .features import clip_score

log = logging.getLogger("exemplary")

#: Images and texts -> embeddings.
Embedders = tuple[Callable[[Sequence[Tensor]], Tensor], Callable[[Sequence[str]], Tensor]]


def measure_folder(folder: Path, layouts: Sequence[LayoutEntry], judge: Judge, embed: Embedders | None = None) -> Score:
    """The images of a folder that the layouts name, whatever their image format. Raises ValueError if none is there."""
    found: list[Outcome] = []
    pictures, captions = [], []
    for entry in layouts:
        path = next((p for p in (Path(folder, entry.name).with_suffix(ending) for ending in IMAGE_ENDINGS) if p.is_file()), None)
        if path is None:
            continue
        picture = to_tensor(open_rgb(path.name, path.read_bytes)).permute(2, 0, 1)
        width, height = entry.size or (picture.shape[2], picture.shape[1])
        boxes = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in entry.boxes]
        found += find_outcomes(judge, picture, [Wanted(box, phrase) for box, phrase in zip(boxes, entry.phrases)])
        pictures.append(picture)
        captions.append(entry.caption)
    if not pictures:
        raise ValueError(f"The folder {folder.name!r} contains no image that the layouts name, such as {layouts[0].name}.")
    if len(pictures) < len(layouts):
        log.warning("%s: %d of %d images are there", folder.name, len(pictures), len(layouts))
    score = None if embed is None else clip_score(embed[0](pictures), embed[1](captions))
    return Score(len(pictures), tuple(found), score)


def playground_embedders() -> Embedders:
    """The playground's image encoder and its text encoder's projection."""
    vision, clip = playground.load_clip_vision(), playground.load_clip()
    encoder = clip.cond_stage_model.clip_l
    encoder.return_projected_pooled = True  # this CLIP is ours alone

    def of_pictures(pictures: Sequence[Tensor]) -> Tensor:
        batches = torch.stack(list(pictures)).movedim(1, -1).split(32)
        return torch.cat([vision.encode_image(batch)["image_embeds"].detach().float() for batch in batches])

    def of_texts(texts: Sequence[str]) -> Tensor:
        clip.load_model()
        return torch.cat([clip.cond_stage_model.encode_token_weights(clip.tokenize(text))[1] for text in texts]).detach().float()

    return of_pictures, of_texts


def main(arguments: list[str]) -> int:
    """Print the table of some folders of results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="evaluate")
    parser.add_argument("results", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--layouts", required=True)
    parser.add_argument("--judge", default=PLAYGROUND, help="playground, or the folder of a zero-shot detector")
    parser.add_argument("--vlm", default="", help="the folder of a vision-language model")
    parser.add_argument("--clip", default="", help="playground, or the folder of a CLIP model")
    options = parser.parse_args(arguments)
    try:
        judge = load_named_judge(options.judge, options.vlm)
        embed = None
        if options.clip:
            embed = playground_embedders() if options.clip == PLAYGROUND else judges.clip_embedders(options.clip)
        layouts, rows = read_layouts(options.layouts), []
        for result in options.results:
            name, _, folder = result.rpartition("=")
            rows.append(measure_folder(Path(folder), layouts, judge, embed).row(name or Path(folder).name))
    except ValueError as error:
        log.error("%s", error)
        return 1
    log.info("%s", table(rows))
    return 0
