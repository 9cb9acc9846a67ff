"""Recipes: a JSON object whose fields are those of a trainer's dataclass, and the command that reads one and trains by it."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .loop import Schedule

log = logging.getLogger("exemplary")

#: How a field is annotated -> what JSON must hold for it, and how that is said.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "dict": ((dict,), "an object"),
    "list": ((list,), "a list"),
}
FROM_ZERO = ("seed", "warmup", "noise_steps")  # the other whole numbers are counts from 1 on
GRID = 64  # a resolution is a multiple of it


@dataclass(frozen=True)
class FromFile:
    """What every trainer's recipe is; the trainer's own is a frozen dataclass whose fields a user may write."""

    @classmethod
    def from_file(cls: type[R], path: Path) -> R:
        """Raises ValueError naming the file and what is missing, unknown or of the wrong kind."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} cannot be read as JSON: {error}.") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path.name} holds no object with the fields of a recipe.")
        known = {each.name: each for each in fields(cls)}
        needed = [name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
        missing = [name for name in needed if name not in data]
        unknown = sorted(set(data) - set(known))
        if missing or unknown:
            raise ValueError(
                f"{path.name}: {'missing: ' + ', '.join(missing) + '. ' if missing else ''}"
                f"{'unknown: ' + ', '.join(unknown) + '. ' if unknown else ''}The fields are {', '.join(known)}."
            )
        for name, value in data.items():
            _check(path.name, name, str(known[name].type), value)
        try:
            return cls(**data)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    @property
    def schedule(self) -> Schedule:
        """The fields that the loop reads."""
        names = {each.name for each in fields(Schedule)} & {each.name for each in fields(type(self))}
        return Schedule(**{name: getattr(self, name) for name in names})


R = TypeVar("R", bound=FromFile)


def _check(file: str, name: str, annotation: str, value: Any) -> None:
    kind = annotation.removesuffix(" | None")
    if kind not in KINDS or (value is None and kind != annotation):
        return
    types, words = KINDS[kind]
    count = kind == "int"
    least = 0 if name in FROM_ZERO else 1
    right = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    if right and count:
        right = value >= least
    elif right and kind == "float":
        right = math.isfinite(value) and value >= 0
    if not right:
        bound = f" from {least} on" if count else " from 0 on" if kind == "float" else ""
        raise ValueError(f"{file}: {name} is {value!r}; it must be {words}{bound}.")
    if name == "resolution" and value % GRID:
        raise ValueError(f"{file}: resolution is {value}; it must be a multiple of {GRID}.")


def command(technique: str, kind: type[R], train: Callable[[R], Any], arguments: list[str]) -> int:
    """`dev.py train <technique> --config FILE`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"train {technique}")
    parser.add_argument("--config", required=True, type=Path)
    log.setLevel(logging.INFO)  # the host may have set up logging already, for warnings only
    try:
        train(kind.from_file(parser.parse_args(arguments).config))
    except ValueError as error:
        log.error("%s", error)
        return 1
    return 0
