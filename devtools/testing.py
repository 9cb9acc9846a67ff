"""`test` and `lint`: every lane in a separate process, and a table at the end that says what ran and how long it took."""

from __future__ import annotations

import os
import subprocess
import time

from .environment import Environment
from .hosts import Host
from .places import ROOT, RUNS, in_ci
from .say import Trouble, say

LANES = ("lint", "unit", "host", "conformance", "server", "browser")
CHECKED = ("dev.py", "devtools", "nodes", "py", "lab", "tests", "benchmarks", "__init__.py")


def chosen(names: list[str]) -> list[str]:
    """The lanes asked for, in their order; all of them when none is named."""
    unknown = sorted(set(names) - set(LANES))
    if unknown:
        raise Trouble(f"There is no test lane {unknown[0]!r}. The lanes are: {', '.join(LANES)}.")
    return [lane for lane in LANES if not names or lane in names]


def run(environment: Environment, host: Host, lanes: list[str], extra: list[str]) -> int:
    """Run the lanes; every lane runs, whatever the one before it did."""
    results = []
    for lane in lanes:
        say(f"\n== {lane} ==")
        started = time.monotonic()
        code = _lint(environment) if lane == "lint" else _pytest(environment, host, lane, extra)
        results.append((lane, code, time.monotonic() - started))
    say(f"\nComfyUI {host.version}, Python in {environment.folder}")
    for lane, code, seconds in results:
        say(f"  {lane:12} {'passed' if code == 0 else 'FAILED'}  {seconds:6.1f} s")
    return int(any(code for _, code, _ in results))


def inside(environment: Environment, host: Host, module: str, arguments: list[str]) -> int:
    """Run a module of the pack in the environment, the host importable; its `main(arguments)` returns the exit code."""
    command = [str(environment.python), str(ROOT / "devtools" / "inside.py"), module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables(host), check=False).returncode


def train(environment: Environment, host: Host, arguments: list[str], processes: int) -> int:
    """Run lab/train.py, the command that users run, in the environment; with several processes, one per graphics card."""
    # Processes on the CPU where there is no graphics card; the rest of accelerate's options are its configuration's.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)] if processes > 1 else []
    command = [str(environment.python), *launcher, str(ROOT / "lab" / "train.py"), *arguments, "--comfyui", str(host.folder)]
    return subprocess.run(command, cwd=ROOT, env=variables(host), check=False).returncode


def variables(host: Host | None) -> dict[str, str]:
    """The process environment of everything that runs in the environment."""
    values = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    values.pop("PYTHONPATH", None)
    values.pop("EXEMPLARY_HOST", None)
    if host is not None:
        values["EXEMPLARY_HOST"] = str(host.folder)
        if host.checkout:
            values["EXEMPLARY_HOST_CHECKOUT"] = "1"
            values["PYTHONPYCACHEPREFIX"] = str(RUNS / "bytecode")
    return values


def _pytest(environment: Environment, host: Host, lane: str, extra: list[str]) -> int:
    """One folder of tests. The `pytest` script and importlib mode keep the pack's root off `sys.path`."""
    folder = ROOT / "tests" / lane
    if not folder.is_dir():
        say(f"There is no tests/{lane}.")
        return 1
    command = [str(environment.script("pytest")), str(folder), "--import-mode=importlib", "-q", *extra]
    code = subprocess.run(command, cwd=ROOT, env=variables(None if lane == "unit" else host), check=False).returncode
    if code == 5 and not extra:
        say(f"tests/{lane} holds no test that ran.")
    return 0 if code == 5 and extra else code


def _lint(environment: Environment) -> int:
    paths = [path for path in CHECKED if (ROOT / path).exists()]
    commands = [
        [environment.script("ruff"), "check", *paths],
        [environment.script("ruff"), "format", "--check", *paths],
        [environment.script("mypy"), "--no-error-summary"],
    ]
    codes = [
        subprocess.run([str(part) for part in command], cwd=ROOT, env=variables(None), check=False).returncode
        for command in commands
    ]
    if codes[1] and not in_ci():
        say(f"To format: {environment.script('ruff')} format .")
    return int(any(codes))
