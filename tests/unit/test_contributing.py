"""CONTRIBUTING.md is true: every name that its walks mention exists, and every technique has a walk of ten steps."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = TEXT.split("## Walks")[1].split("\n## ")[0]
NAMES = re.findall(r"`([\w/]+\.py): ([\w.]+)`", WALKS)


def names_in(path: Path) -> set[str]:
    """Functions and classes of a module, and the methods and fields of its classes as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


@pytest.mark.parametrize("file, name", sorted(set(NAMES)), ids=lambda value: str(value))
def test_a_step_names_what_exists(file, name):
    assert (ROOT / file).is_file(), file
    assert name in names_in(ROOT / file), f"{file} has no {name}"


def test_each_technique_has_a_walk_of_ten_steps():
    walks = WALKS.split("\n### ")[1:]
    assert len(walks) == 5
    for walk in walks:
        steps = re.findall(r"^(\d+)\. (.*)$", walk, flags=re.MULTILINE)
        assert [int(number) for number, _ in steps] == list(range(1, 11)), walk.splitlines()[0]
        assert all(re.search(r"`[\w/]+\.py: [\w.]+`", step) for _, step in steps)
