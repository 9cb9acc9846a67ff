"""A subject model's state dict -> its parts, by their keys.

Face-diffuser's `SDM/pytorch_model.bin` and FastComposer's `pytorch_model.bin` have one layout, and so have the files of Exemplary's
trainer: a flat state dict of everything that took part in the training.

    prefix              in SDM   in TDM   content
    unet.               yes      yes      diffusers UNet2DConditionModel, all of it trained
    image_encoder.      yes      no       vision_model.* and visual_projection.weight, the last layers trained
    postfuse_module.    yes      no       model.py here
    text_encoder.       yes      yes      the original CLIP text model; keys without a `text_model.` level
    vae.                yes      yes      the original VAE of Stable Diffusion

A partial subject model contains only what was trained, to replace weights of its base: `changed_unet.` and `changed_image_encoder.`
with the base's own names, and the whole `postfuse_module.`.

TDM is Face-diffuser's scene model. It is not needed here: any MODEL can be the scene model. `*.position_ids` are not weights but a
range that old versions of a library saved; they are dropped.
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
WRAPPERS = ("module.", "_orig_mod.", "state_dict.")  # prefixes of every key in files of data-parallel or compiled training
LANDMARK = "postfuse_module.layer_norm.weight"
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
#: First letters of the keys of other techniques' files -> what the file is and which node loads it.
OTHER_FILES = (
    ("encoders.0.conv4d", "an AM-Adapter matcher", "Load AM-Adapter"),
    ("style_encoder.", "a CA2-SIS generator", "Load CA2-SIS"),
    ("netG.", "a CA2-SIS generator", "Load CA2-SIS"),
    ("image_proj.", "an IPAdapter or IFAdapter", "Load IFAdapter, or the loader of an IPAdapter pack"),
)
CHANGED_UNET, CHANGED_IMAGE_ENCODER, POSTFUSE = "changed_unet.", "changed_image_encoder.", "postfuse_module."
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_TEXT_KEYS = re.compile(r"attn2\.to_k\.weight$")


@dataclass(frozen=True, eq=False)
class SubjectParts:
    """State dicts of one file, each without its prefix. Dtypes are the file's.

    unet: diffusers keys (`conv_in.weight`). image_encoder: `vision_model.*`, `visual_projection.weight`.
    postfuse: keys of `Postfuse`. text_encoder, vae: {} if the file has none; they are not needed.
    width: of token and image embeddings, 768 for Stable Diffusion 1.5.
    """

    unet: dict[str, Tensor]
    image_encoder: dict[str, Tensor]
    postfuse: dict[str, Tensor]
    width: int
    text_encoder: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)


def split_checkpoint(weights: Mapping[str, Tensor], name: str = "The file") -> SubjectParts:
    """Split a subject model's state dict and check that its parts are complete and match each other.

    Args:
        weights: as in the file. Nothing is copied or cast.
        name: of the file, for messages.

    Raises:
        ValueError: it is something else, or incomplete; says what it is, what is missing and what to load.
    """
    weights = _unwrap({key: value for key, value in weights.items() if not key.endswith("position_ids")})
    groups = {prefix: {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)} for prefix in PREFIXES}
    missing = [prefix for prefix in NEEDED if not groups[prefix]]
    if missing:
        raise ValueError(f"{name} {_describe_other(weights, groups, missing)}")
    foreign = [key for key in weights if not key.startswith(PREFIXES)]
    if foreign:
        raise ValueError(
            f"{name} has {len(foreign)} unknown weights ({_list_keys(foreign)}) besides those of a subject model. "
            "It may have a newer layout or be of another method."
        )
    unet, image_encoder, postfuse = (groups[prefix] for prefix in NEEDED)
    width = _check_postfuse(postfuse, name)
    _check_unet(unet, width, name)
    _check_image_encoder(image_encoder, width, name)
    return SubjectParts(unet, image_encoder, postfuse, width, groups["text_encoder."], groups["vae."])


def join_checkpoint(parts: SubjectParts) -> dict[str, Tensor]:
    """The state dict of a subject model's file, the inverse of `split_checkpoint`."""
    groups = (parts.unet, parts.image_encoder, parts.postfuse, parts.text_encoder, parts.vae)
    return {prefix + key: value for prefix, group in zip(PREFIXES, groups) for key, value in group.items()}


