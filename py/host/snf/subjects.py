"""Subject models in the host: a file -> MODEL, CLIP_VISION and the fusing network; a prompt with markers and images -> CONDITIONING."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from ...snf import checkpoint
from ...snf.model import MARKER, Postfuse
from ...weight_files import check_values, read_weights
from .. import folders, inputs, networks, playground
from ..notices import warn_user

LOAD_NODE, ENCODE_NODE = "Load Subject Model", "Subject Encode"
FOLDER = "face_diffuser"
LINK = (
    "https://huggingface.co/CodeGoat24/Face-diffuser (SDM/pytorch_model.bin) or https://huggingface.co/mit-han-lab/fastcomposer"
)
FILLS = ("noise", "gray", "black")
#: The marker, and the one that FastComposer's demonstration page has in its place.
MARKERS = re.compile(r"<\|image\|>|<A\*>")


@dataclass(frozen=True, eq=False)
class SubjectFuser:
    """The network that fuses a person's image with a prompt, and the width of the text and image embeddings that it takes."""

    patcher: Any
    width: int


def load(file: str) -> tuple[Any, Any, SubjectFuser]:
    """MODEL, CLIP_VISION and fuser of a subject model's file; its kind is detected from the weights.

    Raises:
        ValueError: no such file, or it is something else, or damaged; the message says what it is and what to load.
    """
    path = folders.path(FOLDER, file, LOAD_NODE, LINK)
    name = f"{LOAD_NODE}: {file}"
    try:
        weights = read_weights(path).tensors
    except ValueError as error:
        raise ValueError(f"{LOAD_NODE}: {error} The published files are at {LINK}.") from error
    if checkpoint.is_partial(weights):
        unet, image_encoder = playground.read_weights("unet"), playground.read_weights("image_encoder")
        found = checkpoint.split_partial(weights, checkpoint.SubjectParts(unet, image_encoder, {}, playground.CONTEXT_DIM), name)
        _check_parts(found, name)
        model, vision = playground.load_model(found.unet), playground.load_clip_vision(found.image_encoder)
    else:
        found = checkpoint.split_checkpoint(weights, name)
        _check_parts(found, name)
        model, vision = _load_unet(found.unet, name), _load_image_encoder(found.image_encoder, name)
    return model, vision, SubjectFuser(networks.load(Postfuse, found.postfuse, found.width), found.width)


def _check_parts(parts: checkpoint.SubjectParts, name: str) -> None:
    for part in (parts.postfuse, parts.image_encoder, parts.unet):
        check_values(part, name)


def _load_unet(weights: dict[str, Tensor], name: str) -> Any:
    try:
        model = comfy.sd.load_diffusion_model_state_dict(weights)
    except Exception as error:  # the host builds what the keys suggest and fails where a shape contradicts
        raise _unknown_shape(name, "UNet") from error
    if model is None:
        raise _unknown_shape(name, "UNet")
    return model


def _load_image_encoder(weights: dict[str, Tensor], name: str) -> Any:
    try:
        vision = comfy.clip_vision.load_clipvision_from_sd(weights)
    except Exception as error:  # as above
        raise _unknown_shape(name, "image encoder") from error
    if vision is None:
        raise _unknown_shape(name, "image encoder")
    return vision


def _unknown_shape(name: str, part: str) -> ValueError:
    return ValueError(
        f"{name}: this ComfyUI does not support the shape of its {part}. Load a file made for Stable Diffusion 1.5."
    )


