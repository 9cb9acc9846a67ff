"""Runs inside the environment: `inside.py MODULE ARGUMENTS...` imports the pack's MODULE and calls its `main(arguments)`.

`inside.py --figures MODULE [--quick]` prints the figures of a measurement instead (see figures.py).

The pack is put under the name `pack` without its root on `sys.path` (its `py` and `nodes` would hide others' modules), and the
ComfyUI in EXEMPLARY_HOST is made importable, on the CPU.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(module: str) -> types.ModuleType:
    """Import one module of the pack by its path inside the pack, for example `py.playground.evaluation`."""
    if "pack" not in sys.modules:
        sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() not in (ROOT, ROOT / "devtools")]
        pack = types.ModuleType("pack")
        pack.__path__ = [str(ROOT)]
        sys.modules["pack"] = pack
        host = os.environ.get("EXEMPLARY_HOST")
        if host:
            sys.path.insert(0, host)
            import comfy.cli_args

            comfy.cli_args.args.cpu = True
    return importlib.import_module(f"pack.{module}")


def figures(module: str, quick: bool) -> int:
    """Print the figures of a measurement, one line of JSON each as soon as it is known, without the host's progress bars between them."""
    import torch

    measured = load(module)
    if "comfy.utils" in sys.modules:
        sys.modules["comfy.utils"].set_progress_bar_enabled(False)
    with torch.no_grad():
        for figure in measured.figures(quick):
            sys.stdout.write(f"FIGURE {json.dumps(figure)}\n")
            sys.stdout.flush()
    return 0


def show_progress() -> None:
    """Let the pack's own messages be seen; the host sets up the root logger as soon as it is imported, without them."""
    ours = logging.getLogger("exemplary")
    ours.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.propagate = False


if __name__ == "__main__":
    show_progress()
    if sys.argv[1] == "--figures":
        sys.exit(figures(sys.argv[2], "--quick" in sys.argv))
    sys.exit(load(sys.argv[1]).main(sys.argv[2:]))
