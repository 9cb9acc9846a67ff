"""Files with a subject model -> its parts, by their keys.

Face-diffuser's `SDM/pytorch_model.bin` and FastComposer's `pytorch_model.bin` have one layout, and so have the files of our own trainer:
a flat state dict of everything that took part in the training.

    prefix              in SDM   in TDM   content
    unet.               yes      yes      diffusers UNet2DConditionModel, all of it trained
    image_encoder.      yes      no       vision_model.* and visual_projection.weight, the last layers trained
    postfuse_module.    yes      no       model.py here
    text_encoder.       yes      yes      CLIP text model as it was; keys without a `text_model.` level
    vae.                yes      yes      Stable Diffusion's, as it was

A small subject model is only what was trained, to be laid over the weights of its base: `changed_unet.` and `changed_image_encoder.` with
the base's own names, and the whole `postfuse_module.`.

TDM is Face-diffuser's scene model. It has no use here: any ordinary MODEL plays the scene. `*.position_ids` are not weights but a count
from 0 that old versions of a library saved; they are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .model import Postfuse

PREFIXES = ("unet.", "image_encoder.", "postfuse_module.", "text_encoder.", "vae.")
NEEDED = ("unet.", "image_encoder.", "postfuse_module.")
WRAPPERS = ("module.", "_orig_mod.")  # what data-parallel and compiled training put before every key
UNET_INPUT = "conv_in.weight"
UNET_KEYS = (UNET_INPUT, "conv_out.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight")
VISION_KEYS = (
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.pre_layrnorm.weight",  # sic
    "vision_model.post_layernorm.weight",
    "visual_projection.weight",
)
CHANGED_UNET, CHANGED_IMAGE_ENCODER, POSTFUSE = "changed_unet.", "changed_image_encoder.", "postfuse_module."
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_TEXT_KEYS = re.compile(r"attn2\.to_k\.weight$")


@dataclass(frozen=True, eq=False)
class SubjectParts:
    """State dicts of one file, each without its prefix. Dtypes are the file's.

    unet: diffusers keys (`conv_in.weight`). image_encoder: `vision_model.*`, `visual_projection.weight`.
    postfuse: keys of `Postfuse`. text_encoder, vae: {} where the file has none; nobody needs them.
    width: of text rows and picture embeddings, 768 for Stable Diffusion 1.5.
    """

    unet: dict[str, Tensor]
    image_encoder: dict[str, Tensor]
    postfuse: dict[str, Tensor]
    width: int
    text_encoder: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)


def parts(weights: Mapping[str, Tensor], name: str = "The file") -> SubjectParts:
    """Take a subject model's state dict apart and check that its parts are whole and belong together.

    Args:
        weights: as the file has them. Nothing is copied or cast.
        name: the file's, for messages.

    Raises ValueError saying what the file is instead, or what is missing, and what to load.
    """
    weights = _unwrapped({key: value for key, value in weights.items() if not key.endswith("position_ids")})
    groups = {prefix: {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)} for prefix in PREFIXES}
    missing = [prefix for prefix in NEEDED if not groups[prefix]]
    if missing:
        raise ValueError(f"{name} {_what_instead(weights, groups, missing)}")
    foreign = [key for key in weights if not key.startswith(PREFIXES)]
    if foreign:
        raise ValueError(
            f"{name} has {len(foreign)} weights that no subject model has, {_some(foreign)}. "
            "It may be of a newer layout or of another method."
        )
    unet, image_encoder, postfuse = (groups[prefix] for prefix in NEEDED)
    width = _checked_postfuse(postfuse, name)
    _checked_unet(unet, width, name)
    _checked_image_encoder(image_encoder, width, name)
    return SubjectParts(unet, image_encoder, postfuse, width, groups["text_encoder."], groups["vae."])


def parts_file(found: SubjectParts) -> dict[str, Tensor]:
    """A subject model as a file has it; `parts` is the way back."""
    groups = (found.unet, found.image_encoder, found.postfuse, found.text_encoder, found.vae)
    return {prefix + key: value for prefix, group in zip(PREFIXES, groups) for key, value in group.items()}


def changes_file(
    unet: Mapping[str, Tensor], image_encoder: Mapping[str, Tensor], postfuse: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A small subject model as a file has it; `changes` is the way back."""
    groups = {CHANGED_UNET: unet, CHANGED_IMAGE_ENCODER: image_encoder, POSTFUSE: postfuse}
    return {prefix + key: value for prefix, group in groups.items() for key, value in group.items()}


def is_small(weights: Mapping[str, Tensor]) -> bool:
    """Is this a small subject model, which needs its base?"""
    return any(key.startswith(CHANGED_UNET) for key in weights)


