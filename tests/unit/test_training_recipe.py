"""Recipes of trainers: read from JSON by their fields, and every mistake in them said."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from pack.lab.training.recipe import FromFile, command


@dataclass(frozen=True)
class Recipe(FromFile):
    data: Any
    steps: int = 10
    seed: int = 0
    learning_rate: float = 1e-3
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
    found = Recipe.from_file(written(tmp_path, {"data": ["a"], "steps": 3, "learning_rate": 1, "seed": 0, "more": None}))
    assert found.data == ["a"] and found.steps == 3 and found.more is None
    assert (found.schedule.steps, found.schedule.learning_rate, found.schedule.warmup) == (3, 1, 200)


@pytest.mark.parametrize(
    "content, says",
    [
        ("no", "c.json cannot be read as JSON"),
        ("[]", "no object"),
        ({"steps": 3}, "missing: data.* The fields are data, steps"),
        ({"data": "", "speed": 3}, "unknown: speed"),
        ({"data": "", "steps": 0}, "steps is 0; it must be a whole number from 1 on"),
        ({"data": "", "steps": 2.5}, "steps is 2.5"),
        ({"data": "", "steps": True}, "steps is True"),
        ({"data": "", "seed": -1}, "seed is -1; it must be a whole number from 0 on"),
        ('{"data": "", "learning_rate": NaN}', "learning_rate is nan; it must be a number from 0 on"),
        ({"data": "", "learning_rate": "1e-5"}, "learning_rate is '1e-5'"),
        ({"data": "", "fast": 1}, "fast is 1; it must be true or false"),
        ({"data": "", "name": None}, "name is None; it must be a text"),
        ({"data": "", "more": 3}, "more is 3; it must be a text"),
        ({"data": "", "parts": []}, "it must be an object"),
        ({"data": "", "resolution": 100}, "multiple of 64"),
        ({"data": "", "name": "bad"}, "c.json: name is bad"),
    ],
)
def test_a_mistake_is_named(tmp_path, content, says, caplog):
    with pytest.raises(ValueError, match=says):
        Recipe.from_file(written(tmp_path, content))
    assert command("test", Recipe, lambda recipe: None, ["--config", str(tmp_path / "c.json")]) == 1
    assert "c.json" in caplog.text


def test_a_right_one_is_trained_by_and_progress_is_shown(tmp_path, monkeypatch):
    log, trained = logging.getLogger("exemplary"), []
    monkeypatch.setattr(log, "level", logging.WARNING)
    assert command("test", Recipe, trained.append, ["--config", str(written(tmp_path, {"data": "here"}))]) == 0
    assert trained == [Recipe("here")] and log.isEnabledFor(logging.INFO)
