"""Instance success of generated images, for the node."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...evaluation import judges
from ...evaluation.detection import Judge, Outcome, Wanted, average_precision, find_outcomes, mean_overlap, success_rate
from ...evaluation.table import table
from ...ifadapter.instances import Instances
from ...playground.detector import load_detector
from ...playground.phrase_detector import PhraseDetector
from .. import inputs, playground

NODE = "Instance Success"
PLAYGROUND = "playground"


@dataclass(frozen=True)
class Score:
    """The outcome of measuring some images. Shares are 0..1."""

    images: int
    found: tuple[Outcome, ...]
    clip: float | None = None

    def row(self, name: str) -> dict[str, object]:
        """A row of the table, in percent."""
        return {
            "": name,
            "images": self.images,
            "instances": len(self.found),
            "success": 100 * success_rate(self.found),
            "IoU": 100 * mean_overlap(self.found),
            "AP": 100 * average_precision(self.found),
            "AP50": 100 * average_precision(self.found, (0.5,)),
            "CLIP": self.clip,
        }


def load_named_judge(name: str, answerer: str = "") -> Judge:
    """The playground's detector by its name, or the models in these folders. Raises ValueError naming what is missing."""
    if name == PLAYGROUND:
        return PhraseDetector(load_detector(playground.read_weights("judge")))
    return judges.from_folders(name, answerer)


def measure(images: Tensor, instances: Instances, judge: Judge, overlap: float = 0.5) -> Score:
    """Compare every image of an IMAGE [b, h, w, c] with the same instances. Raises ValueError on an image that is not one."""
    images = inputs.check_image(images, NODE, "images")
    if not len(instances):
        raise ValueError(f"{NODE}: there are no instances to look for. Connect those that the images were generated with.")
    unnamed = sum(not each.phrase for each in instances)
    if unnamed:
        raise ValueError(
            f"{NODE}: {unnamed} instances have a conditioning but no phrase to look for. Write a phrase on each Instance node."
        )
    wanted = [Wanted(each.box, each.phrase) for each in instances]
    found = [each for image in images.movedim(-1, 1) for each in find_outcomes(judge, image, wanted, overlap)]
    return Score(len(images), tuple(found))


def report(score: Score, instances: Instances) -> str:
    """The table, and a line for each instance."""
    shown = [table([score.row("result")]), ""]
    for index, instance in enumerate(instances):
        each = score.found[index :: len(instances)]
        hits = sum(one.success for one in each)
        shown.append(f"{hits} of {len(each)}, IoU {mean_overlap(each):.2f}: {instance.phrase}")
    return "\n".join(shown)
