"""Instances from boxes with phrases and from layout files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .boxes import BOX_FORMATS, EXAMPLE, find_cut_boxes, parse_json, read_boxes
from .instances import Instance, Instances, describe_kind, format_value


@dataclass
class Layout:
    """Instances, and warnings for the user about how they were read."""

    instances: Instances = field(default_factory=Instances)
    warnings: list[str] = field(default_factory=list)


def from_boxes(
    boxes: Any, phrases: Iterable[str], box_format: str, width: int = 0, height: int = 0, image_index: int = -1
) -> Layout:
    """One instance per box, each with its phrase.

    Args:
        boxes: see `boxes.read_boxes`.
        phrases: one per box in the same order, or a single one for all; without any, the descriptions that come with the boxes are used.
        box_format, width, height, image_index: see `boxes.read_boxes`.

    Raises:
        ValueError: a box that is wrong, or another number of phrases than boxes.
    """
    found = read_boxes(boxes, box_format, width, height, image_index)
    count, lines = len(found.boxes), [phrase.strip() for phrase in phrases if phrase.strip()]
    if not lines and all(found.phrases):
        lines = found.phrases
    if len(lines) == 1:
        lines = lines * count
    if len(lines) != count:
        missing = sum(not phrase for phrase in found.phrases)
        brought = f" {missing} of the boxes bring no description." if not lines and missing < count else ""
        raise ValueError(
            f"There are {count} boxes but {len(lines)} phrases.{brought} Write one phrase per line, in the order of the boxes, or a single one "
            "for all."
        )
    return Layout(Instances(tuple(Instance(box, phrase) for box, phrase in zip(found.boxes, lines))), found.warnings)


def from_json(
    text: str,
    width: int = 0,
    height: int = 0,
    box_format: str = BOX_FORMATS[3],
    phrases: Iterable[str] = (),
    image_index: int = -1,
) -> Layout:
    """Instances from JSON text.

    The pack's own form is a list of {"box": [x0, y0, x1, y1] in 0..1, "phrase": str, "strength": number}. An IFAdapter layout is
    {"caption": str, "annotations": [{"box": [x, y, w, h] in pixels, "caption": str | [str]}]}; without annotations it is its caption in one
    box that covers the image, as in the published code. Everything else that `boxes.read_boxes` supports is read too, with `phrases` as
    for `from_boxes`.
    """
    data = parse_json(text)
    if isinstance(data, dict) and "caption" in data and not data.get("annotations", []):
        return Layout(Instances((Instance((0.0, 0.0, 1.0, 1.0), str(data["caption"])),)))
    if isinstance(data, list) and all(isinstance(entry, dict) and isinstance(entry.get("box"), list) for entry in data):
        return _from_own_form(data)
    if isinstance(data, dict) and not isinstance(data.get("annotations", []), list):
        raise ValueError(
            f"The layout's annotations are {describe_kind(data['annotations'])}; they must be a list of boxes with captions."
        )
    if not isinstance(data, (dict, list)):
        raise ValueError(f"The layout JSON is {describe_kind(data)}; it must be a list of instances such as {EXAMPLE}.")
    return from_boxes(data, phrases, box_format, width, height, image_index)


def _from_own_form(data: list[dict]) -> Layout:
    items = []
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry.get("phrase"), str):
            raise ValueError(
                f"Entry {number} of the layout JSON is {format_value(entry)}; it needs a box and a phrase, as in {EXAMPLE}."
            )
        items.append(Instance(entry["box"], entry["phrase"], strength=entry.get("strength", 1.0)))
    warnings = find_cut_boxes([tuple(entry["box"]) for entry in data], [entry["phrase"] for entry in data])
    return Layout(Instances(tuple(items)), warnings)
