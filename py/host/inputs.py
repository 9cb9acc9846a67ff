"""Checks of what users connect and type: images, masks, numbers, choices, batch sizes.

Every function raises a ValueError that says which input of which node is wrong, what was found and what to do; images and masks come
back in one form, so that callers handle one type on one device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_number(value: Any, node: str, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """The number as a float. Raises ValueError for NaN, infinity, other types and numbers outside of `least` .. `most`."""
    # A value can arrive over a link, past the limits of the widget.
    if not isinstance(value, Real) or not math.isfinite(value) or not least <= float(value) <= most:
        raise ValueError(f"{node}: {name} is {_show(value)}; it must be {_number_range('a number', least, most)}.")
    return float(value)


def check_integer(value: Any, node: str, name: str, least: int, most: int, multiple_of: int = 1) -> int:
    """The number as an int. Raises ValueError as `check_number` does, and for fractions and numbers that `multiple_of` does not divide."""
    whole = isinstance(value, Integral) or (isinstance(value, Real) and math.isfinite(value) and float(value).is_integer())
    if not whole or not least <= value <= most or int(value) % multiple_of:
        kind = "a whole number" if multiple_of == 1 else f"a multiple of {multiple_of}"
        raise ValueError(f"{node}: {name} is {_show(value)}; it must be {_number_range(kind, least, most)}.")
    return int(value)


def check_choice(value: Any, node: str, name: str, choices: Iterable[str]) -> str:
    """One of the choices, unchanged. Workflows of other versions and API prompts can bring any other text, and not every host checks it."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{node}: {name} is {_show(value)}; choose one of: {', '.join(known)}.")
    return value


def check_image(image: Any, node: str, name: str = "image", *, keep_alpha: bool = False, least_side: int = 1) -> Tensor:
    """An IMAGE as [b, h, w, 3] float32 in 0..1 on the CPU: grey is copied into three channels, alpha is dropped.

    Args:
        image: [b, h, w, c] or a single [h, w, c], floating point of any precision on any device; c is 1, 3 or 4.
        keep_alpha: return [b, h, w, 4] for images that have four channels.
        least_side: the smallest width and height in pixels that the caller can use.

    Raises:
        ValueError: for another shape or type, an empty batch, NaN or infinite values, a side below `least_side`.
    """
    if not torch.is_tensor(image) or image.ndim not in (3, 4) or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: {name} is {_describe(image)}; an IMAGE is [batch, height, width, channels] with 1, 3 or 4 channels. "
            "Connect the IMAGE output of another node."
        )
    image = image if image.ndim == 4 else image[None]
    if image.numel() == 0:
        raise ValueError(f"{node}: {name} is empty (shape {list(image.shape)}). Connect at least one image.")
    if not image.is_floating_point():
        raise ValueError(
            f"{node}: {name} has values of type {_type_name(image)}; an IMAGE has floating point values from 0 to 1."
        )
    if min(image.shape[1:3]) < least_side:
        raise ValueError(
            f"{node}: {name} has {image.shape[2]} x {image.shape[1]} pixels; it needs at least {least_side} x {least_side}. "
            "Connect a larger image."
        )
    image = image.detach().to("cpu", torch.float32)
    _check_finite(image, node, name)
    image = image.clamp(0.0, 1.0)
    if image.shape[-1] == 1:
        return image.expand(-1, -1, -1, 3)
    return image if keep_alpha else image[..., :3]


def check_mask(mask: Any, node: str, name: str = "mask", *, allow_blank: bool = True) -> Tensor:
    """A MASK as [f, h, w] float32 in 0..1 on the CPU.

    Args:
        mask: [h, w], [f, h, w], [f, 1, h, w] or [f, h, w, 1], floating point of any precision or bool, on any device.
        allow_blank: accept a mask that is 0 everywhere. LoadImage gives one, of 64 x 64 pixels, for an image without transparency.

    Raises:
        ValueError: for another shape or type, no pixels, NaN or infinite values, or 0 everywhere where that is not allowed.
    """
    shape = tuple(mask.shape) if torch.is_tensor(mask) else ()
    if len(shape) == 4 and shape[1] != 1 and shape[3] == 1:
        mask = mask[..., 0]
    elif len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[1] != 1):
        raise ValueError(
            f"{node}: {name} is {_describe(mask)}; a MASK is [batch, height, width]. Connect a MASK, or use Convert Image to Mask."
        )
    if mask.numel() == 0:
        raise ValueError(f"{node}: {name} is empty (shape {list(shape)}). Connect a mask with at least one pixel.")
    if not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise ValueError(f"{node}: {name} has values of type {_type_name(mask)}; a MASK has floating point values from 0 to 1.")
    mask = mask.detach().to("cpu", torch.float32).reshape(-1, *mask.shape[-2:])
    _check_finite(mask, node, name)
    if not allow_blank and not bool((mask > 0).any()):
        loaded = (
            " Load Image returns such a mask for an image without transparency." if tuple(mask.shape[-2:]) == (64, 64) else ""
        )
        raise ValueError(f"{node}: {name} is 0 everywhere, so it selects nothing.{loaded} Paint the mask, or disconnect it.")
    return mask.clamp(0.0, 1.0)


def check_batch(found: int, latents: int, node: str, name: str) -> None:
    """Raise a ValueError unless a batch of `found` can be used for so many latents: it has one item for all, or one for each."""
    if found not in (1, latents):
        raise ValueError(
            f"{node}: {name} has a batch of {found}, but {latents} latents are sampled. Connect one (it is used for all) or {latents}."
        )


def check_text(value: Any, node: str, name: str) -> str:
    """A text. A link can bring a number or a list."""
    if not isinstance(value, str):
        raise ValueError(f"{node}: {name} is {_show(value)}; it must be text.")
    return value


def check_connected(value: Any, node: str, name: str, remedy: str) -> Any:
    """The value of a required input that the user left empty by muting a node, or that a loader gave as None."""
    if value is None:
        raise ValueError(f"{node}: the {name} input is empty. {remedy}")
    return value


def list_names(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: "a, b, c and 5 more"."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_finite(values: Tensor, node: str, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{node}: {name} contains NaN or infinite values. Check the node that it comes from.")


def _number_range(kind: str, least: float, most: float) -> str:
    if math.isinf(most):
        return kind if math.isinf(least) else f"{kind} of at least {least:g}"
    return f"{kind} of at most {most:g}" if math.isinf(least) else f"{kind} from {least:g} to {most:g}"


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if torch.is_tensor(value) else _show(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
