"""What both ways of Apply IFAdapter check and share: names, limits, phrases as tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ifadapter.instances import Instance, shorten
from .. import hooks, inputs, notices, padding
from ..run import SamplingRun
from ..schedule import PercentRange

NODE = "Apply IFAdapter"
LOADER = "Load IFAdapter"
FOLDER = "ifadapter"
LINK = "https://huggingface.co/WuYW/IFAdapter"
MOST_INSTANCES = 50  # with an adapter
MOST_STRENGTH = 2.0
ALWAYS = PercentRange()
#: What a CONDITIONING can be limited by that has no meaning for an instance, whose box is the limit.
IGNORED = ("area", "mask", "hooks", "control", "gligen")


@dataclass(frozen=True, eq=False)
class PhraseTokens:
    """The text of one instance: tokens [m, c] and the part of the sampling in which they are used, one or several of them."""

    entries: tuple[tuple[Tensor, PercentRange], ...]

    def find_active(self, run: SamplingRun, options: dict) -> tuple[int, ...]:
        """The indices of the entries that are used in the running model call."""
        if len(self.entries) == 1 and self.entries[0][1] == ALWAYS:
            return (0,)
        return tuple(index for index, (_, percent) in enumerate(self.entries) if run.inside(percent, options))

    def join(self, active: tuple[int, ...]) -> Tensor:
        """The tokens of these entries, one after the other: [m, c]."""
        return torch.cat([self.entries[index][0] for index in active])

    @property
    def width(self) -> int:
        return int(self.entries[0][0].shape[-1])


def check_mask_batches(instances: Iterable[Instance], run: SamplingRun) -> None:
    """Raise a ValueError if a batch of masks is neither 1 nor as long as the latents."""
    for instance in instances:
        if instance.mask is not None:
            name = f"the mask of instance {shorten(instance.phrase)}"
            inputs.check_batch(instance.mask.shape[0], run.latent_shape[0], NODE, name)


def check_clip(clip: Any) -> None:
    """Raise a ValueError if there is no CLIP."""
    inputs.check_connected(
        clip, NODE, "CLIP", "Connect the CLIP of the checkpoint; a file with only a diffusion model contains none."
    )


def encode_phrases(clip: Any, instances: Iterable[Instance], background: str | None) -> tuple[PhraseTokens, ...]:
    """The tokens of every instance, then of the background phrase if it is not None. A phrase that occurs twice is encoded once.

    An instance's conditioning replaces its phrase. A CLIP with scheduled LoRA hooks gives one entry per part of its schedule.

    Raises:
        ValueError: no CLIP although a phrase must be encoded, or a conditioning that cannot be used.
    """
    encoded: dict[str, PhraseTokens] = {}

    def encode(phrase: str) -> PhraseTokens:
        if phrase not in encoded:
            check_clip(clip)
            encoded[phrase] = _encode(clip, phrase)
        return encoded[phrase]

    found = [encode(i.phrase) if i.conditioning is None else read_conditioning(i.conditioning, i.phrase) for i in instances]
    return tuple(found if background is None else [*found, encode(background)])


def _encode(clip: Any, phrase: str) -> PhraseTokens:
    if not getattr(clip, "use_clip_schedule", False):
        return PhraseTokens(((padding.encode_unpadded(clip, phrase), ALWAYS),))
    return read_conditioning(clip.encode_from_tokens_scheduled(clip.tokenize(phrase), show_pbar=False), phrase)


def read_conditioning(conditioning: Any, phrase: str) -> PhraseTokens:
    """The texts of a CONDITIONING, without padding where its end can be detected, each in its part of the sampling.

    Raises:
        ValueError: naming the instance, if the CONDITIONING is empty, not text, or has one text per latent.
    """
    name = f"{NODE}: the conditioning of instance {shorten(phrase)}"
    entries = list(conditioning or ())
    if not entries:
        raise ValueError(f"{name} is empty. Connect the output of CLIP Text Encode or of another text encoder.")
    found, ignored = [], set()
    for tokens, values in entries:
        if not torch.is_tensor(tokens) or tokens.ndim != 3 or 0 in tokens.shape:
            raise ValueError(
                f"{name} contains no text tokens. Connect the output of CLIP Text Encode or of another text encoder."
            )
        if tokens.shape[0] != 1:
            raise ValueError(
                f"{name} is a batch of {tokens.shape[0]} texts; an instance has one text for all latents. Connect one."
            )
        if not bool(torch.isfinite(tokens).all()):
            raise ValueError(f"{name} contains NaN or infinite values. Encode the text again.")
        ignored |= {key for key in IGNORED if values.get(key) is not None}
        start = max(values.get("start_percent", 0.0), values.get("clip_start_percent", 0.0))
        end = min(values.get("end_percent", 1.0), values.get("clip_end_percent", 1.0))
        text = padding.without_padding(tokens.detach(), values.get("pooled_output"))[0]
        if start < end:
            found.append((text, PercentRange(start, end)))
    if not found:
        raise ValueError(f"{name} is never used: its start_percent is not before its end_percent.")
    if len({text.shape[-1] for text, _ in found}) > 1:
        raise ValueError(f"{name} combines texts of several widths. Use one text encoder for all of them.")
    if ignored:
        notices.warn_user(f"{name} is limited by {', '.join(sorted(ignored))}, which is not used here: the box is its region.")
    return PhraseTokens(tuple(found))


def check_width(model: Any, keys: list[hooks.LayerKey], texts: Iterable[PhraseTokens]) -> None:
    """Raise a ValueError if the text layers of the MODEL take tokens of another width."""
    needed = hooks.text_width(model, keys)
    wrong = next((text.width for text in texts if needed is not None and text.width != needed), None)
    if wrong is not None:
        raise ValueError(
            f"{NODE}: this CLIP produces text embeddings of width {wrong}, but the MODEL ({hooks.model_name(model)}) takes width {needed}. "
            "Connect the CLIP, or conditionings from the CLIP, that came with the same checkpoint."
        )
