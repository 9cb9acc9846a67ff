"""Subject models' room: their files -> MODEL, CLIP_VISION and the fusing network; a prompt with markers and pictures -> CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...snf import checkpoint
from ...snf.model import MARKER, Postfuse
from .. import folders, networks, notices, playground

LOAD_NODE, ENCODE_NODE = "Load Subject Model", "Subject Encode"
FOLDER = "face_diffuser"
LINK = (
    "https://huggingface.co/CodeGoat24/Face-diffuser (SDM/pytorch_model.bin) or https://huggingface.co/mit-han-lab/fastcomposer"
)
FILLS = ("noise", "gray", "black")


@dataclass(frozen=True, eq=False)
class SubjectFuser:
    """The network that puts a person into a prompt, and the width of the text and the picture embeddings that it reads."""

    patcher: Any
    width: int


def load(file: str) -> tuple[Any, Any, SubjectFuser]:
    """MODEL, CLIP_VISION and fuser of a subject model's file, by its keys.

    Raises:
        ValueError: no such file, or it is something else, or damaged; the message says what it is and what to load.
    """
    path = folders.path(FOLDER, file, LOAD_NODE, LINK)
    name = f"{LOAD_NODE}: {file}"
    try:
        weights = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read as weights ({type(error).__name__}). It may be an incomplete download; get it again "
            f"from {LINK}."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{name} holds something else than weights. Load a Face-diffuser SDM file or a FastComposer file.")
    if checkpoint.is_small(weights):
        unet, tower = playground.read_weights("unet"), playground.read_weights("image_encoder")
        found = checkpoint.changes(weights, checkpoint.SubjectParts(unet, tower, {}, playground.CONTEXT_DIM), name)
        model, vision = playground.load_model(found.unet), playground.load_clip_vision(found.image_encoder)
    else:
        found = checkpoint.parts(weights, name)
        model = comfy.sd.load_diffusion_model_state_dict(found.unet)
        vision = comfy.clip_vision.load_clipvision_from_sd(found.image_encoder)
        if model is None or vision is None:
            part = "UNet" if model is None else "image encoder"
            raise ValueError(
                f"{name}: this ComfyUI does not know the shape of its {part}. Load a file made for Stable Diffusion 1.5."
            )
    return model, vision, SubjectFuser(networks.load(Postfuse, found.postfuse, found.width), found.width)


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
        images: IMAGE batches: one a marker (several pictures in a batch are of one person, whose embeddings are averaged), or one batch
            with one picture a marker.
        masks: as many pictures as `images`, or none; where the person is. The picture is cropped to it, the rest filled.
        fill: what stands around the person: "noise" as in the published training, "gray" or "black".

    Raises:
        ValueError: markers and pictures that do not fit, each mistake with its remedy.
    """
    if clip is None:
        raise ValueError(f"{ENCODE_NODE}: the CLIP input is empty. Connect the CLIP of the scene's checkpoint.")
    text, places = marked(clip, prompt)
    groups = grouped(images, len(places))
    if getattr(clip, "layer_idx", None) not in (None, -1):
        notices.warn_user(
            f"{ENCODE_NODE}: subject models were trained on the last layer of CLIP; this CLIP stops earlier (CLIP skip)."
        )
    pictures = _outlined([picture for group in groups for picture in group], masks, fill)
    embeds = _embeds(clip_vision, pictures)
    means = torch.stack([part.mean(dim=0) for part in embeds.split([len(group) for group in groups])])
    plain = clip.encode_from_tokens_scheduled(clip.tokenize(text, disable_weights=True))
    comfy.model_management.load_models_gpu([fuser.patcher])
    device = fuser.patcher.load_device
    with torch.no_grad():
        subject = [
            [fuser.patcher.model.fused_prompt(rows.to(device).float(), means.to(device).float(), places).to(rows), dict(facts)]
            for rows, facts in plain
        ]
    return subject, plain


def marked(clip: Any, prompt: str, who: str = ENCODE_NODE) -> tuple[str, list[int]]:
    """The prompt without markers, and the token of each person in it.

    Raises:
        ValueError: each mistake with markers, with its remedy; `who` begins the message.
    """
    text, before = split_prompt(prompt, who)
    places = [_place(clip, words, number, who) for number, words in enumerate(before, 1)]
    for number, (first, second) in enumerate(pairwise(places), 1):
        if first == second:
            raise ValueError(
                f"{who}: markers {number} and {number + 1} follow each other without a word between them. Give "
                f"each person a word: 'a man {MARKER} and a woman {MARKER}'."
            )
    return text, places


def split_prompt(prompt: str, who: str = ENCODE_NODE) -> tuple[str, list[str]]:
    """The prompt without markers, and for each marker all the text before it."""
    parts = prompt.split(MARKER)
    if len(parts) == 1:
        raise ValueError(
            f"{who}: the prompt has no marker. Write {MARKER} behind the word that names the person: 'a man {MARKER} in a park'."
        )
    before = []
    for number in range(1, len(parts)):
        words = " ".join(" ".join(parts[:number]).split())
        if not words:
            raise ValueError(
                f"{who}: the prompt begins with a marker. It belongs behind the word of the person: 'a man {MARKER} in a park'."
            )
        before.append(words)
    return " ".join(" ".join(parts).split()), before


