"""From contributions to what is added to one model call: the texts to append, the layout of the sequence, the plan for its attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...joint.layout import Layout
from ...joint.rotation import Rotation
from .. import grids
from . import families, texts
from .attention import CallPlan
from .call import AddedText, ModelCall
from .contribution import Contribution, overrides
from .sides import Sides


@dataclass(frozen=True, eq=False)
class Prepared:
    """What to change in a model call: its text with all texts appended, the conditions that count them, the plan for its attention.

    Args:
        prompt: [b, t, c]. conditions: replaced ones. padding: text positions that hold the model's own padding token.
    """

    prompt: Tensor
    conditions: dict[str, Any]
    plan: CallPlan
    padding: tuple[slice, ...]


def prepare(call: ModelCall, contributions: Sequence[Contribution], is_recording: bool = False) -> Prepared | None:
    """What these contributions change in a call; None if they change nothing there. A recording needs a plan in any case."""
    chunks = [] if is_recording else call.chunks()  # a recording may have another size and acts on nothing
    if chunks is None:
        return None
    references, owners = families.count_references(call.family, call.model, call.latent, call.conditions)
    conditional = [part for part, is_conditional in chunks if is_conditional]
    if not (conditional or references or is_recording):
        return None
    added = [text for contribution in contributions for text in _texts(call, contribution)] if conditional else []
    exemplars = [
        [exemplar for contribution in contributions for exemplar in contribution.exemplars(call.run, part, call)]
        for part in conditional
    ]
    divides = any(
        (conditional and overrides(c, "separation")) or (references and overrides(c, "reference_weights")) for c in contributions
    )
    if not (added or divides or any(exemplars) or is_recording):
        return None
    layout = _layout(call, added, references, owners)
    if layout.is_ambiguous:
        added.append(_filler(call, call.multiple or 1))
        layout = _layout(call, added, references, owners)
    sides = Sides(call, layout, tuple(contributions), tuple(added), chunks, exemplars)
    biases, cache = sides.biases()
    plan = CallPlan(
        layout,
        call.rows,
        call.prompt.shape[1],
        len(layout.text) - call.prompt.shape[1],
        biases,
        _rotations(call, layout, sides.main_texts()),
        sides.gain(),
        sides.extra_tokens(),
        cache,
    )
    prompt, padding = _appended(call, layout, added)
    return Prepared(prompt, _conditions(call, layout, added), plan, padding)


def _texts(call: ModelCall, contribution: Contribution) -> list[AddedText]:
    """The contribution's texts as the model receives them, encoded once per run."""

    def make() -> list[AddedText]:
        return [
            AddedText(contribution, region, text)
            for region, conditioning in enumerate(contribution.texts)
            for text in texts.encode(call.model, conditioning, call.latent)
        ]

    if call.run.weights_may_change() or torch.is_grad_enabled():
        return make()
    return call.run.get_or_make((contribution, "texts", call.latent.device), make)


def _filler(call: ModelCall, length: int) -> AddedText:
    return AddedText(None, 0, texts.Text(call.prompt.new_zeros(1, length, call.prompt.shape[2]), None))


