"""Files that a training writes: checkpoints that resume it, and weights; a file is complete or not there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger("exemplary")

PARTS = ("modules", "optimizer", "average", "step")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside the older one, then replace that.

    Raises:
        ValueError: it cannot be written; the older one is kept.
    """
    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(path)  # a run that is stopped here keeps the older checkpoint whole
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise ValueError(_describe_failure(path, error) + " The checkpoint before it is kept.") from None


def load_checkpoint(path: Path, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Read a checkpoint and put its weights into the modules.

    Raises:
        ValueError: the file is damaged, or of another training; names it and what to do.
    """
    remedy = "Rename or delete it to start again, or give another name or output folder."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files; its own advice is not safe to pass on
        raise ValueError(f"The checkpoint {path} cannot be read ({type(error).__name__}): it is damaged. {remedy}") from None
    if not isinstance(state, dict) or any(part not in state for part in PARTS):
        raise ValueError(f"The file {path} is not a checkpoint of this trainer. {remedy}")
    try:
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
        named = {
            f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters() if p.requires_grad
        }
        if {key: value.shape for key, value in state["average"].items()} != {key: p.shape for key, p in named.items()}:
            raise KeyError("average")
        if not isinstance(state["step"], int):
            raise TypeError("step")
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise ValueError(
            f"The checkpoint {path} belongs to another training: its modules or their sizes differ from the recipe's. {remedy}"
        ) from None
    return state


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a .safetensors file, floating-point ones in float16. Raises ValueError if it cannot be written."""
    half = {key: value.detach().half() if value.is_floating_point() else value for key, value in state.items()}
    write_file(path, lambda: save_file({key: value.cpu().contiguous().clone() for key, value in half.items()}, path, metadata))


def write_file(path: Path, write: Any) -> None:
    """Call `write()`, which writes `path`, and log it. Raises ValueError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(_describe_failure(path, error)) from None
    log.info("wrote %s", path)


def _describe_failure(path: Path, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    except OSError:
        free = "its folder cannot be read"
    return f"{path} cannot be written ({reason}; {free}). Free space or give another output folder, and start the same command again."
