"""Measured figures: who measures them, how they are kept, and when they are measured again.

A measurement is a module of the pack that MEASUREMENTS lists, with

    NEEDS = ["vae", "ifadapter/one"]     # shipped files without which there is nothing to measure, below assets/playground; may be left out
    def figures(quick: bool):           # a generator; the host is importable, the pack is `pack`
        yield {"name": "one object: class and colour right", "value": 0.94, "unit": "%", "target": ">= 0.90", "ok": True,
               "note": "200 held-out prompts"}

`value` is a number, `unit` says how to print it ("%" prints 0.94 as 94.0 %), `target` and `ok` may be left out. Each figure is
printed when it is known and kept in `output/figures/<module>.json` with what it was measured on. `dev.py playground evaluate` runs
those of kind quality, `dev.py bench` those of kind speed; the demo reuses kept ones as long as the pack's code and weights are the
same, and otherwise measures quickly.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from .environment import Environment
from .hosts import Host
from .places import OUTPUT, ROOT
from .say import Trouble, say
from .testing import variables

KEPT = OUTPUT / "figures"
WEIGHTS = ROOT / "assets" / "playground"
#: The measurements of each kind, in the order of the report: (folder, module).
MEASUREMENTS = {
    "quality": (
        ("lab/evaluate", "am_adapter"),
        ("lab/evaluate", "ca2sis"),
        ("lab/evaluate", "ifadapter"),
        ("lab/evaluate", "paint_by_example"),
        ("lab/evaluate", "setup"),
        ("lab/evaluate", "snf"),
        ("lab/evaluate", "transformer"),
    ),
    "speed": (
        ("benchmarks", "am_adapter"),
        ("benchmarks", "ca2sis"),
        ("benchmarks", "ifadapter_injection"),
        ("benchmarks", "ifadapter_weight_free"),
        ("benchmarks", "joint"),
        ("benchmarks", "paint_by_example"),
        ("benchmarks", "playground_sampling"),
        ("benchmarks", "retrieval"),
        ("benchmarks", "semantic_maps"),
        ("benchmarks", "snf_mask"),
        ("benchmarks", "snf_run"),
    ),
}


def modules(kind: str, names: list[str] | None = None) -> list[str]:
    """The measurements of one kind, as module names inside the pack."""
    found = [ROOT / folder / f"{name}.py" for folder, name in MEASUREMENTS[kind]]
    unknown = set(names or ()) - {path.stem for path in found}
    if unknown:
        known = ", ".join(path.stem for path in found) or "none"
        raise Trouble(f"There is no measurement {sorted(unknown)[0]!r} of kind {kind}. There are: {known}.")
    for path in list(found):
        missing = [name for name in _constant(path, "NEEDS") or () if not (WEIGHTS / f"{name}.safetensors").is_file()]
        if missing:
            say(f"  {path.stem}: not measured, this version ships no {missing[0]}")
            found.remove(path)
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found if not names or path.stem in names]


def measure(environment: Environment, host: Host, *, kind: str, names: list[str] | None = None, quick: bool = False) -> int:
    """Run the measurements of one kind and keep their figures; 1 when one fails or misses its target."""
    found = modules(kind, names)
    if not found:
        raise Trouble(f"This version of the pack has no measurement of kind {kind} yet.")
    return int(sum(not _measure(environment, host, module, quick) for module in found) > 0)


def for_demo(environment: Environment, host: Host) -> tuple[list[dict], bool]:
    """Every figure of quality for the demo's report, and whether all of them could be had."""
    complete = True
    for module in modules("quality"):
        kept = read(module)
        if kept is None or kept["fingerprint"] != fingerprint():
            complete = _measure(environment, host, module, True) and complete
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    return [record for record in records if record["fingerprint"] == fingerprint()], complete


def read(module: str) -> dict | None:
    """The kept record of a measurement."""
    path = KEPT / f"{module}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def shown(figure: dict) -> str:
    """A figure's value as people read it."""
    value, unit = figure["value"], figure.get("unit", "")
    if unit == "%":
        return f"{100 * value:.1f} %"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".strip()


def fingerprint() -> str:
    """What the figures depend on: the pack's code and weights."""
    digest = hashlib.sha256()
    for folder in ("py", "nodes", "lab", "benchmarks", "assets"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _measure(environment: Environment, host: Host, module: str, quick: bool) -> bool:
    """Run one measurement, print its figures as they come, and keep them."""
    say(f"  Measuring {module}{' (quick)' if quick else ''}")
    command = [
        str(environment.python),
        str(ROOT / "devtools" / "inside.py"),
        "--figures",
        module,
        *(["--quick"] if quick else []),
    ]
    started, found = time.monotonic(), []
    with subprocess.Popen(command, cwd=ROOT, env=variables(host), stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout or ():
            if not line.startswith("FIGURE "):
                say("    " + line.rstrip())
                continue
            figure = json.loads(line[len("FIGURE ") :])
            found.append(figure)
            goal = f"  (asked: {figure['target']}{'' if figure.get('ok', True) else ', MISSED'})" if figure.get("target") else ""
            say(f"    {figure['name']}: {shown(figure)}{goal}")
    record = {"module": module, "quick": quick, "host": host.version, "machine": f"{platform.system()} {platform.machine()}"}
    record |= {"fingerprint": fingerprint(), "seconds": round(time.monotonic() - started, 1), "figures": found}
    KEPT.mkdir(parents=True, exist_ok=True)
    if process.returncode == 0:
        (KEPT / f"{module}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    else:
        say(f"  {module} failed.")
    return process.returncode == 0 and all(figure.get("ok", True) for figure in found)


def _constant(path: Path, name: str) -> Any:
    """A constant that a module states, read without running it; None if it does not."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None
