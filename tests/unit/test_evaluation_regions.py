"""Region score, quality score and the COCOEE runner, on pictures whose embedding is their mean colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pack.lab.evaluate import cocoee
from pack.py.evaluation import regions
from PIL import Image
from torch.testing import assert_close


def embed(pictures):
    return torch.stack([p.mean(dim=(1, 2)) for p in pictures])


def test_the_region_is_looked_at_with_its_last_row_and_column():
    picture = torch.zeros(3, 20, 30)
    picture[0, 5:10, 10:20] = 1
    assert_close(regions.region(picture, (10, 5, 20, 10), 8)[0], torch.ones(8, 8))
    scores = regions.region_scores(torch.tensor([[1.0, 0, 0], [1, 1, 0]]), torch.tensor([[2.0, 0, 0]]))
    assert_close(scores, torch.tensor([100.0, 100 / 2**0.5], dtype=torch.float64))


def test_the_quality_score_is_the_clipped_likelihood():
    assert regions.quality_scores(torch.tensor([-10.0, 150.0, 900.0])).tolist() == [0, 50, 100]
    pytest.importorskip("sklearn")
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(200, 60, generator=rng) * 0.01
    mixture = regions.mixture_of(real, components=2)
    near, far = regions.quality(mixture, real[:50]), regions.quality(mixture, real[:50] + 1)
    assert near > far == 0
    with pytest.raises(ValueError, match="there are 3"):
        regions.mixture_of(real[:3])


def write(path, colour, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_of_results_is_measured(tmp_path):
    pytest.importorskip("sklearn")
    bench, results = tmp_path / "bench", tmp_path / "results"
    for number in range(3):
        name = f"{number:012d}"
        write(bench / "Ref_3500" / f"{name}_ref.png", (200, 0, 0))
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[10:30, 20:50] = 255
        (bench / "Mask_bbox_3500").mkdir(exist_ok=True)
        Image.fromarray(mask).save(bench / "Mask_bbox_3500" / f"{name}_mask.png")
        picture = np.zeros((64, 64, 3), dtype=np.uint8)
        picture[..., 2] = 80
        picture[10:30, 20:50] = (100, 0, 0)
        results.mkdir(exist_ok=True)
        Image.fromarray(picture).save(results / f"{name}.png")
    for number in range(24):
        write(tmp_path / "real" / f"{number}.png", (number, 2 * number, 90), (80, 100))
    row = cocoee.measure(results, bench, embed, tmp_path / "real")
    assert row["pictures"] == 3 and row["CLIP score"] == pytest.approx(100, abs=1e-3)
    assert row["CLIP-FID"] > 0 and 0 <= row["QS"] <= 100
    with pytest.raises(ValueError, match="contains no images"):
        cocoee.measure(tmp_path, bench, embed)
    write(results / "000000000009.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"000000000009_mask\.png is missing"):
        cocoee.measure(results, bench, embed)
