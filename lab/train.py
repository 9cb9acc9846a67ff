"""Trains a technique on your own data: `python custom_nodes/<this pack>/lab/train.py TECHNIQUE RECIPE`.

Run it with ComfyUI's own Python; `accelerate launch lab/train.py TECHNIQUE RECIPE` uses several graphics cards. RECIPE is a JSON file;
without it the fields of the technique's recipe are listed. ComfyUI is found from where the pack is installed, or by --comfyui DIR.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import sys
import types
from pathlib import Path

HERE = Path(__file__).absolute()  # not resolved: a pack that is linked into custom_nodes finds the ComfyUI of the link
PACK = HERE.parents[1]
TECHNIQUES = ("am_adapter", "ca2sis", "ifadapter", "paint_by_example", "snf")
NEEDED = ("accelerate", "diffusers")

log = logging.getLogger("exemplary")


def find_comfyui(given: str | None) -> Path:
    """The folder of ComfyUI: the given one, that of COMFYUI_PATH, or the one that contains this pack or the current folder.

    Raises:
        ValueError: none of them is a ComfyUI; says which option names it.
    """
    named = given or os.environ.get("COMFYUI_PATH")
    if named:
        if _is_comfyui(Path(named)):
            return Path(named).absolute()
        raise ValueError(f"{named} is not a ComfyUI folder: it has no main.py and comfy/. Name the folder that contains main.py.")
    for start in (PACK, PACK.resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if _is_comfyui(folder):
                return folder
    raise ValueError(f"No ComfyUI contains {PACK} or the current folder. Name its folder with --comfyui DIR.")


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def prepare_imports(comfyui: Path) -> str:
    """Make ComfyUI importable and the pack a package; returns the package's name.

    Raises:
        ValueError: a package that training needs is not installed; says how to install it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise ValueError(
            f"Training needs {names}, which this Python does not have. Install with: {sys.executable} -m pip install {names}"
        )
    # The folders of the pack are named like modules of others (py, nodes): none of them may be on the path.
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() not in (PACK.resolve(), HERE.parent.resolve())]
    sys.path.insert(0, str(comfyui))
    package = types.ModuleType("exemplary_pack")
    package.__path__ = [str(PACK)]
    sys.modules[package.__name__] = package
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    extra_paths = comfyui / "extra_model_paths.yaml"
    if extra_paths.is_file():
        from utils.extra_config import load_extra_path_config

        load_extra_path_config(str(extra_paths))
    return package.__name__


def main(arguments: list[str] | None = None) -> int:
    """Train by a recipe. Returns the exit code: 0, 1 after a message of what is wrong, 130 after Ctrl+C."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train a technique of Exemplary on your own data.")
    parser.add_argument("technique", metavar="TECHNIQUE", choices=TECHNIQUES, help=", ".join(TECHNIQUES))
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a JSON file; without it the fields of a recipe are listed")
    parser.add_argument("--comfyui", metavar="DIR", help="the folder of ComfyUI (default: the one that the pack is installed in)")
    options = parser.parse_args(arguments)
    recipe = Path(options.recipe).absolute() if options.recipe else None
    show_messages()
    try:
        package = prepare_imports(find_comfyui(options.comfyui))
        shared = importlib.import_module(f"{package}.lab.training.recipe")
        trainer = importlib.import_module(f"{package}.lab.trainers.{options.technique}")
    except ValueError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    kind = next(each for each in vars(trainer).values() if isinstance(each, type) and each.__module__ == trainer.__name__
                and issubclass(each, shared.TrainingRecipe))  # fmt: skip
    if recipe is None:
        log.info("%s", shared.describe_recipe(kind))
        return 0
    return shared.run_recipe(kind, trainer.train, recipe)


def show_messages() -> None:
    """Show the pack's own messages; ComfyUI sets up the root logger for warnings only."""
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