def changes(weights: Mapping[str, Tensor], base: SubjectParts | None, name: str = "The file") -> SubjectParts:
    """What a small subject model changes: `unet` and `image_encoder` hold the changed weights only, under the base's names.

    Args:
        base: the base's own weights (its postfuse is not read), which must have every changed one in the same shape. None: no check.

    Raises ValueError if the file is not of this base.
    """
    unet, image_encoder, postfuse = (
        {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        for prefix in (CHANGED_UNET, CHANGED_IMAGE_ENCODER, POSTFUSE)
    )
    width = _checked_postfuse(postfuse, name)
    for changed, whole in [] if base is None else [(unet, base.unet), (image_encoder, base.image_encoder)]:
        for key, value in changed.items():
            if key not in whole or whole[key].shape != value.shape:
                found = list(whole[key].shape) if key in whole else "missing"
                raise ValueError(
                    f"{name} is a small subject model of another base: {key} is {list(value.shape)}, in the base {found}."
                )
    return SubjectParts(unet, image_encoder, postfuse, width)


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if weights and all(key.startswith(wrapper) for key in weights):
            return _unwrapped({key[len(wrapper) :]: value for key, value in weights.items()})
    return weights


def _what_instead(weights: Mapping[str, Tensor], groups: Mapping[str, Mapping], missing: list[str]) -> str:
    wanted = "Load a Face-diffuser SDM file or a FastComposer file."
    if not weights:
        return f"holds no weights. It may be an incomplete download. {wanted}"
    if any(key.startswith("model.diffusion_model.") for key in weights):
        return (
            "is an ordinary checkpoint, not a subject model. Load it with Load Checkpoint: any MODEL can play the scene, and the "
            "subject too if its conditioning names the person."
        )
    if any(re.search(r"lora_(up|down|A|B)\b|\.lora\.", key) for key in weights):
        return f"is a LoRA, not a subject model. Load it with Load LoRA, onto the scene's or the subject's MODEL. {wanted}"
    if UNET_INPUT in weights:
        return f"is a UNet alone, without the image encoder and the postfuse network of a subject model. {wanted}"
    if groups["unet."] and missing == ["image_encoder.", "postfuse_module."]:
        return (
            "is a scene model (Face-diffuser TDM): it has no image encoder and no postfuse network. "
            "The scene needs no special file, any ordinary checkpoint will do. For the subject load the SDM file."
        )
    if len(missing) < len(NEEDED):
        return f"lacks {_names(missing)}. It may be an incomplete download or only a part. {wanted}"
    return f"is not a subject model: its weights are named {_some(weights)}. {wanted}"


def _checked_postfuse(weights: Mapping[str, Tensor], name: str) -> int:
    """The width of a whole postfuse network."""
    last = weights.get("layer_norm.weight")
    width = last.shape[0] if last is not None and last.ndim == 1 else 768
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in Postfuse(width).state_dict().items()}
    lost, foreign = [key for key in expected if key not in weights], [key for key in weights if key not in expected]
    if lost or foreign:
        told = [f"lacks {_some(lost)}"] * bool(lost) + [f"has the unknown {_some(foreign)}"] * bool(foreign)
        raise ValueError(f"The postfuse network in {name} {' and '.join(told)}. Download the file again, or from its authors.")
    for key, shape in expected.items():
        found = list(weights[key].shape)
        if found != shape:
            raise ValueError(f"The postfuse network in {name} does not fit together: {key} is {found}, it must be {shape}.")
    return width


def _checked_unet(weights: Mapping[str, Tensor], width: int, name: str) -> None:
    lost = [key for key in UNET_KEYS if key not in weights]
    if lost:
        raise ValueError(f"The UNet in {name} lacks {_some(lost)}. Download the file again.")
    for key, value in weights.items():
        if _TEXT_KEYS.search(key) and value.shape[-1] != width:
            raise ValueError(
                f"The UNet in {name} reads text of width {value.shape[-1]}, its postfuse network writes {width}: "
                "the two are not from one training."
            )


def _checked_image_encoder(weights: Mapping[str, Tensor], width: int, name: str) -> None:
    layers: dict[int, set[str]] = {}
    for key in weights:
        if match := _LAYER.fullmatch(key):
            layers.setdefault(int(match[1]), set()).add(match[2])
    whole = set().union(*layers.values())
    lost = [key for key in VISION_KEYS if key not in weights]
    lost += [
        f"vision_model.encoder.layers.{number}.{key}"
        for number in range(max(layers, default=0) + 1)
        for key in sorted((whole or {"*"}) - layers.get(number, set()))
    ]
    if lost:
        raise ValueError(f"The image encoder in {name} lacks {_some(lost)}. Download the file again.")
    projection = weights["visual_projection.weight"]
    if projection.shape[0] != width:
        raise ValueError(
            f"The image encoder in {name} gives embeddings of width {projection.shape[0]}, its postfuse network reads {width}: "
            "the two are not from one training."
        )


def _names(prefixes: Iterable[str]) -> str:
    words = {"unet.": "the UNet", "image_encoder.": "the image encoder", "postfuse_module.": "the postfuse network"}
    return " and ".join(words[prefix] for prefix in prefixes)


def _some(keys: Iterable[str]) -> str:
    """The first three of some keys."""
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
