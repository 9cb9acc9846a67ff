"""What a technique hands in to act on a transformer base: texts for regions, weights of references, exemplar keys.

A contribution is frozen, is the same object in every clone of a MODEL, and only describes. The mechanism (`apply.py`) asks it once per
run and grid, joins the answers of all contributions of a MODEL in one softmax, and forgets them when the run ends. Where two contributions
cover the same cells, the later one counts: its base weight scales what the earlier ones give there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..grids import Rows, batch_error
from ..schedule import PercentRange


@dataclass(frozen=True, eq=False)
class Exemplar:
    """Keys and values of another image, for the conditional rows of one chunk of a model call.

    Args:
        layers: by the key of an attention call (see `attention.CallNames`): keys and values [1 or rows, heads, m, d].
        count: m.
        share: [f, n] weight of the exemplar for every image cell; the cell's own image has `own`.
        own: [f, n] or None for 1.
        cells, keys: [f, n, c] and [m, c]; cells keys^T is added to the logits (class agreement). c may be 0.
    """

    layers: Mapping[Hashable, tuple[Tensor, Tensor]]
    count: int
    share: Tensor
    cells: Tensor
    keys: Tensor
    own: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Contribution:
    """Base class: acts on nothing. Override what the technique needs; f is 1 or the number of latents of the chunk.

    Args:
        node: display name, for messages.
        percent: the part of the schedule in which it acts; outside, nothing is appended to the model's input.
        texts: one CONDITIONING per region.
    """

    node: str
    percent: PercentRange
    texts: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def before_run(self, run: Any) -> None:
        """Raise ValueError here if an input cannot work with this run. Call the base class's method too."""
        shape = run.latent_shape
        if len(shape) == 5 and shape[2] > 1:
            raise ValueError(
                f"{self.node}: the latent has {shape[2]} frames; on transformer models it works on single images only. Use a length of 1."
            )
        widths = {entry["cross_attn"].shape[-1] for entry in _positive(run) if entry.get("cross_attn") is not None}
        for conditioning in self.texts:
            for tokens, *_ in conditioning:
                if widths and tokens.shape[-1] not in widths:
                    raise ValueError(
                        f"{self.node}: the texts of regions have width {tokens.shape[-1]}, but the positive prompt has width {max(widths)}. "
                        "Encode both with the CLIP of this MODEL."
                    )
                if tokens.shape[0] not in (1, shape[0]):
                    raise batch_error(self.node, "the text of a region", tokens.shape[0], shape[0])

    def region_weights(self, run: Any, part: Rows) -> Tensor | None:
        """[f, 1 + r, h, w], how much every image cell attends to the texts so far (first) and to each of its r texts."""

    def gain(self, run: Any, part: Rows, sigma: float) -> Tensor | float | None:
        """[f, h, w] or a number: how far cells go from the attention without its texts to that with them; None or 1 for all the way.

        Values other than 1 cost a second attention of the image cells. Weights below 1 are cheaper: put them into `region_weights`.
        """

    def text_gains(self, run: Any, sigma: float) -> tuple[float, ...] | None:
        """Factors of the weights of its r texts at this noise level; None for 1. They cost nothing."""

    def separation(self, run: Any, part: Rows) -> tuple[Tensor, Tensor] | None:
        """(owner [f, h, w], between [k, k]): see `joint.bias.Separation`."""

    def reference_weights(self, run: Any, part: Rows) -> tuple[int, Tensor] | None:
        """(index of the first reference, weights [f, k, h, w]): how much every cell attends to k reference images of the conditioning.

        They belong to regions from then on: they attend only to themselves, no text attends to them, and 0 has no effect. Holds
        for unconditional rows too, since the references are part of their input.
        """

    def exemplars(self, run: Any, part: Rows, call: Any) -> tuple[Exemplar, ...]:
        """Other images that the cells of this chunk attend to beside their own. `call` is the running `recording.ModelCall`."""
        return ()


def overrides(contribution: Contribution, name: str) -> bool:
    """Whether a contribution answers this question at all."""
    return getattr(type(contribution), name) is not getattr(Contribution, name)


def _positive(run: Any) -> list[dict[str, Any]]:
    """The positive conditions of a run, as the host keeps them."""
    return (getattr(run.guider, "conds", None) or {}).get("positive") or []
