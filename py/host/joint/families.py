"""The transformer (DiT) models that are supported: one row per class of the host, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...joint.layout import Grid
from ...joint.rotation import Rotary
from .. import hooks

#: In sentences: the models on which these techniques work.
SUPPORTED = (
    "Flux.1 (also Kontext and Fill), Flux.2, Chroma, Stable Diffusion 3 and 3.5, Qwen-Image and Qwen-Image-Edit, Lumina 2, Z-Image, "
    "Cosmos-Predict2, Anima, Wan (single images) and Krea 2"
)
#: In sentences: the models that read reference images themselves.
WITH_REFERENCES = "Flux.1 Kontext, Flux.2, Qwen-Image-Edit and Krea 2"


@dataclass(frozen=True)
class Family:
    """What the models of one class have in common.

    Args:
        name: in messages.
        patch: latent pixels of a token's side, from the network.
        rotary: how positions are encoded, from the network; None where texts have no positions or all the same one.
        has_references: whether the host appends `reference_latents` as image tokens.
        multiple: to what multiple texts and image are filled up with learned tokens, from the network; None for not at all.
    """

    name: str
    patch: Callable[[Any], int]
    rotary: Callable[[Any], Rotary | None] = lambda network: None
    has_references: bool = False
    multiple: Callable[[Any], int | None] = lambda network: None


def _patch_size(network: Any) -> int:
    size = network.patch_size
    return size[-1] if isinstance(size, (tuple, list)) else size


def _flux_rotary(network: Any) -> Rotary | None:
    embedder = network.pe_embedder
    axes = tuple(embedder.axes_dim)
    # Hosts up to 0.8 number the text of models with four axes along the last one; newer ones name the axes.
    text_axes = getattr(network.params, "txt_ids_dims", None)
    text_axes = ((3,) if len(axes) == 4 else ()) if text_axes is None else tuple(text_axes)
    return Rotary(axes, embedder.theta, text_axes)


def _qwen_rotary(network: Any) -> Rotary:
    return Rotary(tuple(network.pe_embedder.axes_dim), network.pe_embedder.theta, (0, 1, 2))


def _lumina_rotary(network: Any) -> Rotary:
    return Rotary(tuple(network.rope_embedder.axes_dim), network.rope_embedder.theta, (0,), is_right_aligned=True)


_FLUX = Family("Flux", _patch_size, _flux_rotary, has_references=True)
_COSMOS = Family("Cosmos-Predict2", lambda network: network.patch_spatial)

#: By module and name of the network's class. Exact: a subclass may order its tokens in another way.
FAMILIES: dict[tuple[str, str], Family] = {
    ("comfy.ldm.flux.model", "Flux"): _FLUX,
    ("comfy.ldm.chroma.model", "Chroma"): Family("Chroma", _patch_size),
    ("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"): Family("Stable Diffusion 3", _patch_size),
    ("comfy.ldm.qwen_image.model", "QwenImageTransformer2DModel"): Family(
        "Qwen-Image", _patch_size, _qwen_rotary, has_references=True
    ),
    ("comfy.ldm.lumina.model", "NextDiT"): Family(
        "Lumina 2 or Z-Image", _patch_size, _lumina_rotary, multiple=lambda network: network.pad_tokens_multiple
    ),
    ("comfy.ldm.cosmos.predict2", "MiniTrainDIT"): _COSMOS,
    ("comfy.ldm.anima.model", "Anima"): Family("Anima", lambda network: network.patch_spatial),
    ("comfy.ldm.wan.model", "WanModel"): Family("Wan", _patch_size),
    ("comfy.ldm.krea2.model", "SingleStreamDiT"): Family("Krea 2", lambda network: network.patch, has_references=True),
}
#: Classes of the host's wrapper around a supported network that give its tokens another order.
_OTHER_ORDER = {"LongCatImage"}


def find_family(model: Any) -> Family | None:
    """The family of a MODEL (a patcher), or None for a UNet and everything unknown."""
    if type(model.model).__name__ in _OTHER_ORDER:
        return None
    return family_of(model.get_model_object("diffusion_model"))


def family_of(network: Any) -> Family | None:
    """The family of a network, also of one that was compiled."""
    kind = type(plain_network(network))
    return FAMILIES.get((kind.__module__, kind.__name__))


def plain_network(network: Any) -> Any:
    """The network itself, where a compiler has wrapped it."""
    return getattr(network, "_orig_mod", network)


def require_family(model: Any, node: str, also: str = "Stable Diffusion 1.x, 2.x and SDXL") -> Family:
    """The family of a MODEL. Raises ValueError that names the model and those that are supported."""
    family = find_family(model)
    if family is None:
        raise ValueError(
            f"{node}: this MODEL is {hooks.model_name(model)}, which is not supported. It works on {also}, {SUPPORTED}."
        )
    return family


def require_references(model: Any, node: str) -> Family:
    """The family of a MODEL that reads reference images itself. Raises ValueError that names those that do."""
    family, network = find_family(model), plain_network(model.get_model_object("diffusion_model"))
    if family is None or not ((family.has_references and _reads_references(network)) or has_reference_tokens(model.model)):
        raise ValueError(
            f"{node}: this MODEL is {hooks.model_name(model)}, which takes no reference images. Load {WITH_REFERENCES}."
        )
    return family


def has_reference_tokens(model: Any) -> bool:
    """Whether the host's model object appends reference tokens and counts them itself (see `count_references`)."""
    return hasattr(model, "reference_owners")


def _reads_references(network: Any) -> bool:
    """False for a Krea 2 that was not trained for editing: it ignores references unless a node chooses how they are numbered."""
    return getattr(network, "default_ref_method", "index") is not None


def image_grid(family: Family, network: Any, latent: Any) -> Grid:
    """Rows and columns of image tokens of a latent [..., h, w], which the host pads up to whole patches."""
    patch = family.patch(plain_network(network))
    return -(-latent.shape[-2] // patch), -(-latent.shape[-1] // patch)


def count_references(
    family: Family, model: Any, latent: Any, conditions: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Number of tokens of each reference image that a model call appends after the image, and the reference of each of those tokens.

    The second is () where references follow one another. A model object may lay them side by side; it then has a method
    `reference_owners(latent, conditions) -> list[int]`, the reference of each token after the image, -1 for one of no reference.
    """
    if has_reference_tokens(model):
        owners = model.reference_owners(latent, conditions)
        count = max(owners, default=-1) + 1
        rest = count if -1 in owners else -1  # tokens of no reference count as one more, to which no region belongs
        owners = tuple(rest if owner < 0 else owner for owner in owners)
        return tuple(owners.count(index) for index in range(max(count, rest + 1))), owners
    network = plain_network(model.diffusion_model)
    if not family.has_references or (not _reads_references(network) and not conditions.get("ref_latents_method")):
        return (), ()
    counts = []
    for reference in conditions.get("ref_latents") or ():
        rows, columns = image_grid(family, network, reference)
        counts.append(rows * columns * (reference.shape[2] if reference.ndim == 5 else 1))
    return tuple(counts), ()
