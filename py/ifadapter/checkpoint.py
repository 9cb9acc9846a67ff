"""Files of IFAdapter weights -> `Config` and a state dict of `model.IFAdapter`, and back.

Three formats are supported:
- the published pickle `spd_adapter.bin` (WuYW/IFAdapter): {text_proj_model, adapter_modules, pos_net}, each a state dict; for SDXL;
- the same as safetensors, names joined by dots;
- the pack's own: safetensors with those names and the `Config` as JSON in the metadata, for any base.

Names and shapes must match exactly: a missing or additional weight means that the file is for something else, and the only symptom
would be images that ignore their boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..weight_files import read_weights
from .model import SDXL, Config, weight_shapes

log = logging.getLogger("exemplary")

GROUPS = ("text_proj_model", "adapter_modules", "pos_net")
FORMAT = "exemplary.ifadapter"
CONFIG_KEY = "ifadapter_config"
SHOWN = 3  # how many wrong names a message lists


def metadata(config: Config) -> dict[str, str]:
    """The metadata of the pack's own format."""
    return {"format": FORMAT, CONFIG_KEY: config.to_json()}


def parse_state_dict(
    weights: Mapping[str, Tensor], file_metadata: Mapping[str, str] | None = None
) -> tuple[Config, dict[str, Tensor]]:
    """Find out which adapter a state dict in any of the three formats is.

    Args:
        weights: by dotted names, as `read_weights` returns them.
        file_metadata: the file's metadata. Without a configuration in it the published SDXL adapter is expected.

    Returns:
        The configuration and the state dict, checked against it; tensors are not copied.

    Raises:
        ValueError: naming what was found and what is needed.
    """
    text = (file_metadata or {}).get(CONFIG_KEY)
    config = SDXL if text is None else Config.from_json(text)
    found = sorted({name.partition(".")[0] for name in weights})
    if set(found) != set(GROUPS):
        raise ValueError(
            f"The file contains {_some(found)}; an IFAdapter file contains the groups {', '.join(GROUPS)}. It is another kind of file."
        )
    check_state_dict(weights, config)
    return config, dict(weights)


def check_state_dict(state: Mapping[str, Tensor], config: Config) -> None:
    """Raise a ValueError unless names and shapes are exactly those of the adapter that `config` describes."""
    needed = weight_shapes(config)
    missing = [name for name in needed if name not in state]
    extra = [name for name in state if name not in needed]
    wrong = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in needed.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    numbers = [f"{name} is {state[name].dtype}" for name in needed if name in state and not state[name].is_floating_point()]
    complaints = [
        *([f"{len(missing)} of {len(needed)} weights are missing ({_some(missing)})"] if missing else []),
        *([f"{len(extra)} weights do not belong to it ({_some(extra)})"] if extra else []),
        *([f"{len(wrong)} weights have another shape ({_some(wrong, '; ')})"] if wrong else []),
        *([f"weights must be floating point ({_some(numbers)})"] if numbers else []),
    ]
    if complaints:
        keys = [layer.key for layer in config.layers]
        what = f"an adapter of {len(keys)} layers ({_some(keys)}) for text encoders {' + '.join(name for name, _ in config.encoders)}"
        raise ValueError(f"The file does not match {what}: {'; '.join(complaints)}. Download or convert it again.")


def read(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Read a file of any of the three formats onto the CPU.

    Raises:
        ValueError: naming the file, if it cannot be read, is another kind of file, or contains NaN or infinite weights.
    """
    name, (weights, file_metadata) = Path(path).name, read_weights(path)
    try:
        config, state = parse_state_dict(weights, file_metadata)
        return config, {key: _to_computable(key, weight) for key, weight in state.items()}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _to_computable(name: str, weight: Tensor) -> Tensor:
    """The weight in a number format that every operation supports. Raises ValueError if it contains NaN or infinite values."""
    if weight.dtype.itemsize == 1:  # float8: normalisation layers have no kernels for it
        weight = weight.half()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"The weight {name} contains NaN or infinite values: the training failed or the file is damaged.")
    return weight


def save(path: str | Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Write the pack's own format. Weights keep their number format."""
    state = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    check_state_dict(state, config)
    save_file(state, str(path), metadata=metadata(config))


def convert(source: str | Path, target: str | Path | None = None) -> Path:
    """Write a file of any format in the pack's own, by default next to the source as .safetensors. An existing file is never overwritten."""
    source = Path(source)
    target = Path(target) if target else source.with_suffix(".safetensors")
    if target.exists():
        raise ValueError(f"{target.name} exists already and is not overwritten. Choose another name, or move it.")
    config, state = read(source)
    save(target, config, state)
    return target


def main(arguments: list[str]) -> int:
    """Convert FILE [TARGET] to the pack's own format; `dev.py convert-weights ifadapter FILE`. Returns the exit code."""
    try:
        log.info("%s is written.", convert(*arguments[:2]))
    except ValueError as error:
        log.error("%s", error)
        return 1
    return 0


def _some(names: list[str], between: str = ", ") -> str:
    more = len(names) - SHOWN
    return between.join(ascii(name)[1:-1] for name in names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
