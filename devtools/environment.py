"""The virtual environment: made once, stamped step by step, reused as long as the requirements stay the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import hosts
from .hosts import Host
from .packages import pip
from .places import FREE_GB, PYTHONS, ROOT, RUNS, TORCH, TORCHAUDIO, WINDOWS
from .say import Trouble, say, step

STAMP = "exemplary-stamp.json"


@dataclass(frozen=True)
class Environment:
    """A Python with its packages. `ours` is False for an environment that somebody else made: it is used as it is."""

    folder: Path
    ours: bool = True

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if WINDOWS else "bin")

    @property
    def python(self) -> Path:
        return self.scripts / ("python.exe" if WINDOWS else "python")

    def script(self, name: str) -> Path:
        """The path of a command that a package installed."""
        return self.scripts / (name + ".exe" if WINDOWS else name)


def prepare(host: Host, *, python: str | None, venv: str | None, fresh: bool = False, dev: bool = False) -> Environment:
    """Make the environment for `host`, or what is missing of it.

    Args:
        python: the interpreter to make it with; the one that runs dev.py by default.
        venv: the folder of another environment. One that dev.py did not make is used untouched.
        fresh: make it anew even if it is complete.
        dev: also install what the tests and the linters need.
    """
    folder = Path(venv).resolve() if venv else ROOT / (".venv" if host.ours else f".venv-host-{host.version}")
    environment = Environment(folder)
    if folder.exists() and not (folder / STAMP).exists() and venv:
        hosts.fetch(host, environment.python)
        return _foreign(environment)
    base = python or getattr(sys, "_base_executable", None) or sys.executable
    version = _python_version(base)
    if folder.exists() and (fresh or not _usable(environment, version)):
        with step(f"Removing the old environment {folder.name}"):
            shutil.rmtree(folder)
    if not folder.exists():
        _enough_room()
        say(f"Making {folder.name} with Python {version} for ComfyUI {host.version}. The first time takes some minutes.")
        _make(environment, base, version)
    hosts.fetch(host, environment.python)
    for name, arguments in _steps(host, dev):
        _install(environment, name, arguments, version)
    return environment


def _steps(host: Host, dev: bool) -> list[tuple[str, list[str]]]:
    """What to install, in order: torch before anything that would choose another one."""
    steps = [
        ("torch", list(TORCH)),
        ("torchaudio", ["--no-deps", TORCHAUDIO]),
        (f"what ComfyUI {host.version} needs", ["-r", str(_without_torch(host)), *_pins()]),
        ("what the pack needs", ["-r", str(ROOT / "requirements.txt"), *_pins()]),
    ]
    if dev:
        steps.append(("what the tests need", ["-r", str(ROOT / "requirements-dev.txt"), *_pins()]))
    return steps


def _without_torch(host: Host) -> Path:
    """The host's own requirements without the three packages that are already there."""
    lines = (host.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not re.match(r"\s*torch(vision|audio)?\s*($|[=<>~!;\[#])", line)]
    path = RUNS / f"requirements-{host.version}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def _pins() -> list[str]:
    path = RUNS / "constraints.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(TORCH) + "\n", encoding="utf-8")
    return ["-c", str(path)]


def _install(environment: Environment, name: str, arguments: list[str], version: str) -> None:
    """Run one step unless its stamp says that it was done with exactly these requirements."""
    digest = hashlib.sha256(version.encode())
    for argument in arguments:
        digest.update(Path(argument).read_bytes() if argument.endswith(".txt") else argument.encode())
    stamp = _stamp(environment)
    if stamp["steps"].get(name) == digest.hexdigest():
        return
    with step(f"Installing {name}"):
        pip(environment.python, "install", *arguments, log=RUNS / "logs" / f"install-{name.replace(' ', '-')}.log")
    stamp["steps"][name] = digest.hexdigest()
    (environment.folder / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def _stamp(environment: Environment) -> dict:
    return json.loads((environment.folder / STAMP).read_text(encoding="utf-8"))


def _make(environment: Environment, base: str, version: str) -> None:
    command = [base, "-m", "venv", str(environment.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(environment.folder, ignore_errors=True)
        output = done.stdout + done.stderr
        if "ensurepip" in output:
            raise Trouble(
                f"{base} cannot make virtual environments. On Debian or Ubuntu run `sudo apt-get install python3-venv` "
                "and start the same command again."
            )
        if "No space left" in output:
            raise Trouble(f"The disk is full: free about {FREE_GB} GB and start the same command again.")
        raise Trouble(f"{' '.join(command)} failed:\n    " + output.strip().replace("\n", "\n    "))
    (environment.folder / STAMP).write_text(json.dumps({"python": version, "steps": {}}), encoding="utf-8")


def _usable(environment: Environment, version: str) -> bool:
    """Whether the environment was made by us, with this Python, and still starts."""
    try:
        return _stamp(environment)["python"] == version and _python_version(str(environment.python)) == version
    except (OSError, ValueError, KeyError, Trouble):
        return False


def _foreign(environment: Environment) -> Environment:
    """An environment somebody else made: never installed into, only checked."""
    if not environment.python.exists():
        raise Trouble(
            f"--venv {environment.folder} is a folder without a Python in it. Name another folder, or one that does not exist yet."
        )
    probe = "import importlib.util as u, sys; print(' '.join(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    done = subprocess.run(
        [str(environment.python), "-c", probe, "torch", "torchvision", "aiohttp", "einops"],
        capture_output=True,
        text=True,
        check=False,
    )
    missing = done.stdout.split()
    if done.returncode or missing:
        raise Trouble(
            f"The environment {environment.folder} was not made by dev.py and lacks "
            f"{', '.join(missing) or 'a working Python'}. Install that there, or leave --venv away."
        )
    return Environment(environment.folder, ours=False)


def _python_version(python: str) -> str:
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-c", probe], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONNOUSERSITE": "1"}
        )
    except OSError as error:
        raise Trouble(f"Python {python!r} does not start ({error}). Name an interpreter that exists with --python.") from error
    version = done.stdout.strip()
    if done.returncode or not version:
        raise Trouble(f"Python {python!r} does not start. Name an interpreter that works with --python.")
    if tuple(map(int, version.split("."))) < PYTHONS[0]:
        raise Trouble(
            f"Python {version} ({python}) is too old: Python 3.10 or newer is needed. Name a newer one, for example --python python3.12."
        )
    return version


def _enough_room() -> None:
    free = shutil.disk_usage(ROOT).free / 2**30
    if sys.platform.startswith("linux") and free < FREE_GB:
        raise Trouble(
            f"The disk is nearly full: {free:.1f} GB are free at {ROOT}, and the environment takes up to {FREE_GB} GB. "
            "Free some space and start the same command again."
        )