def join_partial(
    unet: Mapping[str, Tensor], image_encoder: Mapping[str, Tensor], postfuse: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of a partial subject model's file, the inverse of `split_partial`."""
    groups = {CHANGED_UNET: unet, CHANGED_IMAGE_ENCODER: image_encoder, POSTFUSE: postfuse}
    return {prefix + key: value for prefix, group in groups.items() for key, value in group.items()}


def is_partial(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is a partial subject model, which needs its base."""
    return any(key.startswith(CHANGED_UNET) for key in weights)


def split_partial(weights: Mapping[str, Tensor], base: SubjectParts | None, name: str = "The file") -> SubjectParts:
    """Split a partial subject model: `unet` and `image_encoder` contain the changed weights only, under the base's names.

    Args:
        base: the base's weights (without postfuse), which must include every changed weight in the same shape. None: no check.

    Raises:
        ValueError: the file belongs to another base.
    """
    unet, image_encoder, postfuse = (
        {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        for prefix in (CHANGED_UNET, CHANGED_IMAGE_ENCODER, POSTFUSE)
    )
    width = _check_postfuse(postfuse, name)
    for changed, whole in [] if base is None else [(unet, base.unet), (image_encoder, base.image_encoder)]:
        for key, value in changed.items():
            if key not in whole or whole[key].shape != value.shape:
                found = list(whole[key].shape) if key in whole else "missing"
                raise ValueError(
                    f"{name} is a partial subject model of another base: {key} is {list(value.shape)} in the file and {found} in "
                    "the base. Train it again on this base, or load a complete subject model."
                )
    return SubjectParts(unet, image_encoder, postfuse, width)


def _unwrap(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The subject model's weights without a common prefix. What is saved beside them, such as an optimizer's state, is dropped."""
    for key in weights:
        if key.endswith(LANDMARK) and key != LANDMARK:
            prefix = key.removesuffix(LANDMARK)
            inside = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
            if all(any(key.startswith(part) for key in inside) for part in NEEDED):
                return inside
    for wrapper in WRAPPERS:
        if weights and all(key.startswith(wrapper) for key in weights):
            return _unwrap({key[len(wrapper) :]: value for key, value in weights.items()})
    return weights


def _describe_other(weights: Mapping[str, Tensor], groups: Mapping[str, Mapping], missing: list[str]) -> str:
    wanted = "Load a Face-diffuser SDM file or a FastComposer file."
    if not weights:
        return f"contains no weights. It may be an incomplete download. {wanted}"
    if any(key.startswith("model.diffusion_model.") for key in weights):
        return (
            "is an ordinary checkpoint, not a subject model. Load it with Load Checkpoint: any MODEL can be the scene model, and the "
            "subject model too if its prompt describes the person."
        )
    if any(re.search(r"lora_(up|down|A|B)\b|\.lora\.", key) for key in weights):
        return (
            f"is a LoRA, not a subject model. Load it with Load LoRA and apply it to the scene's or the subject's MODEL. {wanted}"
        )
    if UNET_INPUT in weights:
        return f"is only a UNet, without the image encoder and the postfuse network of a subject model. {wanted}"
    if groups["unet."] and missing == ["image_encoder.", "postfuse_module."]:
        return (
            "is a scene model (Face-diffuser TDM): it has no image encoder and no postfuse network. "
            "The scene needs no special file, any checkpoint can be used. For the subject load the SDM file."
        )
    if len(missing) < len(NEEDED):
        return f"lacks {_list_parts(missing)}. It may be an incomplete download or only a part. {wanted}"
    for prefix, kind, loader in OTHER_FILES:
        if any(key.startswith(prefix) for key in weights):
            return f"is {kind}, not a subject model. Load it with {loader}."
    return f"is not a subject model: its weights are named {_list_keys(weights)}. {wanted}"


def _check_postfuse(weights: Mapping[str, Tensor], name: str) -> int:
    """The width of a complete postfuse network."""
    last = weights.get("layer_norm.weight")
    width = last.shape[0] if last is not None and last.ndim == 1 else 768
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in Postfuse(width).state_dict().items()}
    lost, foreign = [key for key in expected if key not in weights], [key for key in weights if key not in expected]
    if lost or foreign:
        faults = [f"lacks {_list_keys(lost)}"] * bool(lost) + [f"has the unknown {_list_keys(foreign)}"] * bool(foreign)
        raise ValueError(f"The postfuse network in {name} {' and '.join(faults)}. Download the file again, or from its authors.")
    for key, shape in expected.items():
        found = list(weights[key].shape)
        if found != shape:
            raise ValueError(
                f"The postfuse network in {name} is inconsistent: {key} is {found}, it must be {shape}. Download the file again."
            )
    return width


def _check_unet(weights: Mapping[str, Tensor], width: int, name: str) -> None:
    lost = [key for key in UNET_KEYS if key not in weights]
    if lost:
        raise ValueError(f"The UNet in {name} lacks {_list_keys(lost)}. Download the file again.")
    for key, value in weights.items():
        if _TEXT_KEYS.search(key) and value.shape[-1] != width:
            raise ValueError(
                f"The UNet in {name} needs text embeddings of width {value.shape[-1]}, its postfuse network gives {width}: "
                "the two are from different trainings. Download the file again."
            )


def _check_image_encoder(weights: Mapping[str, Tensor], width: int, name: str) -> None:
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
        raise ValueError(f"The image encoder in {name} lacks {_list_keys(lost)}. Download the file again.")
    projection = weights["visual_projection.weight"]
    if projection.shape[0] != width:
        raise ValueError(
            f"The image encoder in {name} gives embeddings of width {projection.shape[0]}, its postfuse network needs {width}: "
            "the two are from different trainings. Download the file again."
        )


def _list_parts(prefixes: Iterable[str]) -> str:
    names = {"unet.": "the UNet", "image_encoder.": "the image encoder", "postfuse_module.": "the postfuse network"}
    return " and ".join(names[prefix] for prefix in prefixes)


def _list_keys(keys: Iterable[str]) -> str:
    """The first three of some keys, for a message."""
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
