"""Instance success of generated images, for the node."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...evaluation import judges
from ...evaluation.detection import Judge, Outcome, Wanted, average_precision, mean_overlap, outcomes, success_rate
from ...evaluation.table import table
from ...ifadapter.instances import Instances
from ...playground.detector import load_detector
from ...playground.phrase_detector import PhraseDetector
from .. import playground

NODE = "Instance Success"
PLAYGROUND = "playground"


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
        return PhraseDetector(load_detector(playground.read_weights("judge")))
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
