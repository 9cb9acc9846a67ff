"""The measures: instance success and average precision on cases that can be counted by hand, Frechet distance against its formula."""

from __future__ import annotations

import pytest
import torch
from pack.lab.evaluate.features import clip_score, frechet_distance
from pack.py.evaluation.detection import (
    Detection,
    Outcome,
    Wanted,
    average_precision,
    find_outcomes,
    iou,
    mean_overlap,
    success_rate,
)
from pack.py.evaluation.judges import DetectorJudge, clip_embedders, from_folders
from pack.py.evaluation.table import table

LEFT, RIGHT, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)


def known(answers, say=lambda crop, question: "Yes."):
    """A judge that knows the boxes, in pixels of a picture of 20 x 10, of each phrase."""

    def detect(picture, phrase):
        names = ("xmin", "ymin", "xmax", "ymax")
        sizes = (20, 10, 20, 10)
        return [
            {"box": dict(zip(names, (a * b for a, b in zip(box, sizes)))), "score": score}
            for box, score in answers.get(phrase, ())
        ]

    return DetectorJudge(detect, say)


PICTURE = torch.zeros(3, 10, 20)


def test_overlap_of_boxes():
    assert iou(LEFT, LEFT) == 1 and iou(LEFT, RIGHT) == 0 and iou(LEFT, WHOLE) == pytest.approx(0.5)
    assert iou((0.2, 0.2, 0.2, 0.9), LEFT) == 0


def test_a_thing_succeeds_in_its_box_only_and_as_its_phrase_only():
    seen, asked = {"cat": [(RIGHT, 0.9)], "dog": [(RIGHT, 0.9), (LEFT, 0.4)]}, []

    def say(crop, question):
        asked.append((crop.size, question))
        return "no" if "cat" in question else " yes, it is"

    wanted = [Wanted(RIGHT, "cat"), Wanted(LEFT, "dog"), Wanted(LEFT, "cat"), Wanted(LEFT, "bird")]
    found = find_outcomes(known(seen, say), PICTURE, wanted)
    assert [each.success for each in found] == [False, True, False, False]
    assert [each.overlap for each in found] == [1.0, 1.0, 0.0, 0.0]
    assert success_rate(found) == 0.25 and mean_overlap(found) == 0.5
    assert len(asked) == 2, "what is not in its box is not asked about"
    assert all(10 <= size[0] <= 12 and size[1] == 10 for size, _ in asked) and "cat" in asked[0][1]


def test_the_least_overlap_counts():
    found = [
        find_outcomes(known({"cat": [(WHOLE, 0.9)]}), PICTURE, [Wanted(LEFT, "cat")], overlap)[0].success
        for overlap in (0.5, 0.51)
    ]
    assert found == [True, False]


def outcome(*candidates):
    return Outcome(Wanted(LEFT, "cat"), 0.0, False, tuple(Detection(box, score) for box, score in candidates))


def test_average_precision_by_hand():
    assert average_precision([outcome((LEFT, 0.9))]) == pytest.approx(1.0)
    assert average_precision([outcome((RIGHT, 0.9))]) == 0.0
    # The second of two things is never found: recall ends at 1/2, which is 51 of 101 points.
    assert average_precision([outcome((LEFT, 0.9)), outcome()]) == pytest.approx(51 / 101)
    # A surer wrong box halves the precision everywhere; a less sure one costs nothing.
    assert average_precision([outcome((LEFT, 0.5), (RIGHT, 0.9))]) == pytest.approx(0.5)
    assert average_precision([outcome((LEFT, 0.9), (RIGHT, 0.5))]) == pytest.approx(1.0)
    # The same thing found twice counts once.
    assert average_precision([outcome((LEFT, 0.8), (LEFT, 0.9)), outcome((LEFT, 0.1))], (0.5,)) == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )
    # A box of 0.8 IoU is right up to the threshold 0.8: seven of ten.
    assert average_precision([outcome(((0.0, 0.0, 0.4, 1.0), 0.9))]) == pytest.approx(0.7)
    assert average_precision([]) == 0.0


def test_frechet_distance_of_normals():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 3, generator=g, dtype=torch.float64)
    b = torch.randn(20_000, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    # 1 for the means, (1 - 2)^2 and (1 - 3)^2 for the deviations.
    assert frechet_distance(a, b) == pytest.approx(6.0, rel=0.03)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    few = torch.randn(4, 10, generator=g)
    assert frechet_distance(few, few + 1) == pytest.approx(10.0, rel=1e-3), "fewer pictures than features"
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(a[:1], b)


def test_clip_score_of_pairs():
    images, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, -1.0, 0], [0, 1.0, 1.0]])
    assert clip_score(images, texts) == pytest.approx((100 + 0 + 100 * 0.5**0.5) / 3)


def test_the_table_is_aligned():
    text = table([{"": "ours", "success": 81.25, "CLIP": None}, {"": "text alone", "success": 9.0, "CLIP": 25.11}])
    assert text.splitlines() == [
        "|            | success | CLIP |",
        "| ---------- | ------: | ---: |",
        "| ours       |    81.2 |    - |",
        "| text alone |     9.0 | 25.1 |",
    ]
    assert table([]) == ""


def test_missing_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="detector's folder 'gone' does not exist"):
        from_folders("gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no zero-shot-object-detection model"):
        from_folders(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="CLIP model's folder 'gone'"):
        clip_embedders("gone")
    with pytest.raises(ValueError, match="contains no CLIP model"):
        clip_embedders(str(tmp_path / "empty"))
