"""Draws the contact sheet inside the environment: `sheet.py FOLDER TARGET < rows.json` (rows as demo.py writes them)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, MARGIN, PER_SIDE = 256, 14, 48, 3
PAPER, INK, SOFT, LINE = (250, 249, 246), (28, 30, 34), (112, 116, 124), (222, 220, 214)


def draw(rows: list[dict], folder: Path) -> Image.Image:
    """The sheet: a title and caption a row, our images on the left, the same prompt without our node on the right."""
    lefts = max([min(len(row["left"]), PER_SIDE) for row in rows] or [1]) or 1
    rights = max([min(len(row["right"]), PER_SIDE) for row in rows] or [0])
    middle = MARGIN + lefts * (CELL + GAP) - GAP
    right_edge = middle + (3 * GAP + rights * (CELL + GAP) - GAP if rights else 0)
    width = max(right_edge + MARGIN, 900)
    heights = [_row_height(row) for row in rows]
    sheet = Image.new("RGB", (width, 150 + sum(heights) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 40), "Exemplary", fill=INK, font=_font(44))
    pen.text((MARGIN, 98), "Every example workflow, run in ComfyUI on the CPU", fill=SOFT, font=_font(19))
    top = 150
    for row, height in zip(rows, heights):
        _row(sheet, pen, row, folder, top, middle, width)
        top += height
    return sheet


def _row_height(row: dict) -> int:
    return 84 + 26 * len(_lines(row)) + CELL + 34


def _lines(row: dict) -> list[str]:
    return _wrap(row.get("caption") or "", 96)


def _row(sheet: Image.Image, pen: ImageDraw.ImageDraw, row: dict, folder: Path, top: int, middle: int, width: int) -> None:
    pen.line((MARGIN, top, width - MARGIN, top), fill=LINE, width=2)
    pen.text((MARGIN, top + 16), row["title"], fill=INK, font=_font(27))
    place = top + 54
    for line in _lines(row):
        pen.text((MARGIN, place), line, fill=SOFT, font=_font(18))
        place += 26
    if row["right"]:
        pen.text((MARGIN, place), "with the node", fill=SOFT, font=_font(16))
        pen.text((middle + 3 * GAP, place), "same prompt and seed, without it", fill=SOFT, font=_font(16))
    place += 26
    if row.get("error"):
        pen.text((MARGIN, place), "\n".join(_wrap("Failed: " + row["error"], 90)[:6]), fill=(170, 30, 30), font=_font(18))
        return
    for side, start in (("left", MARGIN), ("right", middle + 3 * GAP)):
        for number, name in enumerate(row[side][:PER_SIDE]):
            _picture(sheet, pen, folder / name, start + number * (CELL + GAP), place)


def _picture(sheet: Image.Image, pen: ImageDraw.ImageDraw, path: Path, left: int, top: int) -> None:
    picture = Image.open(path).convert("RGB")
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2
    sheet.paste(picture, (left, top))
    pen.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=LINE)


def _wrap(text: str, letters: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= letters:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main(arguments: list[str]) -> int:
    """Read rows from the standard input, write the sheet."""
    folder, target = map(Path, arguments)
    draw(json.load(sys.stdin), folder).save(target, quality=92)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
