"""Files of IFAdapter weights -> `Config` and a state dict of `model.IFAdapter`, and back.

Three layouts are read:
- the published pickle `spd_adapter.bin` (WuYW/IFAdapter): {text_proj_model, adapter_modules, pos_net}, each a state dict; for SDXL;
- the same as safetensors, names joined by dots;
- our own: safetensors with those names and the `Config` as JSON in the metadata, for any base.

Names and shapes must fit exactly: a weight too many or too few means that the file is for something else, and would be heard of only
as a picture that ignores its boxes.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .model import SDXL, Config, IFAdapter, shapes

log = logging.getLogger("exemplary")

GROUPS = ("text_proj_model", "adapter_modules", "pos_net")
FORMAT = "exemplary.ifadapter"
CONFIG_KEY = "ifadapter_config"
SHOWN = 3  # how many wrong names a message lists


def metadata(config: Config) -> dict[str, str]:
    """The metadata of our own layout."""
    return {"format": FORMAT, CONFIG_KEY: config.to_json()}


def parse_state_dict(weights: Mapping[str, Any], described: Mapping[str, str] | None = None) -> tuple[Config, dict[str, Tensor]]:
    """Say what adapter a state dict in any of the three layouts is.

    Args:
        weights: as loaded; nested by group as published, or flat.
        described: the file's metadata. Without a description in it the published SDXL adapter is expected.

    Returns:
        The description and the flat state dict, checked against it; tensors are not copied.

    Raises:
        ValueError: naming what was found and what is needed.
    """
    text = (described or {}).get(CONFIG_KEY)
    config = SDXL if text is None else Config.from_json(text)
    state = flat(weights)
    check(state, config)
    return config, state


def flat(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Nested groups or dotted names -> dotted names."""
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"The file holds {_kind(weights)}; an IFAdapter file holds the groups {', '.join(GROUPS)}.")
    state: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            state.update({f"{name}.{key}": weight for key, weight in value.items()})
        else:
            state[str(name)] = value
    found = sorted({name.partition(".")[0] for name in state})
    if set(found) != set(GROUPS):
        raise ValueError(
            f"The file holds {_some(found)}; an IFAdapter file holds the groups {', '.join(GROUPS)}. It is another kind of file."
        )
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"The file is damaged: {odd[0]} is {_kind(state[odd[0]])}, not a tensor.")
    return state


def check(state: Mapping[str, Tensor], config: Config) -> None:
    """Raise a ValueError unless names and shapes are exactly those of the adapter that `config` describes."""
    needed = shapes(config)
    missing = [name for name in needed if name not in state]
    extra = [name for name in state if name not in needed]
    wrong = [
        f"{name} is {list(state[name].shape)}, needed is {list(shape)}"
        for name, shape in needed.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    numbers = [f"{name} holds {state[name].dtype}" for name in needed if name in state and not state[name].is_floating_point()]
    complaints = [
        *([f"{len(missing)} of {len(needed)} weights are missing ({_some(missing)})"] if missing else []),
        *([f"{len(extra)} weights do not belong to it ({_some(extra)})"] if extra else []),
        *([f"{len(wrong)} weights have another shape ({_some(wrong, '; ')})"] if wrong else []),
        *([f"weights must be floating point ({_some(numbers)})"] if numbers else []),
    ]
    if complaints:
        keys = [layer.key for layer in config.layers]
        what = f"an adapter of {len(keys)} layers ({_some(keys)}) for text encoders {' + '.join(name for name, _ in config.encoders)}"
        raise ValueError(f"The file does not fit {what}: {'; '.join(complaints)}. Download or convert it again.")


def read(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Read a file of any of the three layouts onto the CPU. No code in it is executed."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "pt") as file:
                described, weights = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            described, weights = {}, torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "nothing could be unpickled"
        raise ValueError(f"{path.name} is damaged or holds more than weights, and was not loaded ({reason}).") from None
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path.name} cannot be read: {str(error).splitlines()[0] if str(error) else 'it ends early'}."
        ) from None
    try:
        return parse_state_dict(weights, described)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def save(path: str | Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Write our own layout. Weights keep their type."""
    state = {name: weight.detach().cpu().contiguous() for name, weight in flat(weights).items()}
    check(state, config)
    save_file(state, str(path), metadata=metadata(config))


def convert(source: str | Path, target: str | Path | None = None) -> Path:
    """Write a file of any layout in our own, by default beside the source as .safetensors; never over a file that is there."""
    source = Path(source)
    target = Path(target) if target else source.with_suffix(".safetensors")
    if target.exists():
        raise ValueError(f"{target.name} exists already and stays as it is. Give another name, or move it away.")
    config, state = read(source)
    save(target, config, state)
    return target


def main(arguments: list[str]) -> int:
    """Convert FILE [TARGET] to our own layout; `dev.py convert-weights ifadapter FILE`. Returns the exit code."""
    try:
        log.info("%s is written.", convert(*arguments[:2]))
    except ValueError as error:
        log.error("%s", error)
        return 1
    return 0


def build(
    config: Config,
    weights: Mapping[str, Tensor],
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> IFAdapter:
    """The adapter with these weights, for use outside of a host (tests, evaluation).

    Args:
        config, weights: from `read` or `parse_state_dict`; the tensors themselves become the parameters.
        dtype, device: to which each weight is brought first; None leaves it as it is.
    """
    network = IFAdapter(config, operations=operations, device="meta")
    state = {name: weight.to(device=device, dtype=dtype) for name, weight in weights.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _some(names: list[str], between: str = ", ") -> str:
    more = len(names) - SHOWN
    return between.join(ascii(name)[1:-1] for name in names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "nothing" if not value else "a mapping"
    return "nothing" if value is None else f"a {type(value).__name__}"
