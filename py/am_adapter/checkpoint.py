"""Files of AM-Adapter (arXiv 2412.03150): which keys and shapes they have, and the modules made from them.

Two layouts, both exact: the matcher's (72 tensors as published) and ControlNeXt's (52 tensors, as published for SD1.5). Sizes are taken
from the shapes. Files trained with this pack have the same keys in other sizes and their metadata says how they were trained; a file
without it is treated as the authors'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .agreement import PAPER_FORMULAS, PUBLISHED_CODE, Behaviour
from .model import PUBLISHED_CONTROLNEXT, PUBLISHED_MATCHER, ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout

#: Key of the JSON in the safetensors metadata that says how a file of this pack was trained.
METADATA_KEY = "exemplary.am_adapter"
_BEHAVIOURS = {"upstream": PUBLISHED_CODE, "corrected": PAPER_FORMULAS}
_LISTED = 4  # how many keys a message lists

_MATCHER_KEY, _CONTROLNEXT_KEY = "encoders.0.conv4d.0.0.query_conv.weight", "embedding.0.weight"
MATCHER, CONTROLNEXT = "an AM-Adapter matcher", "a ControlNeXt"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MatcherFile:
    """A matcher's weights and what is needed to use them.

    Args:
        layout: sizes for the constructor of Matcher. weights: every tensor of it, under its own names.
        behaviour: that it was trained with.
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


def kind_of(keys: Iterable[str]) -> str | None:
    """MATCHER or CONTROLNEXT by the names of a file's tensors; None for other files."""
    keys = list(keys)
    if any(key.endswith(_MATCHER_KEY) for key in keys):
        return MATCHER
    is_controlnext = all(any(key.endswith(part) for key in keys) for part in (_CONTROLNEXT_KEY, "mid_convs.1.weight"))
    return CONTROLNEXT if is_controlnext else None


def parse_matcher(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> MatcherFile:
    """The matcher of a file.

    Args:
        state: the file's tensors; prefixes such as `module.` and wrappers such as `state_dict` are allowed.
        metadata: of a safetensors file, if any.

    Raises:
        ValueError: it is not a matcher; names the keys that are missing, unexpected or of another shape.
    """
    weights = _unwrap(state, _MATCHER_KEY, MATCHER)
    widths = _widths(weights)
    if 0 in widths:
        raise ValueError("This file is not an AM-Adapter matcher: some of its convolutions have no channels.")
    layout = MatcherLayout(heads=widths[-1], widths=widths[:-1])
    _check(weights, matcher_shapes(layout), MATCHER)
    return MatcherFile(layout, weights, _behaviour(metadata))


def parse_controlnext(state: Mapping[str, Any]) -> tuple[ControlNeXtLayout, dict[str, Tensor]]:
    """The ControlNeXt of a file: sizes for the constructor, and weights under its own names.

    Raises:
        ValueError: it is not a ControlNeXt of this layout; names the keys that are missing, unexpected or of another shape.
    """
    what = CONTROLNEXT
    weights = _unwrap(state, _CONTROLNEXT_KEY, what)
    sized = ("embedding.0", "embedding.6", "down_res.1.conv1", "mid_convs.1", "time_embedding.linear_1")
    missing = [f"{key}.weight" for key in sized if f"{key}.weight" not in weights or weights[f"{key}.weight"].ndim < 2]
    if missing:
        raise ValueError(f"This file is not {what}: it lacks {_list(missing)}. Choose a ControlNeXt for Stable Diffusion 1.5.")
    stem, first, second, out, time = (tuple(weights[f"{key}.weight"].shape) for key in sized)
    if first[0] % 4 or second[0] % 8 or stem[0] % 2:
        raise ValueError(
            f"This file is not {what}: its channels {stem[0]}, {first[0]}, {second[0]} cannot be divided into groups."
        )
    layout = ControlNeXtLayout(out[0], (stem[0], first[0], second[0]), time[1], time[0])
    _check(weights, controlnext_shapes(layout), what)
    return layout, weights


def load_matcher(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None, **factory_kwargs: Any) -> Matcher:
    """The matcher of a file. `factory_kwargs` are operations, dtype and device."""
    file = parse_matcher(state, metadata)
    matcher = Matcher(file.layout, **factory_kwargs)
    matcher.load_state_dict(file.weights, strict=True)
    return matcher


def load_controlnext(state: Mapping[str, Any], **factory_kwargs: Any) -> ControlNeXt:
    """The ControlNeXt of a file. `factory_kwargs` are operations, dtype and device."""
    layout, weights = parse_controlnext(state)
    network = ControlNeXt(layout, **factory_kwargs)
    network.load_state_dict(weights, strict=True)
    return network


def matcher_metadata(layout: MatcherLayout, behaviour: Behaviour) -> dict[str, str]:
    """The metadata to save with the weights of a matcher, for `parse_matcher`."""
    name = next((name for name, known in _BEHAVIOURS.items() if known == behaviour), None)
    config = {"format": 1, "matcher": asdict(layout), "behaviour": name or asdict(behaviour)}
    return {METADATA_KEY: json.dumps(config)}


def _behaviour(metadata: Mapping[str, str] | None) -> Behaviour:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return PUBLISHED_CODE
    try:
        behaviour = json.loads(text)["behaviour"]
        return Behaviour(**behaviour) if isinstance(behaviour, dict) else _BEHAVIOURS[behaviour]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"This matcher's metadata {METADATA_KEY!r} is not supported ({error}). It may be from a newer version of this pack; update the pack."
        ) from error


def _unwrap(state: Mapping[str, Any], marker: str, what: str) -> dict[str, Tensor]:
    """The tensors under their own names: those that share the prefix of the marker (`module.`, `state_dict.`), without it."""
    tensors = {key: value for key, value in _flatten_keys(state) if isinstance(value, Tensor)}
    prefixes = [key.removesuffix(marker) for key in tensors if key == marker or key.endswith("." + marker)]
    if not prefixes:
        raise ValueError(f"This file is not {what}: it has no {marker}. It contains {_list(sorted(tensors)) or 'no tensors'}.")
    if len(prefixes) > 1:
        shown = _list(prefix or "no prefix" for prefix in prefixes)
        raise ValueError(f"This file contains {what} more than once, under {shown}. Use a file with one of them.")
    return {key.removeprefix(prefixes[0]): value for key, value in tensors.items() if key.startswith(prefixes[0])}


def _flatten_keys(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _widths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels after each convolution of the first encoder."""
    widths: list[int] = []
    while (weight := weights.get(f"encoders.0.conv4d.{len(widths)}.0.query_conv.weight")) is not None:
        widths.append(int(weight.shape[0]) if weight.ndim else 0)
    return tuple(widths)


def _check(weights: Mapping[str, Tensor], expected: Shapes, what: str) -> None:
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    other = [
        f"{key} {list(weights[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    faults = [
        f"{fault} {_list(keys)}"
        for fault, keys in (("it lacks", missing), ("unexpected are", unexpected), ("of other shapes are", other))
        if keys
    ]
    if faults:
        raise ValueError(f"This file is not {what} ({len(expected)} tensors are expected): {'; '.join(faults)}.")


def _shapes(network: torch.nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _list(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more