def _filled(length: int, multiple: int | None) -> int:
    return length if not multiple else -(-length // multiple) * multiple


def _layout(call: ModelCall, added: Sequence[AddedText], references: tuple[int, ...], owners: tuple[int, ...]) -> Layout:
    lengths = tuple(_filled(length, call.multiple) for length in (call.prompt.shape[1], *(text.length for text in added)))
    image = call.grid[0] * call.grid[1] + sum(references)
    return Layout(lengths, call.grid, references, _filled(image, call.multiple) - image, owners)


def _rotations(call: ModelCall, layout: Layout, beside: Sequence[int]) -> tuple[Rotation, ...]:
    """What moves tokens to the positions that they have with one text only; `beside`: for every row the text that padding goes with."""
    rotary, device = call.family.rotary(families.plain_network(call.model.diffusion_model)), call.latent.device
    if rotary is None:
        return ()

    def make() -> tuple[Rotation, ...]:
        found = []
        delta = rotary.text_deltas(layout)
        if delta is not None:
            found.append(Rotation.from_angles(layout.text, rotary.angles(delta)[None], device))
        deltas = [rotary.padding_deltas(layout, text) for text in beside]
        if any(delta is not None for delta in deltas):
            none = torch.zeros(layout.padding, len(rotary.axes))
            angles = torch.stack([rotary.angles(none if delta is None else delta) for delta in deltas])
            found.append(Rotation.from_angles(layout.padding_span, angles, device))
        return tuple(found)

    return call.run.get_or_make(("rotations", layout, tuple(beside), device), make)


def _appended(call: ModelCall, layout: Layout, added: Sequence[AddedText]) -> tuple[Tensor, tuple[slice, ...]]:
    """The prompt with all texts behind it, each filled up to its length in the layout, and where it was filled."""
    if not added:
        return call.prompt, ()
    parts, padding = [], []
    every = [call.prompt, *(_of_rows(call, text.text.tokens).to(call.prompt) for text in added)]
    for part, span in zip(every, layout.text_spans()):
        used = part.shape[1]
        if used < len(span):
            padding.append(slice(span.start + used, span.stop))
        parts.append(F.pad(part, (0, 0, 0, len(span) - used)))
    return torch.cat(parts, dim=1), tuple(padding)


def _of_rows(call: ModelCall, batch: Tensor) -> Tensor:
    """A batch of 1, or of all latents, for the rows of the call."""
    if batch.shape[0] == 1:
        return batch.expand(call.rows, *batch.shape[1:])
    size = call.rows // len(call.options.get("cond_or_uncond") or [0])
    frames = [frame % batch.shape[0] for frame in grids.frame_indices(call.options, size)]
    return batch[frames * (call.rows // size)]


def _conditions(call: ModelCall, layout: Layout, added: Sequence[AddedText]) -> dict[str, Any]:
    """Conditions that count text tokens, for the longer text."""
    found: dict[str, Any] = {}
    if not added:
        return found
    if "num_tokens" in call.conditions:
        found["num_tokens"] = len(layout.text)
    mask = call.conditions.get("attention_mask")
    counts_text = mask is None or (mask.ndim == 2 and mask.shape[-1] == call.prompt.shape[1])
    if counts_text and (mask is not None or any(text.text.mask is not None for text in added)):
        every = [mask, *(None if text.text.mask is None else _of_rows(call, text.text.mask) for text in added)]
        like = next(m for m in every if m is not None)
        parts = []
        lengths = [call.prompt.shape[1], *(text.length for text in added)]
        for part, length, span in zip(every, lengths, layout.text_spans()):
            part = torch.ones(call.rows, length, dtype=like.dtype, device=like.device) if part is None else part.to(like)
            parts.append(F.pad(part.expand(call.rows, -1), (0, len(span) - length), value=1))
        found["attention_mask"] = torch.cat(parts, dim=1)
    return found


@contextmanager
def filled_text(call: ModelCall, prepared: Prepared) -> Iterator[None]:
    """Put the model's own padding token where texts are filled up.

    The token belongs behind the network's text embedder, where a longer input cannot bring it; so the embedder's output is completed for
    the time of this call.
    """
    if not prepared.padding:
        yield
        return
    network = families.plain_network(call.model.diffusion_model)
    length = prepared.prompt.shape[1]

    def fill(module: Any, args: Any, out: Tensor) -> Tensor:
        if out.ndim != 3 or out.shape[1] != length:
            return out
        token, out = network.cap_pad_token.to(device=out.device, dtype=out.dtype, copy=True), out.clone()
        for span in prepared.padding:
            out[:, span] = token
        return out

    handle = network.cap_embedder.register_forward_hook(fill)
    try:
        yield
    finally:
        handle.remove()
