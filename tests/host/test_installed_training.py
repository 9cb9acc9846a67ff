"""Training from an installed pack: the registry's zip inside a ComfyUI folder, started with that Python and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate", reason="training needs accelerate (requirements-dev.txt)")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "style_dim": 4, "encoder_width": 1, "grid": [4, 4], "mask_size": [8, 8], "head_dims": [2, 2, 2, 2, 2], "noise_dim": 4,
    "noise_width": 8,
}  # fmt: skip


def ignored(path: str) -> bool:
    """Whether .comfyignore keeps a file out of the zip."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return any(path == pattern or (pattern.endswith("/") and path.startswith(pattern)) for pattern in patterns)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A ComfyUI folder whose custom_nodes contain the pack as the registry's zip has it; big files are links."""
    comfyui = tmp_path_factory.mktemp("ComfyUI")
    for entry in Path(os.environ["EXEMPLARY_HOST"]).iterdir():
        if entry.name not in ("custom_nodes", "output", "input", "user", "temp"):
            (comfyui / entry.name).symlink_to(entry)
    pack = comfyui / "custom_nodes" / "exemplary"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\n")):
        if not ignored(name) and (ROOT / name).is_file():
            (pack / name).parent.mkdir(parents=True, exist_ok=True)
            if name.startswith(("assets/", "example_workflows/")):
                (pack / name).symlink_to(ROOT / name)
            else:
                shutil.copy(ROOT / name, pack / name)
    return pack


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    for folder, shape, high in (("images", (70, 80, 3), 255), ("maps", (70, 80), 3)):
        (tmp_path / folder).mkdir()
        Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    values = {
        "output": str(tmp_path / "out"), "classes": ["none", "skin", "hair"], "images": str(tmp_path / "images"),
        "maps": str(tmp_path / "maps"), "config": SMALL, "batch": 1, "steps": 2,
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    return tmp_path / "recipe.json"


def start(installed, *arguments, launcher=(), **environment):
    """Run the pack's lab/train.py with this Python from another folder; neither the tests' path nor their variables go along."""
    values = {key: value for key, value in os.environ.items() if not key.startswith(("EXEMPLARY", "PYTHON", "COMFYUI"))}
    command = [sys.executable, *launcher, str(installed / "lab" / "train.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=installed.parents[2], env=values | environment, capture_output=True, text=True, check=False, timeout=900
    )


def test_the_zip_has_the_trainers_and_neither_tests_nor_the_making_of_the_playground(installed):
    assert (installed / "lab" / "train.py").is_file() and (installed / "lab" / "trainers" / "snf.py").is_file()
    assert not [name for name in ("tests", "devtools", "dev.py", "lab/playground", "lab/evaluate") if (installed / name).exists()]


def test_a_recipe_trains_and_resumes_under_accelerate(installed, recipe):
    done = start(installed, "ca2sis", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (recipe.parent / "out" / "ca2sis.safetensors").is_file() and "1 images" in done.stderr
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"steps": 3}))
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--cpu"]
    again = start(installed, "ca2sis", recipe, launcher=[*launcher, "--mixed_precision", "no", "--dynamo_backend", "no"])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step 2 of 3" in again.stderr


def test_every_trainer_imports_there_and_lists_its_fields(installed):
    """One process for all: the modules are imported as the command imports them."""
    code = (
        "import runpy, sys\n"
        f"train = runpy.run_path({str(installed / 'lab' / 'train.py')!r})\n"
        "for technique in train['TECHNIQUES']:\n"
        "    assert train['main']([technique]) == 0\n"
    )
    values = {key: value for key, value in os.environ.items() if not key.startswith(("EXEMPLARY", "PYTHON", "COMFYUI"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env=values, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("All fields:") >= 5 and "learning_rate: a number, default 1e-05" in done.stderr


def test_a_missing_package_and_a_missing_comfyui_are_one_sentence(installed, recipe, tmp_path, monkeypatch):
    import importlib.util
    import runpy

    find = importlib.util.find_spec
    train = runpy.run_path(str(installed / "lab" / "train.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else find(name, *more))
    with pytest.raises(ValueError, match=r"Training needs accelerate, which this Python does not have. Install with: .* -m pip"):
        train["prepare_imports"](installed.parents[1])
    with pytest.raises(ValueError, match=r"is not a ComfyUI folder: it has no main.py and comfy/"):
        train["find_comfyui"](str(tmp_path))
    assert train["find_comfyui"](None) == installed.parents[1]
