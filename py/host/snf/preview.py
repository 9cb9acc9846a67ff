"""The record of a fused run and its drawings: which model predicted which part of the image. Pillow only, no screen and no frontend."""

from __future__ import annotations

import math
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

from .. import inputs

NODE = "Saliency Preview"
#: Scene model, then subject models; far apart in hue and in brightness.
COLOURS = ((58, 92, 160), (240, 150, 40), (70, 180, 110), (200, 80, 170), (220, 210, 80), (120, 200, 220))
BACKGROUND, FOREGROUND = (38, 40, 46), (225, 225, 225)
OPACITY = 0.45  # of a map over an image
#: The grid: its width in pixels, the smallest width of a tile, the largest number of tiles, the height of a tile's label.
GRID_WIDTH, LEAST_TILE, MOST_TILES, LABEL = 1536, 192, 48, 18


class Evaluation(NamedTuple):
    """One evaluation: the number of the only model that was evaluated, or the shares of all models, [m, b, h, w] uint8 of 255 on the CPU."""

    sigma: float
    shares: Tensor | int


@dataclass
class FusionRecord:
    """One sampling run, evaluation by evaluation. Model 0 is the scene model."""

    models: int = 1
    shape: tuple[int, int, int] = (1, 1, 1)  # images, rows, columns
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, sigma: float, shares: Tensor | int, latent: torch.Size) -> None:
        """Append an evaluation; `shares` [m, b, k, h, w] are averaged over the latent channels."""
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
        """[n, m]: the mean share of each model at each evaluation."""
        return torch.stack([self.shares(number).mean(dim=(1, 2, 3)) for number in range(len(self.evaluations))])


def colour_shares(shares: Tensor) -> Tensor:
    """[m, b, h, w] -> [b, h, w, 3] in 0..1: each model's colour, mixed where a pixel is shared."""
    palette = torch.tensor(COLOURS, dtype=torch.float32)[[number % len(COLOURS) for number in range(len(shares))]] / 255
    return torch.einsum("mbhw,mc->bhwc", shares.float(), palette)


def draw_maps(record: FusionRecord, image: Tensor | None = None, number: int = 0) -> Tensor:
    """One map per evaluation for image `number` of the batch, over `image` [b, h, w, 3] if given, else 8 pixels per latent pixel.

    Returns:
        IMAGE [n, h, w, 3].
    """
    maps = torch.cat(
        [colour_shares(record.shares(evaluation)[:, number : number + 1]) for evaluation in range(len(record.evaluations))]
    )
    _, h, w = record.shape
    size = (8 * h, 8 * w) if image is None else tuple(image.shape[1:3])
    large = rearrange(F.interpolate(rearrange(maps, "n h w c -> n c h w"), size=size), "n c h w -> n h w c")
    if image is None:
        return large
    return torch.lerp(image[min(number, len(image) - 1)].expand_as(large), large, OPACITY)


