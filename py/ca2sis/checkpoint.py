"""Files of CA2-SIS weights: what they are, read off the weights themselves; and codes on disk.

The published file is a plain dictionary of tensors (`latest_net_G.pth`). Its keys are our modules' names. Three vintages differ:

    when                    noise_encoder      last step
    March - November 2023   none               none: clamped
    December 2023           input 256          none: clamped
    since January 2024      input 16           tanh

Nothing in the weights says which last step they were trained with; the noise network dates them. Files saved here say it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from ..weight_files import WeightFile, WeightFileError, check_values, read_weights
from .codes import Shape, Style, class_names
from .model import HEADS, LEVELS, Config, Generator

log = logging.getLogger(__name__)

FinalActivation = Literal["auto", "tanh", "clamp"]
FINAL_ACTIVATIONS: tuple[FinalActivation, ...] = ("auto", "tanh", "clamp")
_LANDMARK = "style_encoder.Encoder.first_layer.0.weight"
_NOISE = "noise_encoder."
_NOISE_INPUT = "noise_encoder.shared.0.weight"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights that have been checked against what they are.

    Args:
        config: of the Generator that takes exactly these weights.
        weights: all of its tensors and no others, in the file's own type.
        labels: the names of its classes: what the file says, else CelebAMask-HQ's for 19 classes, else numbers.
    """

    config: Config
    weights: dict[str, Tensor]
    labels: tuple[str, ...]

    def build(self, operations: Any = nn, dtype: Any = None, device: Any = None) -> Generator:
        """A Generator with these weights, ready to draw."""
        model = Generator(self.config, operations, dtype, device)
        model.load_state_dict(self.weights, strict=True)
        return model.eval()


def load(path: str | Path, final_activation: FinalActivation = "auto", noise: bool = True) -> Checkpoint:
    """Read and check a file; see `prepare`.

    Raises:
        ValueError: not such a file; names what is wrong and what to do.
    """
    path = Path(path)
    weights, metadata = read(path)
    if path.name.endswith("_net_D.pth"):
        raise ValueError(
            f"CA2-SIS: {path.name!r} is the discriminator, needed in training only. Load the file that ends in _net_G.pth."
        )
    found = prepare(weights, final_activation, noise, metadata.get("final_activation"), path.name)
    check_values(found.weights, f"CA2-SIS: {path.name}")
    labels = tuple(metadata.get("labels", "").split("\n"))
    return replace(found, labels=labels) if len(labels) == found.config.classes else found


def read(path: Path) -> WeightFile:
    """A file's tensors, nested ones under dotted names, and the metadata of a safetensors file. Nothing in it is executed.

    Raises:
        ValueError: neither safetensors nor a torch file of tensors.
    """
    try:
        return read_weights(path)
    except WeightFileError as error:
        raise ValueError(f"CA2-SIS: {error}") from error


def prepare(
    weights: Mapping[str, Tensor],
    final_activation: FinalActivation = "auto",
    noise: bool = True,
    recorded: str | None = None,
    name: str = "the file",
) -> Checkpoint:
    """Find the generator among a file's tensors, infer its configuration and check every tensor.

    Args:
        weights: as read; a common prefix ("module.", or a bundle's) is taken off, an averaged copy ("ema") preferred.
        final_activation: "auto" goes by what the file says, else by its vintage.
        noise: keep the noise network (37 % of the published file, needed only to sample styles).
        recorded: what the file itself says about its last step.
        name: of the file, for messages.

    Raises:
        ValueError: no generator, tensors missing, unknown or of wrong shape. Only noise_encoder may be missing or unfit.
    """
    if final_activation not in FINAL_ACTIVATIONS:
        raise ValueError(f"CA2-SIS: final activation {final_activation!r}; choose {', '.join(FINAL_ACTIVATIONS)}.")
    own = _without_prefix(weights, name)
    config = infer(own, name)
    config = replace(config, tanh=_last_step(config.noise_dim, final_activation, recorded, name))
    expected = shapes(config)
    noise_fits = config.noise_dim > 0 and not any(_differences(own, expected, noise=True))
    if not noise_fits and any(key.startswith(_NOISE) for key in own):
        log.warning("CA2-SIS: the noise network in %s is incomplete and left out: styles cannot be sampled.", name)
    if not (noise and noise_fits):
        config = replace(config, noise_dim=0)
    missing, unknown, wrong = _differences(own, expected, noise=False)
    if missing or unknown or wrong:
        found = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in
                 (("missing", missing), ("unknown", unknown), ("of wrong shape", wrong)) if keys]  # fmt: skip
        raise ValueError(
            f"CA2-SIS: {name} is not a complete set of weights for {config.classes} classes: tensors {', '.join(found)}. "
            "Download it again, or load the file it was meant to be (latest_net_G.pth)."
        )
    kept = {key: own[key] for key in expected if config.noise_dim or not key.startswith(_NOISE)}
    return Checkpoint(config, kept, class_names(config.classes))


