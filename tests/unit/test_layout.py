"""The layout's rules, read off the syntax trees: who imports whom, how long files are, what production code must not contain.

The five rules are CONTRIBUTING.md's "Where code lives".
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "model_management",
    "node_helpers", "nodes", "server",
}  # fmt: skip
TECHNIQUES = {"am_adapter", "ifadapter", "snf", "paint_by_example", "ca2sis"}
#: What a technique may import of the pack besides itself: what two techniques share.
SHARED = {"semantic", "imaging", "joint", "weight_files"}
#: What it may import of others besides the standard library; files of weights need two more.
PAPER = {"torch", "einops", "torchvision"}
OF_CHECKPOINTS = {"safetensors", "numpy"}
#: Modules of `py/` that no node needs: the papers' training objectives, which stay beside the paper's other equations.
WITHOUT_A_NODE = {f"pack.py.{technique}.training" for technique in TECHNIQUES}
ARROWS = 81  # import arrows between the places of py/host at most: half of what they were when it was one flat folder
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


def module_of(path: Path) -> str:
    """The dotted name of a file of the pack."""
    return ".".join(("pack", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PRODUCTION}


def imported_modules(name: str) -> set[str]:
    """The pack's modules that a module imports, wherever in the file."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return (found & set(MODULES)) - {name}


IMPORTS = {name: imported_modules(name) for name in MODULES}


def place_of(name: str) -> str:
    """The place of a module inside py/host: a technique's package or a general file."""
    return name.split(".")[3] if name.count(".") > 2 else ""


def test_what_no_node_needs_is_in_the_lab():
    """Rule 5: every module of py/ is reached from a node, and nothing that a node reaches is in lab/."""
    reached: set[str] = set()
    waiting = ["pack", *(name for name in MODULES if name.startswith("pack.nodes"))]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [*IMPORTS[name], *([name.rpartition(".")[0]] if name.rpartition(".")[0] in MODULES else [])]
    assert not [name for name in reached if name.startswith("pack.lab")]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    unreached = {name for name in MODULES if name.startswith("pack.py.")} - reached - packages
    assert unreached <= WITHOUT_A_NODE


def test_no_import_goes_in_a_circle():
    order: dict[str, int] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in order:
            for each in sorted(IMPORTS[name]):
                # A package's own file is imported with every module of it; what it imports back is its own content.
                if not (MODULES[each].name == "__init__.py" and name.startswith(f"{each}.")):
                    visit(each, (*above, name))
            order[name] = len(order)

    for name in sorted(MODULES):
        visit(name, ())


def test_the_places_of_the_host_package_depend_on_few_others(record_property, capsys):
    """Rule 2: the techniques are side by side, none imports another, and the arrows between the places stay few."""
    inside = [name for name in MODULES if name.startswith("pack.py.host.")]
    arrows = {(place_of(a), place_of(b)) for a in inside for b in IMPORTS[a] & set(inside) if place_of(a) != place_of(b)}
    record_property("arrows", len(arrows))
    with capsys.disabled():
        print(f" [{len(arrows)} import arrows between {len({place_of(name) for name in inside})} places of py/host]", end="")  # noqa: T201
    assert not [arrow for arrow in arrows if set(arrow) <= TECHNIQUES]
    assert len(arrows) <= ARROWS


@pytest.mark.parametrize("path", sources(*(f"py/{technique}" for technique in TECHNIQUES)), ids=named)
def test_the_paper_needs_torch_and_einops_only(path):
    """Rule 1."""
    used = {module.split(".")[0] for module, level in imports(path) if level == 0} - set(sys.stdlib_module_names)
    allowed = PAPER - ({"torchvision"} if path.name != "training.py" else set())
    assert used <= allowed | (OF_CHECKPOINTS if path.name == "checkpoint.py" else set())


def test_what_is_imported_is_declared():
    declared = {re.split(r"[<>=!~; ]", line)[0].lower() for line in (ROOT / "requirements.txt").read_text().split()}
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    optional = {"accelerate", "sklearn"}  # training and measuring name them when they are missing
    used = {module.split(".")[0] for path in PRODUCTION for module, level in imports(path) if level == 0}
    used -= set(sys.stdlib_module_names) | HOST_MODULES | {"utils", "pack"}
    assert {names.get(name, name) for name in used - optional} <= declared


def test_the_palettes_know_nothing_of_the_playground():
    assert not [name for name in MODULES if name.startswith("pack.py.semantic") for each in IMPORTS[name] if "playground" in each]


@pytest.mark.parametrize("path", PRODUCTION, ids=named)
def test_only_the_host_package_imports_the_host(path):
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
def test_no_technique_imports_another_nor_the_host_package_nor_the_nodes(path):
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


def test_no_module_is_for_everything():
    assert not [path for path in sources("py", "nodes", "lab") if re.search(r"util|helper|misc|common", path.stem)]


def test_the_development_tools_need_only_the_standard_library():
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
