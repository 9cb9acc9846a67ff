"""Instance success of results: for a node, and for a folder of pictures with the layouts they were made from.

`dev.py evaluate --layouts FILE NAME=FOLDER ...` runs `main`. FILE is layout data in COCO's form (`training.layout_data`) whose file names
are those of the results; every folder is a row of the table.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation import judges
from ..evaluation.detection import Judge, Outcome, Wanted, average_precision, mean_overlap, outcomes, success_rate
from ..evaluation.features import clip_score
from ..evaluation.table import table
from ..ifadapter.instances import Instances
from ..playground.evaluation import load_judge
from ..playground.judging import PlaygroundJudge
from ..training.files import PICTURES
from ..training.layout_data import Entry, entries
from . import playground

log = logging.getLogger("exemplary")

NODE = "Instance Success"
PLAYGROUND = "playground"

#: Pictures and texts -> embeddings.
Embedders = tuple[Callable[[Sequence[Tensor]], Tensor], Callable[[Sequence[str]], Tensor]]


@dataclass(frozen=True)
class Score:
    """What is known of some pictures. Shares are 0..1."""

    pictures: int
    found: tuple[Outcome, ...]
    clip: float | None = None

    def row(self, name: str) -> dict[str, object]:
        """As a line of the table, in percent."""
        return {
            "": name,
            "pictures": self.pictures,
            "instances": len(self.found),
            "success": 100 * success_rate(self.found),
            "IoU": 100 * mean_overlap(self.found),
            "AP": 100 * average_precision(self.found),
            "AP50": 100 * average_precision(self.found, (0.5,)),
            "CLIP": self.clip,
        }


def judge_named(name: str, answerer: str = "") -> Judge:
    """The playground's judge by its name, or the models of these folders. Raises ValueError naming what is missing."""
    if name == PLAYGROUND:
        return PlaygroundJudge(load_judge(playground.read_weights("judge")))
    return judges.from_folders(name, answerer)


def measure(images: Tensor, instances: Instances, judge: Judge, overlap: float = 0.5) -> Score:
    """Every picture of an IMAGE [b, h, w, c] against the same instances. Raises ValueError on an image that is not one."""
    if images.ndim != 4 or images.shape[-1] < 3 or not bool(images.isfinite().all()):
        raise ValueError(f"{NODE}: images must be colour pictures without NaN or infinity; their shape is {list(images.shape)}.")
    if not len(instances):
        raise ValueError(f"{NODE}: there are no instances to look for. Connect those that the pictures were made with.")
    wanted = [Wanted(each.box, each.phrase) for each in instances]
    pictures = images[..., :3].movedim(-1, 1).float().cpu()
    found = [each for picture in pictures for each in outcomes(judge, picture, wanted, overlap)]
    return Score(len(pictures), tuple(found))


def report(score: Score, instances: Instances) -> str:
    """The table, and a line for each thing."""
    shown = [table([score.row("result")]), ""]
    for place, thing in enumerate(instances):
        each = score.found[place :: len(instances)]
        hits = sum(one.success for one in each)
        shown.append(f"{hits} of {len(each)}, IoU {mean_overlap(each):.2f}: {thing.phrase}")
    return "\n".join(shown)


def measure_folder(folder: Path, layouts: Sequence[Entry], judge: Judge, embed: Embedders | None = None) -> Score:
    """The pictures of a folder that the layouts name, whatever their picture format. Raises ValueError if none is there."""
    found: list[Outcome] = []
    pictures, captions = [], []
    for entry in layouts:
        path = next((p for p in (Path(folder, entry.name).with_suffix(ending) for ending in PICTURES) if p.is_file()), None)
        if path is None:
            continue
        picture = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255).permute(2, 0, 1)
        width, height = entry.size or (picture.shape[2], picture.shape[1])
        boxes = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in entry.boxes]
        found += outcomes(judge, picture, [Wanted(box, phrase) for box, phrase in zip(boxes, entry.phrases)])
        pictures.append(picture)
        captions.append(entry.caption)
    if not pictures:
        raise ValueError(f"The folder {folder.name!r} holds no picture that the layouts name, such as {layouts[0].name}.")
    if len(pictures) < len(layouts):
        log.warning("%s: %d of %d pictures are there", folder.name, len(pictures), len(layouts))
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
        judge = judge_named(options.judge, options.vlm)
        embed = None
        if options.clip:
            embed = playground_embedders() if options.clip == PLAYGROUND else judges.clip_embedders(options.clip)
        layouts, rows = entries(options.layouts), []
        for result in options.results:
            name, _, folder = result.rpartition("=")
            rows.append(measure_folder(Path(folder), layouts, judge, embed).row(name or Path(folder).name))
    except ValueError as error:
        log.error("%s", error)
        return 1
    log.info("%s", table(rows))
    return 0
