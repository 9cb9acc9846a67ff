"""Replace the classes of a map: by rules that a user writes, and by matching names between palettes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import torch

from .masks import class_labels
from .palettes import VOID, Colour, Palette, parse_colour, synonyms
from .semantic_map import SemanticMap, look_up

_ARROW = re.compile("->|\u2192")
_NEW_CLASS = re.compile(r"(.+?)\s+(#[0-9a-fA-F]{6})")


@dataclass(frozen=True)
class Rule:
    """`sources` (names separated by commas, or `*`) become `target`; a colour declares the target as a new class."""

    sources: str
    target: str
    colour: Colour | None = None


def parse_rules(text: str) -> list[Rule]:
    """Rules from lines `from, from -> to` or from a JSON object {"from, from": "to"}; `to` null or void erases.

    `to #rrggbb` declares a new class with that colour. Empty text gives no rules.

    Raises:
        ValueError: a line without an arrow, an empty side, or JSON that is not an object of texts; quotes the line.
    """
    text = text.replace("\ufeff", "").strip()
    if text.startswith(("{", "[")):
        pairs = _json_pairs(text)
    else:
        pairs = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            sides = _ARROW.split(line)
            if len(sides) != 2:
                raise ValueError(f"rules: line {number} is {line.strip()!r}; write one arrow a line, like: car, truck -> bus")
            pairs.append((sides[0].strip(), sides[1].strip()))
    rules = []
    for sources, target in pairs:
        if not sources or not target:
            raise ValueError(
                f"rules: {sources!r} -> {target!r} lacks a side; to erase a class, write: {sources or 'car'} -> void"
            )
        declared = _NEW_CLASS.fullmatch(target)
        rules.append(Rule(sources, declared[1], parse_colour(declared[2])) if declared else Rule(sources, target))
    return rules


def _json_pairs(text: str) -> list[tuple[str, str]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"rules: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). {_JSON_FORM}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"rules: the JSON is a {type(found).__name__}. {_JSON_FORM}")
    for source, target in found.items():
        if not (target is None or isinstance(target, str)):
            raise ValueError(f"rules: {source!r} goes to {target!r}, which is not a text. {_JSON_FORM}")
    return [(source.strip(), "void" if target is None else target.strip()) for source, target in found.items()]


_JSON_FORM = 'Write an object of texts, like: {"car, truck": "bus", "rider": null}'


@dataclass(frozen=True)
class Remapped:
    """A remapped map, the changes as (from, to) names of classes of the map, and the classes without a counterpart."""

    semantic_map: SemanticMap
    changes: tuple[tuple[str, str], ...]
    unmatched: tuple[str, ...]

    def report(self) -> str:
        """One line per change, and the classes that became void."""
        lines = [f"{source} -> {target}" for source, target in self.changes]
        if self.unmatched:
            lines.append(
                f"Without a class of that name in the palette {self.semantic_map.palette.name!r}, now void: {', '.join(self.unmatched)}. "
                "Give each a rule to keep it."
            )
        return "\n".join(lines) or "No class changed."


def remap(semantic_map: SemanticMap, rules: str = "", palette: Palette | None = None) -> Remapped:
    """Replace classes, all at once (a swap is two rules).

    Args:
        rules: see `parse_rules`. Rules that name a class go before `*`, and both before matching by name.
        palette: the palette of the result. None keeps the map's own, and classes without a rule stay. Another palette takes every class
            without a rule to its class of the same name or meaning (`sofa` is `couch`); those without one become void.

    Raises:
        ValueError: a class that is not in its palette, one class in two rules, an unreadable rule.
    """
    source = semantic_map.palette
    target = source if palette is None else palette
    parsed = parse_rules(rules)
    for rule in parsed:
        if rule.colour is not None:
            target = _declare(target, rule.target, rule.colour)
    table = np.arange(256, dtype=np.uint8) if palette is None else matching_table(source, target)
    unmatched = [label for label in range(len(source.names)) if table[label] == VOID]
    ruled: dict[int, Rule] = {}
    for rule in sorted(parsed, key=lambda rule: rule.sources.strip() != "*"):
        wanted = target.label(rule.target, "rules")
        for label in class_labels(source, rule.sources, "rules"):
            before = ruled.get(label)
            if before is not None and before.sources.strip() != "*":
                raise ValueError(
                    f"rules: {source.class_name(label)!r} goes both to {before.target!r} and to {rule.target!r}; leave one of the two."
                )
            ruled[label] = rule
            table[label] = wanted
    shown: list[int] = np.flatnonzero(semantic_map.counts().sum(dim=0).numpy()).tolist()
    result = SemanticMap(torch.from_numpy(look_up(table, semantic_map.labels.numpy())), target)
    changes = tuple(
        (source.class_name(label), target.class_name(int(table[label])))
        for label in shown
        if (label in ruled or (palette is not None and label != VOID and label not in unmatched))
    )
    lost = tuple(source.names[label] for label in shown if label in unmatched and label not in ruled)
    return Remapped(result, changes, lost)


def match_name(name: str, palette: Palette) -> int | None:
    """The label of the class with this name, or else with a synonym of it; None if there is none."""
    for candidate in (name, *synonyms(name)):
        label = palette.find(candidate)
        if label is not None and label != VOID:
            return label
    return None


def matching_table(source: Palette, target: Palette) -> np.ndarray:
    """[256] uint8: for every label of one palette the label that `match_name` finds in the other, VOID where there is none."""
    table = np.full(256, VOID, dtype=np.uint8)
    for label, name in enumerate(source.names):
        found = match_name(name, target)
        table[label] = VOID if found is None else found
    return table


def _declare(palette: Palette, name: str, colour: Colour) -> Palette:
    label = palette.find(name)
    if label is None:
        return palette.with_class(name, colour)
    if label == VOID or palette.colours[label] != colour:
        raise ValueError(
            f"rules: {name!r} is already a class of the palette {palette.name!r}; leave its colour out, or take another name."
        )
    return palette
