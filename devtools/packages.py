"""pip, quietly, with its failures put into plain sentences."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .places import FREE_GB, PYTHONS
from .say import Trouble


def pip(python: Path, *arguments: str, log: Path) -> None:
    """Run pip quietly; on failure say what to do, and where the whole output is."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(python),
        "-m",
        "pip",
        *arguments,
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise Trouble(explain(log.read_text(encoding="utf-8", errors="replace"), log))


def explain(output: str, log: Path) -> str:
    """Turn pip's output into one plain sentence and the remedy."""
    last = "\n".join("    " + line for line in output.strip().splitlines()[-4:])
    tail = f"\n{last}\n  The whole output is in {log}."
    if re.search(r"No space left on device|Errno 28|WinError 112|not enough space", output):
        return f"The disk is full: free about {FREE_GB} GB and start the same command again; it goes on where it stopped.{tail}"
    if re.search(
        r"NewConnectionError|ConnectionError|ConnectTimeout|Read timed out|ReadTimeout|name resolution|getaddrinfo|ProxyError"
        r"|SSLError|IncompleteRead",
        output,
    ):
        return f"A download failed: check the network (or your proxy's settings) and start the same command again; it goes on where it stopped.{tail}"
    if re.search(r"No matching distribution|Could not find a version|Requires-Python", output):
        low, high = (".".join(map(str, version)) for version in PYTHONS)
        return (
            f"pip found no package that fits this Python. Use Python {low} to {high}, "
            f"for example with --python python3.12, or check your package index.{tail}"
        )
    if "do not match the hashes" in output:
        return f"A downloaded file was damaged: run `pip cache purge` and start the same command again.{tail}"
    return f"pip could not install what is needed.{tail}"
