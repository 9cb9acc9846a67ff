"""The rules of the house, read off the syntax trees: who imports whom, how long files are, what production code may not hold."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "model_management",
    "node_helpers", "nodes", "server",
}  # fmt: skip
TECHNIQUES = {"am_adapter", "ifadapter", "snf", "paint_by_example", "ca2sis"}
#: What a technique may import besides torch, einops and the standard library: what two techniques share.
SHARED = {"semantic", "weight_files"}
LINES = 500


def sources(*folders: str, suffix: str = ".py") -> list[Path]:
    """The source files below the pack's folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}") if "__pycache__" not in path.parts)


PRODUCTION = [ROOT / "__init__.py", *sources("py", "nodes", "lab")]
TRACKED = [*PRODUCTION, *sources("devtools", "tests", "benchmarks"), ROOT / "dev.py"]


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, level) of every import in a file; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level))
            if not node.module:
                found += [(alias.name, node.level) for alias in node.names]
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PRODUCTION, ids=named)
def test_only_the_host_rooms_import_the_host(path):
    allowed = {"comfy_api"} if path.parent.name == "nodes" or path.parent == ROOT else set()
    if path.is_relative_to(ROOT / "py" / "host") or path.is_relative_to(ROOT / "lab"):
        allowed = HOST_MODULES
    used = {module.split(".")[0] for module, level in imports(path) if level == 0} & HOST_MODULES
    assert used <= allowed


@pytest.mark.parametrize("path", PRODUCTION, ids=named)
def test_the_pack_imports_itself_relatively(path):
    assert not {
        module for module, level in imports(path) if level == 0 and module.split(".")[0] in {"py", "nodes", "pack", "exemplary"}
    }


@pytest.mark.parametrize("path", sources(*(f"py/{technique}" for technique in TECHNIQUES)), ids=named)
def test_no_technique_imports_another_nor_the_host_rooms_nor_the_nodes(path):
    deep = len(path.relative_to(ROOT / "py").parts)
    outside = {module.split(".")[0] for module, level in imports(path) if level == deep and module}
    assert outside <= SHARED
    assert not [module for module, level in imports(path) if level > deep], "a technique reaches out of py/"


@pytest.mark.parametrize("path", sources(*(f"py/{technique}" for technique in TECHNIQUES)), ids=named)
def test_a_technique_reads_files_only_in_its_checkpoint(path):
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert path.name == "checkpoint.py" or "open" not in calls


@pytest.mark.parametrize("path", [*TRACKED, *sources("js", suffix=".js")], ids=named)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("path", [*TRACKED, *sources("js", suffix=".js")], ids=named)
def test_code_and_messages_are_ascii(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii(), f"line {next(number for number, line in enumerate(text.splitlines(), 1) if not line.isascii())}"


@pytest.mark.parametrize("path", PRODUCTION, ids=named)
def test_production_code_does_not_print_assert_execute_or_know_pytest(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"print", "eval", "exec", "breakpoint"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], "asserts vanish under -O: raise a ValueError"
    assert "pytest" not in {module.split(".")[0] for module, _ in imports(path)}


@pytest.mark.parametrize("path", PRODUCTION, ids=named)
def test_what_is_public_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            schema = isinstance(node, ast.ClassDef) and any(
                "ComfyNode" in ast.unparse(b) or "ComfyExtension" in ast.unparse(b) for b in node.bases
            )
            assert schema or ast.get_docstring(node), f"{node.name} has no docstring"


def test_there_is_no_room_for_everything():
    assert not [path for path in sources("py", "nodes") if re.search(r"util|helper|misc|common", path.stem)]


def test_the_development_tools_need_only_the_standard_library():
    import sys

    inside = {"inside.py": {"comfy", "torch"}, "sheet.py": {"PIL"}}
    for path in [ROOT / "dev.py", *sources("devtools")]:
        foreign = (
            {module.split(".")[0] for module, level in imports(path) if level == 0} - set(sys.stdlib_module_names) - {"devtools"}
        )
        assert foreign <= inside.get(path.name, set()), named(path)


def test_tracked_texts_name_no_machine():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w.])/(work|root|home|opt|farm)/\w|file:///")
    texts = [
        ROOT / name
        for name in done.stdout.split("\n")
        if name and Path(name).suffix in {".py", ".md", ".js", ".toml", ".txt", ".json", ".yaml", ".sh"}
    ]
    here = Path(__file__)
    assert not [
        named(path) for path in texts if path.exists() and path != here and machine.search(path.read_text(encoding="utf-8"))
    ]
