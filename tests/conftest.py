"""Puts the pack under the name `pack` without putting its root on `sys.path`.

The root holds `py` and `nodes`, names that belong to pytest's shim and to the host. Tests say `from pack.py.semantic ... import ...`.
With EXEMPLARY_HOST set (dev.py does) that ComfyUI is importable too, on the CPU; tests/host and tests/browser need it.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = os.environ.get("EXEMPLARY_HOST")

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules.setdefault("pack", pack)

if HOST:
    sys.path.insert(0, HOST)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
else:
    collect_ignore_glob = ["host/*", "server/*", "browser/*"]
