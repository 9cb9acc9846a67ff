"""Whose picture it is: the record of a fused run, and its drawings. Pillow only, so it works without a screen and without the frontend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Scene, then subjects; far apart in hue and in brightness.
COLOURS = ((58, 92, 160), (240, 150, 40), (70, 180, 110), (200, 80, 170), (220, 210, 80), (120, 200, 220))
PAPER, INK = (38, 40, 46), (225, 225, 225)
VEIL = 0.45  # of a map over a picture


class Evaluation(NamedTuple):
    """Who was asked at one noise level: one model's number, or the shares of all, [m, b, h, w] uint8 of 255 on the CPU."""

    sigma: float
    shares: Tensor | int


@dataclass
class Record:
    """One sampling run, evaluation by evaluation. Model 0 is the scene."""

    models: int = 1
    shape: tuple[int, int, int] = (1, 1, 1)  # pictures, rows, columns
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, sigma: float, shares: Tensor | int, latent: torch.Size) -> None:
        """Note an evaluation; `shares` [m, b, k, h, w] are averaged over the latent's channels."""
        self.shape = (latent[0], latent[-2], latent[-1])
        if isinstance(shares, Tensor):
            shares = (shares.mean(dim=2) * 255).round().to(torch.uint8).cpu()
        self.evaluations.append(Evaluation(sigma, shares))

    def shares(self, number: int) -> Tensor:
        """[m, b, h, w], 0..1, of one evaluation."""
        found = self.evaluations[number].shares
        if isinstance(found, Tensor):
            return found.float() / 255
        whole = torch.zeros(self.models, *self.shape)
        whole[found] = 1.0
        return whole

    def coverage(self) -> Tensor:
        """[n, m]: the part of all pictures that each model gave at each evaluation."""
        return torch.stack([self.shares(number).mean(dim=(1, 2, 3)) for number in range(len(self.evaluations))])


def colours_of(shares: Tensor) -> Tensor:
    """[m, b, h, w] -> [b, h, w, 3] in 0..1: each model's colour, mixed where a cell is shared."""
    palette = torch.tensor(COLOURS, dtype=torch.float32)[[number % len(COLOURS) for number in range(len(shares))]] / 255
    return torch.einsum("mbhw,mc->bhwc", shares.float(), palette)


def map_pictures(record: Record, image: Tensor | None = None, picture: int = 0) -> Tensor:
    """IMAGE [n, h, w, 3]: one map an evaluation of one picture of the batch, over `image` [b, h, w, c] if there is one, else eight pixels a cell."""
    maps = torch.cat([colours_of(record.shares(number)[:, picture : picture + 1]) for number in range(len(record.evaluations))])
    _, h, w = record.shape
    size = (8 * h, 8 * w) if image is None else tuple(image.shape[1:3])
    large = rearrange(F.interpolate(rearrange(maps, "n h w c -> n c h w"), size=size), "n c h w -> n h w c")
    if image is None:
        return large
    below = image[min(picture, len(image) - 1), ..., :3].float().nan_to_num().clamp(0, 1).cpu()
    return torch.lerp(below.expand_as(large) if below.shape[-1] == 3 else below.expand(*large.shape), large, VEIL)


def strip(pictures: Tensor, width: int = 2048) -> Tensor:
    """IMAGE [1, h, w, 3]: the pictures [n, h, w, 3] side by side, at most `width` pixels wide."""
    n, h, w = pictures.shape[:3]
    each = max(8, min(w, width // n - 2))
    size = (max(1, round(h * each / w)), each)
    small = F.interpolate(rearrange(pictures, "n h w c -> n c h w"), size=size, mode="bilinear", antialias=True)
    framed = F.pad(small, (1, 1, 1, 1))
    return rearrange(framed, "n c h w -> 1 h (n w) c").clamp(0, 1)


def plot(record: Record, width: int = 512, height: int = 192) -> Tensor:
    """IMAGE [1, height, width, 3]: the share of each model over the evaluations, stacked, from the first (left) to the last."""
    paper = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(12)
    left, top, right, bottom = 36, 22, width - 8, height - 20
    coverage = record.coverage().tolist()
    for place, parts in enumerate(coverage):
        x0 = left + (right - left) * place / len(coverage)
        x1 = left + (right - left) * (place + 1) / len(coverage) - 1
        y = float(bottom)
        for number, part in enumerate(parts):
            if part > 0:
                draw.rectangle((x0, y - part * (bottom - top), max(x0, x1), y), fill=COLOURS[number % len(COLOURS)])
            y -= part * (bottom - top)
    draw.rectangle((left, top, right, bottom), outline=INK)
    for part, text in ((0.0, "0"), (0.5, "50%"), (1.0, "100%")):
        draw.text((left - 4, bottom - part * (bottom - top)), text, fill=INK, font=font, anchor="rm")
    draw.text((left, bottom + 4), "1", fill=INK, font=font)
    draw.text((right, bottom + 4), f"{len(coverage)} evaluations", fill=INK, font=font, anchor="ra")
    x = left
    for number in range(record.models):
        name = "scene" if number == 0 else "subject" if record.models == 2 else f"subject {number}"
        draw.rectangle((x, 6, x + 10, 16), fill=COLOURS[number % len(COLOURS)])
        draw.text((x + 14, 5), name, fill=INK, font=font)
        x += 28 + int(draw.textlength(name, font=font))
    return torch.from_numpy(np.asarray(paper).copy()).float()[None] / 255


def draw_record(
    record: Record | None, latent: Tensor, picture: int, image: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, strip and plot of the last run of a guider. Raises ValueError if there is none, or none of this latent."""
    if record is None:
        raise ValueError(
            "Saliency Preview: this guider keeps no maps. Connect an SNF Guider, or the guider output of an SNF Sampler."
        )
    if not record.evaluations:
        raise ValueError("Saliency Preview: the guider has not sampled yet. Connect the result of its sampler to latent.")
    if tuple(latent.shape[-2:]) != record.shape[1:]:
        raise ValueError(
            f"Saliency Preview: the latent is {latent.shape[-2]} x {latent.shape[-1]} cells, but the guider's last run was "
            f"{record.shape[1]} x {record.shape[2]}. Connect the result of that run."
        )
    if not 1 <= picture <= record.shape[0]:
        raise ValueError(
            f"Saliency Preview: picture is {picture}, but the batch has {record.shape[0]}. Choose 1 to {record.shape[0]}."
        )
    maps = map_pictures(record, image, picture - 1)
    return maps, strip(maps), plot(record)


def overlaid(callback: Callable | None, patcher: Any, record: Callable[[], Record]) -> Callable | None:
    """A sampler's callback that also shows the host's own preview with the newest map over it; unchanged where previews are off."""
    import latent_preview

    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return callback
    bars: list[Any] = []

    def both(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        if callback is not None:
            callback(step, x0, x, total)
        kind, picture, largest = previewer.decode_latent_to_preview_image("JPEG", x0)
        found = record()
        if found.evaluations:
            shares = colours_of(found.shares(len(found.evaluations) - 1)[:, :1])[0]
            veil = Image.fromarray((shares * 255).byte().numpy()).resize(picture.size, Image.Resampling.NEAREST)
            picture = Image.blend(picture.convert("RGB"), veil, VEIL)
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(step + 1, total, (kind, picture, largest))

    return both
