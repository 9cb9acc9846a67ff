"""Every call that the pack makes to the host binds to the signatures of four ComfyUI releases.

Found without importing the host: calls of imported names (`comfy.sample.sample(...)`, `attention.optimized_attention(...)`), and
methods whose name only ModelPatcher has (`model.add_wrapper_with_key(...)`). The signatures are in tests/host_signatures.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests" / "host_signatures").glob("*.json"))
}
FILES = sorted(path for folder in ("py/host", "nodes", "lab") for path in (ROOT / folder).rglob("*.py"))
PATCHER = "comfy.model_patcher"
ORDINARY = {name for kind in (dict, list, str, set, tuple, int, float) for name in dir(kind)}
#: Names that tensors, modules or our own classes have too: a call of them says nothing about ModelPatcher.
SHARED_NAMES = {"clone", "to", "load", "detach", "cleanup", "model_size", "state_dict", "register", "eject_model", "inject_model"}
#: Made by `io.ComfyNode` itself for every node, or data classes whose parameters the records do not hold.
UNRECORDED = {"comfy_api"}


def parameters(text: str) -> inspect.Signature:
    """A signature from its printed form; annotations and defaults are dropped, whether there is a default is kept."""
    body = text[1 : text.rindex(")", 0, text.index(" ->") if " ->" in text and _closed(text[: text.index(" ->")]) else len(text))]
    found, seen_star = [], False
    for part in _split(body):
        name = re.match(r"\**\w+|\*|/", part.strip())
        if name is None:
            continue
        word, default = name.group(), "=" in _outside(part)
        if word == "/":
            found = [item.replace(kind=inspect.Parameter.POSITIONAL_ONLY) for item in found]
        elif word == "*":
            seen_star = True
        elif word.startswith("**"):
            found.append(inspect.Parameter(word[2:], inspect.Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            seen_star = True
            found.append(inspect.Parameter(word[1:], inspect.Parameter.VAR_POSITIONAL))
        else:
            kind = inspect.Parameter.KEYWORD_ONLY if seen_star else inspect.Parameter.POSITIONAL_OR_KEYWORD
            found.append(inspect.Parameter(word, kind, default=None if default else inspect.Parameter.empty))
    return inspect.Signature(found)


def _closed(text: str) -> bool:
    return text.count("(") == text.count(")")


def _outside(text: str) -> str:
    """The text outside every bracket."""
    kept, depth = [], 0
    for letter in text:
        depth += letter in "([{<"
        kept.append(letter if depth == 0 else "")
        depth -= letter in ")]}>"
    return "".join(kept)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>" and text[place - 1] != "-")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in [*parts, text[start:]] if part.strip()]


def host_calls(path: Path) -> Iterator[tuple[ast.Call, str, str, bool]]:
    """(call, module, name within it, bound method) for every call to the host in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set().union(*(set(release) for release in RELEASES.values()))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        dotted = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
        first, _, rest = dotted.partition(".")
        full = names[first] + ("." + rest if rest else "") if first in names and re.fullmatch(r"[\w.]+", dotted) else ""
        module = max((module for module in modules if full.startswith(module + ".")), key=len, default="")
        if module:
            yield node, module, full[len(module) + 1 :], False
        elif full.split(".")[0] in {"comfy", "folder_paths", "node_helpers", "latent_preview", "comfy_extras", "comfy_execution"}:
            pytest.fail(f"{path.name}:{node.lineno} calls {full}, whose module is not recorded in tests/host_signatures.")
        elif isinstance(node.func, ast.Attribute) and node.func.attr not in ORDINARY | SHARED_NAMES and not full:
            method = f"ModelPatcher.{node.func.attr}"
            if any(method in release.get(PATCHER, {}) for release in RELEASES.values()) and first not in {"self", "super()"}:
                yield node, PATCHER, method, True


def complaint(call: ast.Call, release: dict, module: str, name: str, bound: bool) -> str | None:
    """Why a call does not bind to one release, or None."""
    known = release.get(module, {})
    if module.split(".")[0] in UNRECORDED:
        return None
    if "!missing" in known or not known:
        return f"has no module {module}"
    text = known.get(name)
    if text is None:
        return f"has no {module}.{name}"
    if text.startswith("class"):
        text, bound = known.get(f"{name}.__init__", "(*args, **kwargs)"), True
    elif re.match(r"\((self|cls)\b", text) and "." in name:
        bound = True
    if not text.startswith("("):
        return None
    spread = any(isinstance(item, ast.Starred) for item in call.args) or any(item.arg is None for item in call.keywords)
    signature = parameters(text)
    places = ([None] if bound and re.match(r"\((self|cls)\b", text) else []) + [
        None for item in call.args if not isinstance(item, ast.Starred)
    ]
    words = {item.arg: None for item in call.keywords if item.arg}
    try:
        (signature.bind_partial if spread else signature.bind)(*places, **words)
    except TypeError as error:
        return f"{module}.{name}{text}: {error}"
    return None


def test_four_releases_are_recorded():
    assert set(RELEASES) == {"0.3.64", "0.3.75", "0.8.0", "0.33.0"}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_host_call_binds(path, release):
    wrong = []
    for call, module, name, bound in host_calls(path):
        why = complaint(call, RELEASES[release], module, name, bound)
        if why:
            wrong.append(f"line {call.lineno}: ComfyUI {release} {why}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("release", RELEASES)
def test_every_recorded_signature_can_be_read(release):
    for module in RELEASES[release].values():
        for text in module.values():
            if isinstance(text, str) and text.startswith("("):
                parameters(text)


@pytest.mark.parametrize(
    "code, wrong",
    [
        ("import comfy.sample\ncomfy.sample.fix_empty_latent_channels(m, l)", False),
        ("import comfy.sample\ncomfy.sample.fix_empty_latent_channels()", True),
        ("import comfy.utils as u\nu.no_such_function(1)", True),
        ("from comfy.model_patcher import ModelPatcher\nModelPatcher(model, load_device, offload_device)", False),
        ("from comfy.model_patcher import ModelPatcher\nModelPatcher(model)", True),
        ("m.add_wrapper_with_key('a', 'b', f)", False),
        ("m.add_wrapper_with_key('a')", True),
        ("m.set_model_attn2_output_patch(p)", False),
        ("m.set_model_attn2_output_patch(p, 1, 2)", True),
        ("import folder_paths\nfolder_paths.add_model_folder_path('a', 'b', is_default=True)", False),
        ("import folder_paths\nfolder_paths.add_model_folder_path('a', 'b', default=True)", True),
        ("import comfy.sample\ncomfy.sample.fix_empty_latent_channels(*a)", False),
    ],
)
def test_a_wrong_call_is_seen_and_a_right_one_is_not(tmp_path, code, wrong):
    path = tmp_path / "calls.py"
    path.write_text(code)
    (found,) = list(host_calls(path))
    call, module, name, bound = found
    assert bool(complaint(call, RELEASES["0.3.75"], module, name, bound)) == wrong