def infer(weights: Mapping[str, Tensor], name: str = "the file") -> Config:
    """The configuration that the shapes of the weights imply; the last step is not among them.

    Raises:
        ValueError: a tensor that decides is missing or makes no sense.
    """

    def shape(key: str, axes: int) -> list[int]:
        if key not in weights or weights[key].ndim != axes or 0 in weights[key].shape:
            found = f"has the shape {list(weights[key].shape)}" if key in weights else "is missing"
            raise ValueError(f"CA2-SIS: {name} holds no generator of CA2-SIS: {key} {found}. Load latest_net_G.pth.")
        return list(weights[key].shape)

    encoder_width = shape("style_encoder.Encoder.enc_layer_0.0.weight", 4)[1]
    classes = shape(_LANDMARK, 4)[0] // encoder_width
    mask_channels = shape("reshape_conv.weight", 4)[1]
    if mask_channels not in (classes, classes - 1):
        raise ValueError(
            f"CA2-SIS: {name} has {classes} style classes and {mask_channels} shape classes; they must be equal, or differ by the "
            "background. The file mixes two models."
        )
    outputs, inputs = shape("encs.encs.0.weight", 2)
    inner = [shape(f"cross{level}.proj_in.weight", 4)[0] for level in LEVELS]
    noise_width, noise_dim = shape(_NOISE_INPUT, 2) if _NOISE_INPUT in weights else (Config.noise_width, 0)
    return Config(
        classes=classes,
        mask_channels=mask_channels,
        style_dim=shape("style_encoder.out.out_0.0.weight", 3)[0] // classes,
        width=shape("out_conv.weight", 4)[1],
        encoder_width=encoder_width,
        grid=_sides(outputs, "encs.encs.0.weight", name),
        mask_size=_sides(inputs, "encs.encs.0.weight", name),
        head_dims=tuple(width // heads for width, heads in zip(inner, HEADS)),
        noise_dim=noise_dim,
        noise_width=noise_width,
    )


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Generator and its shape, in the names of the published file. No memory is used."""
    return {key: tuple(value.shape) for key, value in Generator(config, device="meta").state_dict().items()}


def save(path: str | Path, weights: Mapping[str, Tensor], config: Config, labels: Sequence[str] = ()) -> None:
    """Write a Generator's weights as safetensors that say which last step they were trained with and what the classes are called."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(contiguous, path, facts(config, labels))


def facts(config: Config, labels: Sequence[str] = ()) -> dict[str, str]:
    """The metadata of such a file."""
    named = {"labels": "\n".join(labels)} if labels else {}
    return {"final_activation": "tanh" if config.tanh else "clamp", **named}


def save_codes(path: str | Path, codes: Style | Shape) -> None:
    """Write codes as safetensors: `codes`, `present`, and the class names in the metadata."""
    tensors = {"codes": codes.codes.detach().cpu().contiguous(), "present": codes.present.cpu().contiguous()}
    save_file(tensors, path, {"kind": type(codes).__name__, "labels": "\n".join(codes.labels)})


def load_codes(path: str | Path) -> Style | Shape:
    """Codes from a file of `save_codes`.

    Raises:
        ValueError: another kind of file.
    """
    path = Path(path)
    tensors, metadata = read(path)
    kinds: dict[str, type[Style] | type[Shape]] = {"Style": Style, "Shape": Shape}
    if metadata.get("kind") not in kinds or not {"codes", "present"} <= set(tensors):
        raise ValueError(f"CA2-SIS: {path.name!r} holds no style or shape codes.")
    return kinds[metadata["kind"]](tensors["codes"], tensors["present"].bool(), tuple(metadata["labels"].split("\n")))


def _without_prefix(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefixes = [key[: -len(_LANDMARK)] for key in weights if key.endswith(_LANDMARK)]
    averaged = [prefix for prefix in prefixes if "ema" in prefix]
    prefixes = averaged if len(averaged) == 1 else prefixes
    if not prefixes:
        raise ValueError(
            f"CA2-SIS: {name} holds no generator of CA2-SIS: {_LANDMARK} is missing. Load latest_net_G.pth (the one that ends in _net_D.pth "
            "is the discriminator)."
        )
    if len(prefixes) > 1:
        raise ValueError(
            f"CA2-SIS: {name} holds several generators ({_few(prefixes)}): save the one you need as a separate file."
        )
    # A bundle holds other networks too; beside a generator without prefix nothing else may be.
    return {key[len(prefixes[0]) :]: value for key, value in weights.items() if key.startswith(prefixes[0])}


def _last_step(noise_dim: int, choice: FinalActivation, recorded: str | None, name: str) -> bool:
    """Whether the last step is tanh."""
    if choice != "auto":
        return choice == "tanh"
    if recorded in ("tanh", "clamp"):
        return recorded == "tanh"
    if noise_dim not in (0, 16):
        log.warning(
            "CA2-SIS: %s has a noise network of %d inputs, as in December 2023, when the last step changed; taken to be clamp. "
            "If the colours look harsh, choose tanh.",
            name,
            noise_dim,
        )
    return noise_dim == 16


def _differences(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], noise: bool
) -> tuple[list[str], list[str], list[str]]:
    """Keys missing, unknown and of wrong shape, inside the noise network or outside of it."""
    have = {key for key in weights if key.startswith(_NOISE) == noise}
    want = {key for key in expected if key.startswith(_NOISE) == noise}
    wrong = [
        f"{key} is {list(weights[key].shape)}, not {list(expected[key])}"
        for key in sorted(have & want)
        if tuple(weights[key].shape) != expected[key]
    ]
    return sorted(want - have), sorted(have - want), wrong


def _sides(cells: int, key: str, name: str) -> tuple[int, int]:
    """Height and width of a square, or of an image twice as wide as high (Cityscapes)."""
    for count, wide in ((cells, 1), (cells // 2, 2)):
        side = math.isqrt(count)
        if side * side * wide == cells:
            return side, side * wide
    raise ValueError(f"CA2-SIS: {name}: {key} has {cells} cells, neither a square nor twice as wide as high.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
