"""Plain words: what a user or a reader of the code sees contains no word of the ban list (CONTRIBUTING.md, "Words").

Read are the strings and docstrings of the pack, its help pages and English locale, and the page's JavaScript. A use that is right has an
entry in `ALLOWED`, with its reason.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Banned words and phrases, as regular expressions, and what to write for each.
BANNED = {
    r"pictures?": "image(s)",
    r"(?<!there )(?:is|are|was) no (?!longer\b|more\b|one\b|other\b|need\b|\w+ing\b)\w+": "is not a ...",
    r"(?:holds?|has|have) no (?:number|picture)s?": "contains no ...",
    r"stands? (?:in|where|on|at|for|there)": "is located in; contains",
    r"hears?|heard": "attends to; uses",
    r"told|tells?": "warn, report, state",
    r"shall": "must, should",
    r"of (?:its|their|his|one's|our|your) own": "its own, separate",
    r"by (?:itself|themselves)": "automatically; alone",
    r"(?:leave|leaves|left|take|takes|taken) (?:it |them )?away": "remove; leave out",
    r"holds? values? that": "contains NaN or infinite values",
    r"whatever (?:is|it) \w+ says": "say what decides",
    r"in (?:its|their) place": "instead",
    r"what (?:it|they) (?:is|are) made of": "say the parts",
    r"room for (?:a )?files?": "folder",
    r"upstream": "the published code",
    r"judges?": "detector",
    r"a picture's": "an image's",
    r"a thing|things": "object; subject",
}
PATTERN = re.compile(r"\b(?:" + "|".join(BANNED) + r")\b", re.IGNORECASE)

#: (part of the path, what matched) -> why it is right there.
ALLOWED: dict[tuple[str, str], str] = {
    ("py/playground/world.py", "picture"): "a word of the frozen vocabulary of the playground's text encoder",
    ("py/playground/phrase_detector.py", "judge"): "the name of a protocol, Judge",
    ("js/docs/ExemplarySaliencyPreview.md", "picture"): "the name of an input, which is frozen",
    ("js/docs/ExemplaryInstanceSuccess.md", "judge"): "the name of an input, which is frozen",
    ("locales/en/nodeDefs.json", "picture"): "the name of an input, which is frozen",
    ("locales/en/nodeDefs.json", "judge"): "the name of an input, which is frozen",
}

#: Choices that workflows store: they stay whatever the words, and texts may quote them.
STORED = re.compile(r"whole picture|one per picture|\bupstream(?=`?:)")
FOLDERS = ("nodes", "py", "lab", "devtools", "benchmarks")


def texts_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring and of every string that reads like a sentence (two words or more)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def texts_of_json(path: Path) -> Iterator[tuple[int, str]]:
    def walk(value) -> Iterator[str]:
        if isinstance(value, dict):
            for each in value.values():
                yield from walk(each)
        elif isinstance(value, str):
            yield value

    for text in walk(json.loads(path.read_text(encoding="utf-8"))):
        yield 0, text


def texts_of_page(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def texts_of_script(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for text in re.findall(r'"([^"]* [^"]*)"|`([^`]* [^`]*)`', line):
            yield number, " ".join(text)


def found_in(path: Path) -> list[str]:
    """Every banned word of a file as "path:line: word -> what to write"."""
    reader = {".py": texts_of_python, ".json": texts_of_json, ".md": texts_of_page, ".js": texts_of_script}[path.suffix]
    name, found = path.relative_to(ROOT).as_posix(), []
    for line, text in reader(path):
        for match in PATTERN.finditer(STORED.sub(lambda choice: "_" * len(choice.group()), text)):
            word = match.group(0).lower()
            if not any(part in name and word == allowed for part, allowed in ALLOWED):
                number = line + text[: match.start()].count("\n")
                around = " ".join(text[max(0, match.start() - 30) : match.end() + 20].split())
                found.append(f"{name}:{number}: {word!r} in {around!r}")
    return found


def files() -> list[Path]:
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts]
    pages = [*(ROOT / "js" / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    return sorted([*sources, *pages, *(ROOT / "js").glob("*.js"), *(ROOT / "locales" / "en").glob("*.json"), ROOT / "dev.py"])


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_words_are_plain(path):
    assert not found_in(path)


def test_the_ban_list_finds_what_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    for sentence in (
        "One picture a latent.",
        "It is no folder.",
        "what stands in the filling",
        "The layer hears it.",
        "It shall end.",
    ):
        assert PATTERN.search(sentence), sentence
    for sentence in ("The image is no longer used.", "No image is found.", "This is not a folder.", "the standard is met"):
        assert not PATTERN.search(sentence), sentence