def encode(
    clip: Any,
    clip_vision: Any,
    fuser: SubjectFuser,
    prompt: str,
    images: Sequence[Tensor],
    masks: Sequence[Tensor] = (),
    fill: str = FILLS[0],
) -> tuple[list, list]:
    """CONDITIONING of the prompt with the persons, and of the same prompt without them.

    Args:
        prompt: with `<|image|>` behind the word of each person.
        images: IMAGE batches: one per marker (several images in a batch show one person; their embeddings are averaged), or one batch
            with one image per marker.
        masks: as many as there are images, or one for all, or none; the area of the person. The image is cropped to it and the rest filled.
        fill: fills the area outside of the mask: "noise" as in the published training, "gray" or "black".

    Raises:
        ValueError: markers and images that do not match, or unusable inputs, each with its remedy.
    """
    inputs.check_connected(clip, ENCODE_NODE, "clip", "Connect the CLIP of the scene's checkpoint.")
    inputs.check_connected(clip_vision, ENCODE_NODE, "clip_vision", "Connect the clip_vision output of Load Subject Model.")
    inputs.check_choice(fill, ENCODE_NODE, "fill", FILLS)
    text, positions = find_persons(clip, inputs.check_text(prompt, ENCODE_NODE, "prompt"))
    groups = group_images([inputs.check_image(batch, ENCODE_NODE, "images") for batch in images], len(positions))
    if getattr(clip, "layer_idx", None) not in (None, -1):
        warn_user(
            f"{ENCODE_NODE}: subject models were trained on the last layer of CLIP; this CLIP stops earlier. Remove CLIP Set Last Layer."
        )
    references = _crop_to_masks([image for group in groups for image in group], masks, fill)
    embeds = _encode_references(clip_vision, references)
    means = torch.stack([part.mean(dim=0) for part in embeds.split([len(group) for group in groups])])
    plain = clip.encode_from_tokens_scheduled(clip.tokenize(text, disable_weights=True))
    comfy.model_management.load_models_gpu([fuser.patcher])
    device, network = fuser.patcher.load_device, fuser.patcher.model
    try:
        with torch.no_grad():
            subject = [
                [network.fuse_prompt(tokens.to(device).float(), means.to(device).float(), positions).to(tokens), dict(options)]
                for tokens, options in plain
            ]
    except ValueError as error:
        raise ValueError(f"{ENCODE_NODE}: {error}") from error
    return subject, plain


def find_persons(clip: Any, prompt: str, who: str = ENCODE_NODE) -> tuple[str, list[int]]:
    """The prompt without markers, and the token position of each person in it.

    Raises:
        ValueError: each mistake with markers, with its remedy; `who` begins the message.
    """
    text, before = split_prompt(prompt, who)
    positions = [_last_position(clip, words, number, who) for number, words in enumerate(before, 1)]
    for number, (first, second) in enumerate(pairwise(positions), 1):
        if first == second:
            raise ValueError(
                f"{who}: markers {number} and {number + 1} follow each other without a word between them. Give "
                f"each person a word: 'a man {MARKER} and a woman {MARKER}'."
            )
    return text, positions


def split_prompt(prompt: str, who: str = ENCODE_NODE) -> tuple[str, list[str]]:
    """The prompt without markers, and for each marker all the text before it."""
    parts = MARKERS.split(prompt)
    if len(parts) == 1:
        raise ValueError(
            f"{who}: the prompt has no marker. Write {MARKER} behind the word that names the person: 'a man {MARKER} in a park'."
        )
    before = []
    for number in range(1, len(parts)):
        words = " ".join(" ".join(parts[:number]).split())
        if not words:
            raise ValueError(
                f"{who}: the prompt begins with a marker. Put the marker directly after the word for the person: 'a man {MARKER} in a park'."
            )
        before.append(words)
    return " ".join(" ".join(parts).split()), before


def group_images(batches: Sequence[Tensor], markers: int) -> list[list[Tensor]]:
    """The images [h, w, 3] of each marker, from batches [b, h, w, 3]."""
    if len(batches) == markers:
        return [list(batch) for batch in batches]
    singles = [image for batch in batches for image in batch]
    if len(singles) == markers:
        return [[image] for image in singles]
    if markers == 1:
        return [singles]
    if len(singles) < markers:
        raise ValueError(
            f"{ENCODE_NODE}: the prompt has {markers} markers but there are only {len(singles)} images. "
            "Connect an image for each person, in the order of the markers, or remove a marker."
        )
    raise ValueError(
        f"{ENCODE_NODE}: there are {len(singles)} images but only {markers} markers in the prompt. "
        f"Write {MARKER} behind the word of each person, or remove images. To use several images of one person, connect a list with one "
        "batch per person."
    )