def grouped(images: Sequence[Tensor], markers: int) -> list[list[Tensor]]:
    """The pictures [h, w, c] of each marker."""
    batches = [batch if batch.ndim == 4 else batch[None] for batch in images]
    if len(batches) == markers or (markers == 1 and len(batches) == 1):
        return [list(batch) for batch in batches]
    singles = [picture for batch in batches for picture in batch]
    if len(singles) == markers:
        return [[picture] for picture in singles]
    if markers == 1:
        return [singles]
    if len(singles) < markers:
        raise ValueError(
            f"{ENCODE_NODE}: the prompt has {markers} markers but there are only {len(singles)} pictures. "
            "Connect a picture for each person, in the order of the markers, or remove a marker."
        )
    raise ValueError(
        f"{ENCODE_NODE}: there are {len(singles)} pictures but only {markers} markers in the prompt. "
        f"Write {MARKER} behind the word of each person, or remove pictures. Several pictures of one person must be one "
        "batch of a list."
    )


def _place(clip: Any, words: str, number: int, who: str) -> int:
    """The position of the last token of these words in the encoded prompt; the start token is 0."""
    tokens = clip.tokenize(words, disable_weights=True)
    key = next(iter(tokens))
    end = clip.tokenize("", disable_weights=True)[key][0][1][0]
    chunks = tokens[key]
    ids = [token[0] for token in chunks[0]]
    length = next((place for place, token in enumerate(ids) if isinstance(token, int) and token == end), len(ids))
    if len(chunks) > 1:
        raise ValueError(
            f"{who}: marker {number} stands behind more than {len(ids) - 2} tokens, where the subject model does not look. "
            "Shorten the text before it, or move the persons to the front."
        )
    if length < 2:
        raise ValueError(f"{who}: there is no readable word before marker {number}. Write it behind the word of the person.")
    return length - 1


def _outlined(pictures: list[Tensor], masks: Sequence[Tensor], fill: str) -> list[Tensor]:
    """Pictures [h, w, 3], each cropped to its mask with the rest filled, where there are masks."""
    for number, picture in enumerate(pictures, 1):
        if not picture.isfinite().all():
            raise ValueError(f"{ENCODE_NODE}: picture {number} has values that are no numbers. Check the node that makes it.")
    flat = [mask for batch in masks for mask in (batch if batch.ndim == 3 else batch[None])]
    if not flat:
        return [_colours(picture) for picture in pictures]
    if len(flat) not in (1, len(pictures)):
        raise ValueError(
            f"{ENCODE_NODE}: there are {len(flat)} masks for {len(pictures)} pictures. Give one a picture, in the same "
            "order, or one for all."
        )
    return [outline(_colours(picture), flat[number % len(flat)], fill, number + 1) for number, picture in enumerate(pictures)]


def _colours(picture: Tensor) -> Tensor:
    return picture[..., :3].expand(-1, -1, 3).float()


def outline(picture: Tensor, mask: Tensor, fill: str, number: int = 1, rng: torch.Generator | None = None) -> Tensor:
    """The part of a picture [h, w, 3] around the mask [H, W], everything outside of the mask filled; `rng` draws the noise."""
    h, w = picture.shape[:2]
    mask = F.interpolate(mask[None, None].float().to(picture.device), size=(h, w), mode="bilinear")[0, 0].clamp(0, 1)
    rows, columns = ((mask > 0.5).any(dim=side).nonzero().flatten() for side in (1, 0))
    if not len(rows):
        raise ValueError(f"{ENCODE_NODE}: the mask of picture {number} is empty. Paint the person, or disconnect the masks.")
    if fill == "noise":
        around = torch.rand(picture.shape, generator=rng or torch.Generator().manual_seed(0)).to(picture) * (254 / 255)
    else:
        around = torch.full_like(picture, 0.5 if fill == "gray" else 0.0)
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return torch.lerp(around, picture, mask[..., None])[y0:y1, x0:x1]


def squared(picture: Tensor, side: int) -> Tensor:
    """A picture [h, w, 3] on a black square, resized: [side, side, 3]. As the published code prepares its references."""
    h, w = picture.shape[:2]
    high, wide = (max(h, w) - h) // 2, (max(h, w) - w) // 2
    square = F.pad(picture.movedim(-1, 0)[None], (wide, wide, high, high))
    if square.shape[-2:] != (side, side):
        square = F.interpolate(square, size=(side, side), mode="bilinear", antialias=True)
    return square[0].movedim(0, -1).clamp(0, 1)


def _embeds(clip_vision: Any, pictures: list[Tensor]) -> Tensor:
    """[n, c], not normalised."""
    side = getattr(clip_vision, "image_size", 224)
    batch = torch.stack([squared(picture, side) for picture in pictures])
    return clip_vision.encode_image(batch)["image_embeds"].float()
