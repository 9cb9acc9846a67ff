"""Recipes: a JSON object whose fields are those of a trainer's dataclass, and the command that reads one and trains by it."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .diffusion import TIMESTEP_DENSITIES
from .loop import Schedule

log = logging.getLogger("exemplary")

#: How a field is annotated -> what JSON must contain for it, and how messages call that.
KINDS: dict[str, tuple[Any, str]] = {
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "dict": ((dict,), "an object"),
    "list": ((list,), "a list"),
    "str | list": ((str, list), "a path or a list of paths"),
}
MAY_BE_ZERO = ("seed", "warmup", "noise_steps")  # the other whole numbers are counts from 1
SHARES = ("final_rate", "drop", "drop_captions", "caption_drop", "person_drop", "masked")  # from 0 to 1
ABOVE_ZERO = ("clip", "learning_rate")
CHOICES = {"mixed_precision": ("no", "fp16", "bf16"), "timestep_density": TIMESTEP_DENSITIES}
RESOLUTION_STEP = 64
MAX_SEED = 2**40  # the batches' generators are seeded with a multiple of it
NAME = re.compile(r"[\w][\w .+-]*")  # of a file, in the output folder


@dataclass(frozen=True)
class TrainingRecipe:
    """Base of every trainer's recipe, a frozen dataclass whose fields a user may write."""

    @classmethod
    def from_file(cls: type[R], path: Path) -> R:
        """Raises ValueError naming the file and what is missing, unknown, of the wrong kind or out of range."""
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path.name} cannot be read as JSON: {error}.") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path.name} contains no JSON object with the fields of a recipe.")
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
            problem = _problem(name, str(known[name].type), value)
            if problem:
                raise ValueError(f"{path.name}: {name} is {value!r}; {problem}.")
        try:
            return cls(**data)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    @property
    def schedule(self) -> Schedule:
        """The fields that the loop needs."""
        names = {each.name for each in fields(Schedule)} & {each.name for each in fields(type(self))}
        return Schedule(**{name: getattr(self, name) for name in names})


R = TypeVar("R", bound=TrainingRecipe)


def _problem(name: str, annotation: str, value: Any) -> str:
    """What is wrong with a field's value; empty if nothing is."""
    kind = annotation.removesuffix(" | None")
    if value is None and kind != annotation:
        return ""
    types, words = KINDS[kind]
    is_number = kind in ("int", "float")
    if not isinstance(value, types) or (is_number and isinstance(value, bool)):
        bound = f" from {int(name not in MAY_BE_ZERO)} on" if kind == "int" else " from 0 on" if kind == "float" else ""
        return f"it must be {words}{bound}"
    if kind == "int" and value < (name not in MAY_BE_ZERO):
        return f"it must be {words} from {int(name not in MAY_BE_ZERO)} on"
    if kind == "float" and not (math.isfinite(value) and value >= 0):
        return f"it must be {words} from 0 on"
    if name in ABOVE_ZERO and not value > 0:
        return "it must be a number above 0"
    if name in SHARES and value > 1:
        return "it is a share and must be a number from 0 to 1"
    if name == "ema" and value >= 1:
        return "it must be a number from 0 up to, but not including, 1"
    if name == "seed" and value > MAX_SEED:
        return f"it must be at most {MAX_SEED}"
    if name in CHOICES and value not in CHOICES[name]:
        return f"it must be one of {', '.join(CHOICES[name])}"
    if name == "resolution" and value % RESOLUTION_STEP:
        return f"it must be a multiple of {RESOLUTION_STEP}"
    if name == "name" and value and not NAME.fullmatch(value):
        return "it is the name of a file in the output folder: use letters, digits, spaces, '_', '-', '.' and '+'"
    if kind == "str" and "\0" in value:
        return "it must not contain a null character"
    return ""


def prepare_output(folder: str | Path) -> Path:
    """Make the output folder and write a file into it, so that a training does not fail at its first checkpoint.

    Raises:
        ValueError: the folder cannot be made or written into; says why.
    """
    path = Path(folder)
    probe = path / f".write_test_{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"exemplary")
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ValueError(f"output is {str(folder)!r}, which cannot be written to ({reason}). Give another folder.") from None
    return path


def describe_recipe(kind: type[TrainingRecipe]) -> str:
    """The fields of a recipe with their defaults, and what they mean, for people."""
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", "All fields:"]
    for each in fields(kind):
        default = "required" if each.default is MISSING and each.default_factory is MISSING else None
        if default is None:
            factory: Any = each.default_factory
            default = f"default {json.dumps(factory() if each.default is MISSING else each.default)}"
        lines.append(f"  {each.name}: {KINDS[str(each.type).removesuffix(' | None')][1]}, {default}")
    return "\n".join(lines)


def run_recipe(kind: type[R], train: Callable[[R], Any], path: Path) -> int:
    """Train by the recipe in a file. Returns the exit code: 1 after a message of what is wrong, 130 after Ctrl+C."""
    log.setLevel(logging.INFO)  # the host may have set up logging already, for warnings only
    try:
        recipe = kind.from_file(path)
        prepare_output(recipe.output)  # type: ignore[attr-defined]
        train(recipe)
    except ValueError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("Stopped. The last checkpoint is kept: the same command continues from there.")
        return 130
    return 0