def _last_position(clip: Any, words: str, number: int, who: str) -> int:
    """The position of the last token of these words in the encoded prompt; the start token is 0."""
    tokens = clip.tokenize(words, disable_weights=True)
    key = next(iter(tokens))
    end = clip.tokenize("", disable_weights=True)[key][0][1][0]
    chunks = tokens[key]
    ids = [token[0] for token in chunks[0]]
    length = next((position for position, token in enumerate(ids) if isinstance(token, int) and token == end), len(ids))
    if len(chunks) > 1:
        raise ValueError(
            f"{who}: there are more than {len(ids) - 2} tokens before marker {number}, beyond what the subject model uses. "
            "Shorten the text before it, or move the persons to the front."
        )
    if length < 2:
        raise ValueError(
            f"{who}: CLIP knows no word before marker {number}. Put the marker directly after the word for the person."
        )
    return length - 1


def _crop_to_masks(images: list[Tensor], masks: Sequence[Tensor], fill: str) -> list[Tensor]:
    """Images [h, w, 3], each cropped to its mask with the rest filled; unchanged without masks."""
    flat = [mask for batch in masks for mask in inputs.check_mask(batch, ENCODE_NODE, "masks")]
    if not flat:
        return images
    if len(flat) not in (1, len(images)):
        raise ValueError(
            f"{ENCODE_NODE}: there are {len(flat)} masks for {len(images)} images. Connect one mask per image, in the same "
            "order, or one for all."
        )
    return [crop_to_mask(image, flat[number % len(flat)], fill, number + 1) for number, image in enumerate(images)]


def crop_to_mask(image: Tensor, mask: Tensor, fill: str, number: int = 1, rng: torch.Generator | None = None) -> Tensor:
    """The part of an image [h, w, 3] around the mask [H, W], everything outside of the mask filled; `rng` draws the noise."""
    h, w = image.shape[:2]
    mask = F.interpolate(mask[None, None].float().to(image.device), size=(h, w), mode="bilinear")[0, 0].clamp(0, 1)
    rows, columns = ((mask > 0.5).any(dim=axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        raise ValueError(f"{ENCODE_NODE}: the mask of image {number} is empty. Paint the person, or disconnect the masks.")
    if fill == "noise":
        around = torch.rand(image.shape, generator=rng or torch.Generator().manual_seed(0)).to(image) * (254 / 255)
    else:
        around = torch.full_like(image, 0.5 if fill == "gray" else 0.0)
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return torch.lerp(around, image, mask[..., None])[y0:y1, x0:x1]


def pad_to_square(image: Tensor, side: int) -> Tensor:
    """An image [h, w, 3], padded with black to a square and resized: [side, side, 3]. As the published code prepares its references."""
    h, w = image.shape[:2]
    high, wide = (max(h, w) - h) // 2, (max(h, w) - w) // 2
    square = F.pad(image.movedim(-1, 0)[None], (wide, wide, high, high))
    if square.shape[-2:] != (side, side):
        square = F.interpolate(square, size=(side, side), mode="bilinear", antialias=True)
    return square[0].movedim(0, -1).clamp(0, 1)


def _encode_references(clip_vision: Any, images: list[Tensor]) -> Tensor:
    """[n, c], not normalised."""
    side = getattr(clip_vision, "image_size", 224)
    batch = torch.stack([pad_to_square(image, side) for image in images])
    return clip_vision.encode_image(batch)["image_embeds"].float()
