"""A live ComfyUI for the tests, of the host in EXEMPLARY_HOST and in the Python that runs the tests."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pack.devtools import server
from pack.devtools.environment import Environment
from pack.devtools.hosts import Host, version_of
from pack.devtools.workflow import needs

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
#: Those that run with what ships.
COMPLETE = [path for path in EXAMPLES if not needs(path)]
#: Workflows of host nodes only, for what the tools themselves must get right.
WORKFLOWS = [ROOT / "tests" / "workflows" / "core.json"]


def host() -> Host:
    """The host that dev.py handed over."""
    folder = Path(os.environ["EXEMPLARY_HOST"])
    return Host(folder, version_of(folder), checkout="EXEMPLARY_HOST_CHECKOUT" in os.environ)


@contextlib.contextmanager
def comfyui(name: str, **options) -> Iterator[server.Server]:
    """A running ComfyUI; see `devtools.server.running` for the options."""
    with server.running(Environment(Path(sys.prefix)), host(), f"test-{name}", **options) as running:
        yield running


def read(path: Path) -> dict:
    """A workflow as users save it."""
    return json.loads(path.read_text(encoding="utf-8"))