def draw_grid(maps: Tensor, record: FusionRecord) -> Tensor:
    """The maps [n, h, w, 3] of the evaluations in which several models were fused (of all, if there are none), labelled, in rows.

    Returns:
        IMAGE [1, h, w, 3]. Of more than 48 maps, 48 at equal distances.
    """
    fused = [number for number, found in enumerate(record.evaluations) if isinstance(found.shares, Tensor)]
    chosen = fused or list(range(len(record.evaluations)))
    if len(chosen) > MOST_TILES:
        chosen = [chosen[round(step * (len(chosen) - 1) / (MOST_TILES - 1))] for step in range(MOST_TILES)]
    columns = min(len(chosen), max(1, GRID_WIDTH // LEAST_TILE), math.ceil(math.sqrt(len(chosen))))
    tile_w = GRID_WIDTH // max(columns, 3) - 4
    tile_h = max(1, round(tile_w * maps.shape[1] / maps.shape[2]))
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * (tile_w + 4), rows * (tile_h + LABEL + 4)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, number in enumerate(chosen):
        x, y = (place % columns) * (tile_w + 4) + 2, (place // columns) * (tile_h + LABEL + 4) + 2
        draw.text((x + 2, y + 1), f"evaluation {number + 1}, sigma {record.evaluations[number].sigma:.3g}", FOREGROUND, font)
        tile = Image.fromarray((maps[number].clamp(0, 1) * 255).round().byte().numpy())
        grows = tile_w >= tile.width
        tile = tile.resize((tile_w, tile_h), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y + LABEL))
    return _to_image(sheet)


def draw_plot(record: FusionRecord, width: int = 512, height: int = 192) -> Tensor:
    """IMAGE [1, height, width, 3]: the share of each model over the evaluations, stacked, from the first (left) to the last."""
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    left, top, right, bottom = 36, 22, width - 8, height - 20
    coverage = record.coverage().tolist()
    for number, parts in enumerate(coverage):
        x0 = left + (right - left) * number / len(coverage)
        x1 = left + (right - left) * (number + 1) / len(coverage) - 1
        y = float(bottom)
        for model, part in enumerate(parts):
            if part > 0:
                draw.rectangle((x0, y - part * (bottom - top), max(x0, x1), y), fill=COLOURS[model % len(COLOURS)])
            y -= part * (bottom - top)
    draw.rectangle((left, top, right, bottom), outline=FOREGROUND)
    for part, text in ((0.0, "0"), (0.5, "50%"), (1.0, "100%")):
        draw.text((left - 4, bottom - part * (bottom - top)), text, fill=FOREGROUND, font=font, anchor="rm")
    draw.text((left, bottom + 4), "1", fill=FOREGROUND, font=font)
    draw.text((right, bottom + 4), f"{len(coverage)} evaluations", fill=FOREGROUND, font=font, anchor="ra")
    x = left
    for model in range(record.models):
        name = "scene" if model == 0 else "subject" if record.models == 2 else f"subject {model}"
        draw.rectangle((x, 6, x + 10, 16), fill=COLOURS[model % len(COLOURS)])
        draw.text((x + 14, 5), name, fill=FOREGROUND, font=font)
        x += 28 + int(draw.textlength(name, font=font))
    return _to_image(sheet)


def _to_image(sheet: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(sheet).copy()).float()[None] / 255


def draw_record(
    record: FusionRecord | None, latent: Tensor, number: int, image: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, grid and plot of a guider's latest run, for image `number` of the batch, from 1.

    Raises:
        ValueError: there is no run, or not of this latent.
    """
    if record is None:
        raise ValueError(
            f"{NODE}: this guider records no maps. Connect a Subject Fusion Guider (SNF), or the guider output of a Subject Fusion "
            "Sampler (SNF)."
        )
    if not record.evaluations:
        raise ValueError(f"{NODE}: the guider has not sampled yet. Connect the result of its sampler to latent.")
    if tuple(latent.shape[-2:]) != record.shape[1:]:
        raise ValueError(
            f"{NODE}: the latent has {latent.shape[-2]} x {latent.shape[-1]} pixels, but the guider's last run had "
            f"{record.shape[1]} x {record.shape[2]}. Connect the result of that run."
        )
    number = inputs.check_integer(number, NODE, "picture", 1, record.shape[0])
    maps = draw_maps(record, None if image is None else inputs.check_image(image, NODE), number - 1)
    return maps, draw_grid(maps, record), draw_plot(record)


def show_overlay(callback: Callable | None, patcher: Any, record: FusionRecord) -> Callable | None:
    """A sampler's callback that also shows the host's preview with the newest map over it; unchanged where previews are off."""
    import latent_preview

    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return callback
    bars: list[Any] = []

    def both(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        if callback is not None:
            callback(step, x0, x, total)
        kind, image, largest = previewer.decode_latent_to_preview_image("JPEG", x0)
        if record.evaluations:
            shares = colour_shares(record.shares(len(record.evaluations) - 1)[:, :1])[0]
            colours = Image.fromarray((shares * 255).byte().numpy()).resize(image.size, Image.Resampling.NEAREST)
            image = Image.blend(image.convert("RGB"), colours, OPACITY)
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(step + 1, total, (kind, image, largest))

    return both
