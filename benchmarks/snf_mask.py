"""What noise fusion adds to a step at 128 x 128 latent pixels (1024 x 1024 pixels), in processor time on one thread.

    python -P benchmarks/snf_mask.py [--quick]

The textbook form is the published one for any size: every channel pooled, resized and averaged, the mean repeated to all channels,
two softmaxes over space, a stack, an argmax, a gather. Processor time, so that other programs do not count.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

if "pack" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest  # noqa: F401  puts the pack under its name

from pack.benchmarks.measure import at_most, milliseconds, one_thread, ratio, show
from pack.py.snf.fusion import MaskSettings, fuse, guidance_response, saliency_shares

SIDE = 128
MOST_MS = 5.0


def figures(quick: bool) -> Iterator[dict]:
    with one_thread(), torch.no_grad():
        yield from _figures(5 if quick else 50)


def _figures(repeats: int) -> Iterator[dict]:
    branches = torch.randn(4, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    response_t, response_s = 5.0 * (branches[1] - branches[0]), 5.0 * (branches[3] - branches[2])
    size = f"{SIDE} x {SIDE} latent pixels"

    mask = milliseconds(lambda: saliency_shares([response_t, response_s]), repeats)
    yield at_most(f"noise fusion mask, {size}", mask, "ms", MOST_MS)
    yield ratio(
        "noise fusion mask, textbook form / Exemplary",
        milliseconds(lambda: _textbook_mask(response_t, response_s), repeats) / mask,
    )
    step = milliseconds(lambda: _step(*branches), repeats)
    yield at_most(f"noise fusion, a whole step, {size}", step, "ms", MOST_MS)
    yield ratio("noise fusion, textbook step / Exemplary", milliseconds(lambda: _textbook_step(*branches), repeats) / step)

    for what, settings in (
        ("soft", MaskSettings(softness=0.5)),
        ("gaussian", MaskSettings(smoothing="gaussian")),
        ("per channel", MaskSettings(per_channel=True)),
    ):
        cost = milliseconds(lambda: saliency_shares([response_t, response_s], settings), repeats)
        yield {"name": f"noise fusion mask, {what}", "value": cost, "unit": "ms", "target": "-", "ok": True}


def _textbook_mask(response_t: torch.Tensor, response_s: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w], the number of the model of each element."""

    def saliency(response: torch.Tensor) -> torch.Tensor:
        b, c, h, w = response.shape
        omega = F.avg_pool2d(response.abs(), 4, stride=1, padding=1)
        omega = F.interpolate(omega, size=(h, w), mode="bilinear").mean(dim=1, keepdim=True).repeat(1, c, 1, 1)
        return omega.reshape(b, c, h * w).softmax(dim=-1).reshape(b, c, h, w)

    return torch.stack([saliency(response_t), saliency(response_s)]).argmax(dim=0)


def _step(scene_null, scene_text, subject_text, subject_aug, guidance: float = 5.0, sigma: float = 3.0) -> torch.Tensor:
    models = (scene_null, scene_text), (subject_text, subject_aug)
    shares = saliency_shares([guidance_response(full, base, guidance, sigma) for base, full in models])
    return fuse([base + (full - base) * guidance for base, full in models], shares)


def _textbook_step(scene_null, scene_text, subject_text, subject_aug, guidance: float = 5.0) -> torch.Tensor:
    response_t, response_s = guidance * (scene_text - scene_null), guidance * (subject_aug - subject_text)
    mask = _textbook_mask(response_t, response_s)
    return torch.stack([scene_null + response_t, subject_text + response_s]).gather(0, mask[None])[0]


if __name__ == "__main__":
    show(figures("--quick" in sys.argv[1:]))
