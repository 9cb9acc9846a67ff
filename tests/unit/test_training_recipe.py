"""Recipes of trainers: read from JSON by their fields, and every mistake in them said."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

import pytest
from pack.lab.training.recipe import TrainingRecipe, run_recipe


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    data: str | list
    output: str
    steps: int = 10
    seed: int = 0
    learning_rate: float = 1e-3
    ema: float = 0.9
    clip: float = 1.0
    mixed_precision: str = "no"
    fast: bool = False
    name: str = "x"
    more: str | None = None
    resolution: int = 128
    parts: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name is bad.")


def written(tmp_path, content):
    (tmp_path / "c.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / "c.json"


def test_fields_are_read_and_the_loop_gets_its_own(tmp_path):
    found = Recipe.from_file(
        written(tmp_path, {"data": ["a"], "output": "o", "steps": 3, "learning_rate": 1, "seed": 0, "more": None})
    )
    assert found.data == ["a"] and found.steps == 3 and found.more is None
    assert (found.schedule.steps, found.schedule.learning_rate, found.schedule.warmup) == (3, 1, 200)


@pytest.mark.parametrize(
    "content, says",
    [
        ("no", "c.json cannot be read as JSON"),
        ("[]", "no JSON object"),
        ({"steps": 3}, "missing: data, output.* The fields are data, output, steps"),
        ({"data": "", "output": "o", "speed": 3}, "unknown: speed"),
        ({"data": "", "output": "o", "steps": 0}, "steps is 0; it must be a whole number from 1 on"),
        ({"data": "", "output": "o", "steps": 2.5}, "steps is 2.5"),
        ({"data": "", "output": "o", "steps": True}, "steps is True"),
        ({"data": "", "output": "o", "seed": -1}, "seed is -1; it must be a whole number from 0 on"),
        ('{"data": "", "output": "o", "learning_rate": NaN}', "learning_rate is nan; it must be a number from 0 on"),
        ({"data": "", "output": "o", "learning_rate": "1e-5"}, "learning_rate is '1e-5'"),
        ({"data": "", "output": "o", "fast": 1}, "fast is 1; it must be true or false"),
        ({"data": "", "output": "o", "name": None}, "name is None; it must be a text"),
        ({"data": "", "output": "o", "more": 3}, "more is 3; it must be a text"),
        ({"data": "", "output": "o", "parts": []}, "it must be an object"),
        ({"data": "", "output": "o", "resolution": 100}, "multiple of 64"),
        ({"data": "", "output": "o", "name": "bad"}, "c.json: name is bad"),
        ({"data": "", "output": "o", "name": "../up"}, "name is '../up'; it is the name of a file in the output folder"),
        ({"data": "", "output": "o", "name": "a/b"}, "name is 'a/b'"),
        ({"data": "a\0b", "output": "o\0"}, "output is .* must not contain a null character"),
        ({"data": 7, "output": "o"}, "data is 7; it must be a path or a list of paths"),
        ({"data": "", "output": "o", "ema": 2}, "ema is 2; it must be a number from 0 up to"),
        ({"data": "", "output": "o", "clip": 0}, "clip is 0; it must be a number above 0"),
        ({"data": "", "output": "o", "seed": 2**70}, "seed is"),
        ({"data": "", "output": "o", "mixed_precision": "int4"}, "mixed_precision is 'int4'; it must be one of no, fp16, bf16"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_mistake_is_named(tmp_path, content, says, caplog):
    with pytest.raises(ValueError, match=says):
        Recipe.from_file(written(tmp_path, content))
    assert run_recipe(Recipe, lambda recipe: None, tmp_path / "c.json") == 1
    assert "c.json" in caplog.text


def test_a_right_one_is_trained_by_and_progress_is_shown(tmp_path, monkeypatch):
    log, trained = logging.getLogger("exemplary"), []
    monkeypatch.setattr(log, "level", logging.WARNING)
    assert run_recipe(Recipe, trained.append, written(tmp_path, {"data": "here", "output": str(tmp_path / "out")})) == 0
    assert trained == [Recipe("here", str(tmp_path / "out"))] and log.isEnabledFor(logging.INFO)
