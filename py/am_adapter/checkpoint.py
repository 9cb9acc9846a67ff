"""Files of AM-Adapter (arXiv 2412.03150): which keys and shapes they have, and the modules made from them.

Two layouts, both exact: the matcher's (72 tensors as published) and ControlNeXt's (52 tensors, as published for SD1.5). Sizes are read
from the shapes. Files of our own have the same keys in other sizes and say in their metadata how they were trained; a file that says
nothing is taken for the authors'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .agreement import CORRECTED, UPSTREAM, Behaviour
from .model import PUBLISHED_CONTROLNEXT, PUBLISHED_MATCHER, ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout

#: Where a file of ours says how it was trained (JSON in the safetensors metadata).
METADATA_KEY = "exemplary.am_adapter"
_BEHAVIOURS = {"upstream": UPSTREAM, "corrected": CORRECTED}
_WRAPPERS = ("state_dict", "model", "matcher", "controlnext")
_PREFIXES = ("module.", "matcher.", "controlnext.", "controlnet.", "model.")
_NAMED = 4  # how many keys a message names

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MatcherFile:
    """A matcher's weights and what has to be known to use them.

    Args:
        layout: sizes for the constructor of Matcher. weights: every tensor of it, under its own names.
        behaviour: the one it was trained with.
    """

    layout: MatcherLayout
    weights: dict[str, Tensor]
    behaviour: Behaviour


def matcher_shapes(layout: MatcherLayout = PUBLISHED_MATCHER) -> Shapes:
    """Every key of a matcher and its shape: 72 for the published layout."""
    with torch.device("meta"):
        return _shapes(Matcher(layout))


def controlnext_shapes(layout: ControlNeXtLayout = PUBLISHED_CONTROLNEXT) -> Shapes:
    """Every key of a ControlNeXt and its shape: 52."""
    with torch.device("meta"):
        return _shapes(ControlNeXt(layout))


def read_matcher(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> MatcherFile:
    """Recognise a matcher's file.

    Args:
        state: the file's tensors; prefixes such as `module.` and wrappers such as `state_dict` are allowed.
        metadata: of a safetensors file.

    Raises:
        ValueError: it is no matcher; names the keys that are missing, left over or of another shape.
    """
    weights = _unwrapped(state, "encoders.0.conv4d.0.0.query_conv.weight", "an AM-Adapter matcher")
    widths = _widths(weights)
    if 0 in widths:
        raise ValueError("This file is not an AM-Adapter matcher: some of its convolutions have no channels.")
    layout = MatcherLayout(heads=widths[-1], widths=widths[:-1])
    _check(weights, matcher_shapes(layout), "an AM-Adapter matcher")
    return MatcherFile(layout, weights, _behaviour(metadata))


def read_controlnext(state: Mapping[str, Any]) -> tuple[ControlNeXtLayout, dict[str, Tensor]]:
    """Recognise a ControlNeXt's file: sizes for the constructor, and weights under its own names.

    Raises:
        ValueError: it is no ControlNeXt of this layout; names the keys that are missing, left over or of another shape.
    """
    what = "a ControlNeXt"
    weights = _unwrapped(state, "embedding.0.weight", what)
    sized = ("embedding.0", "embedding.6", "down_res.1.conv1", "mid_convs.1", "time_embedding.linear_1")
    missing = [f"{key}.weight" for key in sized if f"{key}.weight" not in weights or weights[f"{key}.weight"].ndim < 2]
    if missing:
        raise ValueError(f"This file is not {what}: it lacks {_some(missing)}. Pick a file of the ControlNeXt layout for SD1.5.")
    stem, first, second, out, time = (tuple(weights[f"{key}.weight"].shape) for key in sized)
    if first[0] % 4 or second[0] % 8 or stem[0] % 2:
        raise ValueError(f"This file is not {what}: its channels {stem[0]}, {first[0]}, {second[0]} do not divide into groups.")
    layout = ControlNeXtLayout(out[0], (stem[0], first[0], second[0]), time[1], time[0])
    _check(weights, controlnext_shapes(layout), what)
    return layout, weights


def load_matcher(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None, **settings: Any) -> Matcher:
    """The matcher of a file. `settings` are operations, dtype and device."""
    file = read_matcher(state, metadata)
    matcher = Matcher(file.layout, **settings)
    matcher.load_state_dict(file.weights, strict=True)
    return matcher


def load_controlnext(state: Mapping[str, Any], **settings: Any) -> ControlNeXt:
    """The ControlNeXt of a file. `settings` are operations, dtype and device."""
    layout, weights = read_controlnext(state)
    network = ControlNeXt(layout, **settings)
    network.load_state_dict(weights, strict=True)
    return network


def matcher_metadata(layout: MatcherLayout, behaviour: Behaviour) -> dict[str, str]:
    """What to write beside the weights of a matcher of our own, for read_matcher to find."""
    name = next((name for name, known in _BEHAVIOURS.items() if known == behaviour), None)
    config = {"format": 1, "matcher": asdict(layout), "behaviour": name or asdict(behaviour)}
    return {METADATA_KEY: json.dumps(config)}


def _behaviour(metadata: Mapping[str, str] | None) -> Behaviour:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return UPSTREAM
    try:
        behaviour = json.loads(text)["behaviour"]
        return Behaviour(**behaviour) if isinstance(behaviour, dict) else _BEHAVIOURS[behaviour]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"This matcher's metadata {METADATA_KEY!r} is not understood ({error}). It may come from a newer version of this pack."
        ) from error


def _unwrapped(state: Mapping[str, Any], marker: str, what: str) -> dict[str, Tensor]:
    """The tensors under their own names: out of their wrappers, without what stands before the marker."""
    for name in _WRAPPERS:
        inner = state.get(name)
        if isinstance(inner, Mapping):
            return _unwrapped(inner, marker, what)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = ""
    while not any(key == prefix + marker for key in tensors):
        longer = next((prefix + p for p in _PREFIXES if any(key.startswith(prefix + p) for key in tensors)), None)
        if longer is None:
            raise ValueError(f"This file is not {what}: it has no {marker}. It holds {_some(sorted(tensors)) or 'no tensors'}.")
        prefix = longer
    stray = [key for key in tensors if not key.startswith(prefix)]
    if stray:
        raise ValueError(f"This file is not {what} alone: it also holds {_some(stray)}.")
    return {key[len(prefix) :]: value for key, value in tensors.items()}


def _widths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels after each convolution of the first encoder."""
    widths: list[int] = []
    while (weight := weights.get(f"encoders.0.conv4d.{len(widths)}.0.query_conv.weight")) is not None:
        widths.append(int(weight.shape[0]) if weight.ndim else 0)
    return tuple(widths)


def _check(weights: Mapping[str, Tensor], expected: Shapes, what: str) -> None:
    missing = [key for key in expected if key not in weights]
    left = [key for key in weights if key not in expected]
    other = [
        f"{key} {list(weights[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    faults = [
        f"{fault} {_some(keys)}"
        for fault, keys in (("it lacks", missing), ("left over are", left), ("of other shapes are", other))
        if keys
    ]
    if faults:
        raise ValueError(f"This file is not {what} with its {len(expected)} tensors: {'; '.join(faults)}.")


def _shapes(network: torch.nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
