"""A running ComfyUI with the pack in it: started on a free loopback port in a separate folder, and always stopped."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .environment import Environment
from .hosts import Host
from .places import ROOT, RUNS, WINDOWS
from .say import Trouble, say

SILENT_SECONDS = 300  # on a busy machine a start may take minutes, but it says something meanwhile
UNMOUNTED = shutil.ignore_patterns(".git", ".venv*", ".host", ".run", "output", "__pycache__", ".*_cache", "node_modules")
#: Loopback must not go through somebody's proxy.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass
class Server:
    """A ComfyUI that answers. `folder` holds its custom_nodes, input, output, temp and user folders."""

    process: subprocess.Popen
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "host.log"

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def log_tail(self, lines: int = 25) -> str:
        """The last lines the host wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join("    " + line for line in text.splitlines()[-lines:])


@contextlib.contextmanager
def running(
    environment: Environment,
    host: Host,
    name: str,
    *,
    port: int | None = None,
    keep: bool = False,
    mount_as: str = "exemplary",
    cpu: bool = True,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """Start the host, wait until it answers, and stop it however the block ends.

    Args:
        name: the run folder is `.run/<name>`, or `.run/<name>-<process id>` when it is not kept.
        port: a port that must be used; a free one by default.
        keep: leave the run folder, so that `serve` finds the user's workflows and settings again.
        mount_as: the pack's folder name under custom_nodes; the tests use names that are hard to import.
    """
    folder = RUNS / (name if keep else f"{name}-{os.getpid()}")
    _sweep()
    if not keep and folder.exists():
        _remove(folder)
    _mount(ROOT, folder / "custom_nodes", mount_as)
    for part in ("input", "output", "temp", "user", "models"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if port is not None and not is_free(port):
        raise Trouble(
            f"Port {port} is taken by another program. Choose another one with --port, or leave --port away for a free one."
        )
    server = None
    try:
        for attempt in range(3):  # a free port can be taken by somebody else before the host binds it
            server = _start(environment, host, folder, port or _free_port(), cpu, extra)
            if _wait(server):
                break
            _stop(server.process)
            if port is not None or attempt == 2 or "address already in use" not in server.log_tail(200).lower():
                keep = True  # the log explains it
                raise Trouble(
                    f"ComfyUI {host.version} did not start. Its last lines:\n{server.log_tail()}\n  The whole log is in {server.log}."
                )
        yield server  # type: ignore[misc]  # the loop either breaks with a server or raises
    finally:
        if server is not None:
            _stop(server.process)
        if not keep:
            _remove(folder)


def stop_on_signals() -> None:
    """Let SIGTERM and a closed terminal end dev.py through its `finally` blocks, as Ctrl-C does."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)


def _start(environment: Environment, host: Host, folder: Path, port: int, cpu: bool, extra: Sequence[str]) -> Server:
    command = [str(environment.python), str(host.folder / "main.py")]
    command += [
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-auto-launch",
        "--disable-api-nodes",
        "--base-directory",
        str(folder),
    ]
    command += ["--database-url", f"sqlite:///{(folder / 'user' / 'comfyui.db').as_posix()}"]
    command += ["--cpu"] if cpu else []
    command += [*_model_folders(host, folder), *extra]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    variables.pop("PYTHONPATH", None)
    if host.checkout:
        variables["PYTHONPYCACHEPREFIX"] = str(RUNS / "bytecode")  # nothing is written into somebody's checkout
    options: dict = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS else {"start_new_session": True}  # type: ignore[attr-defined]
    if sys.platform.startswith("linux"):
        options["preexec_fn"] = _die_with_parent
    with (folder / "host.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=variables, **options
        )
    atexit.register(_stop, process)
    return Server(process, port, folder)


def _wait(server: Server) -> bool:
    """Wait until the server answers; False when it ended instead."""
    deadline, written = time.monotonic() + SILENT_SECONDS, 0
    while time.monotonic() < deadline:
        size = server.log.stat().st_size
        if size != written:
            deadline, written = time.monotonic() + SILENT_SECONDS, size
        if not server.alive():
            return False
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            OPEN(server.url + "/system_stats", timeout=2) as response,
        ):
            if response.status == 200:
                return True
        time.sleep(0.2)
    say(f"  ComfyUI did not answer and said nothing for {SILENT_SECONDS} seconds.")
    return False


def _stop(process: subprocess.Popen) -> None:
    """End the host and everything it started: politely, then firmly."""
    if process.poll() is not None:
        return
    for wait, firmly in ((8, False), (5, True)):
        with contextlib.suppress(ProcessLookupError, PermissionError, OSError):
            if WINDOWS:
                if firmly:
                    subprocess.run(["taskkill", "/PID", str(process.pid), "/T", "/F"], capture_output=True, check=False)
                else:
                    process.send_signal(signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined]
            else:
                os.killpg(process.pid, signal.SIGKILL if firmly else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            return


def _die_with_parent() -> None:
    """Linux only, between fork and exec: even a killed dev.py leaves no server behind."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _mount(pack: Path, custom_nodes: Path, name: str) -> None:
    """Put the pack under `custom_nodes`: a link, on Windows a junction, and a copy where neither is possible."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    target = custom_nodes / name
    _unmount(target)
    try:
        os.symlink(pack, target, target_is_directory=True)
    except OSError:
        if WINDOWS:
            done = subprocess.run(["cmd", "/c", "mklink", "/J", str(target), str(pack)], capture_output=True, check=False)
            if done.returncode == 0:
                return
        shutil.copytree(pack, target, ignore=UNMOUNTED)


def _unmount(target: Path) -> None:
    if not os.path.lexists(target):
        return
    with contextlib.suppress(OSError):
        target.unlink()  # a symbolic link
        return
    with contextlib.suppress(OSError):
        target.rmdir()  # a junction
        return
    shutil.rmtree(target)  # a copy


def _sweep() -> None:
    """Remove yesterday's run folders, left by runs that were killed or did not start."""
    for folder in RUNS.glob("*-*/custom_nodes"):
        if time.time() - folder.stat().st_mtime > 24 * 3600:
            _remove(folder.parent)


def _remove(folder: Path) -> None:
    """Remove a run folder, the mounted pack first, so that nothing of the pack itself can go."""
    mounted = folder / "custom_nodes"
    for target in mounted.iterdir() if mounted.is_dir() else ():
        _unmount(target)
    shutil.rmtree(folder, ignore_errors=True)


def _model_folders(host: Host, folder: Path) -> list[str]:
    """Let a checkout's own models be found, though our run has a separate base directory."""
    models = host.folder / "models"
    if not host.checkout or not models.is_dir():
        return []
    found = {part.name: part.name for part in sorted(models.iterdir()) if part.is_dir()}
    config = folder / "models.yaml"
    config.write_text(json.dumps({"checkout": {"base_path": str(models), **found}}), encoding="utf-8")  # JSON is YAML
    return ["--extra-model-paths-config", str(config)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        if not WINDOWS:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
