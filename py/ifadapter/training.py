"""How an adapter is trained: the base's own denoising loss, with the base frozen and parts of the conditions left out.

    L = || eps - eps_theta(x_t, t, y, {(r_i, l_i)}) ||^2

The phrases of an image are dropped in 15 % of the rows, its global prompt in 30 %, independently. Dropped phrases are what an
unconditional row has: zero, no token visible, boxes still present (`model.IFAdapter.conditional_and_unconditional_tokens`). In training
each row has its own boxes, so full maps are computed; the result equals `attention.compute_injection` of each row separately.

Axes: b rows, i instances (padded, see `Batch.present`), t text layers, l positions of a phrase, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .attention import Attend, InstanceRegions, KeysValues, compute_injection, project_tokens
from .model import IFAdapter

LOCAL_DROP = 0.15
GLOBAL_DROP = 0.30


@dataclass(frozen=True, eq=False)
class Batch:
    """The layouts of a batch.

    Args:
        phrases: [b, i, t, l, c]. eot: [b, i, 1, c]. counts: [b, i]. As for `model.IFAdapter.tokens`, with the batch in front.
        boxes: [b, i, 4] x0 y0 x1 y1 in 0..1.
        present: [b, i] bool, False in the padding of rows with fewer instances.
    """

    phrases: Tensor
    eot: Tensor
    counts: Tensor
    boxes: Tensor
    present: Tensor

    def drop_phrases(self, rows: Tensor) -> Batch:
        """A copy in which the phrases of these rows [b] bool are dropped."""
        keep = (~rows).to(self.phrases.device)
        wide = keep.view(-1, 1, 1, 1).to(self.phrases)
        return replace(self, phrases=self.phrases * wide[..., None], eot=self.eot * wide, counts=self.counts * keep[:, None])

    def to(self, device: torch.device | str) -> Batch:
        """A copy on a device."""
        return Batch(*(getattr(self, name).to(device) for name in ("phrases", "eot", "counts", "boxes", "present")))


def draw_drops(rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which rows lose their phrases and which their global prompt: two [b] bool."""
    chance = torch.rand((2, rows), generator=rng)
    return chance[0] < LOCAL_DROP, chance[1] < GLOBAL_DROP


class Prepared:
    """Keys and values of one batch in every layer, with gradients, and its regions on every grid. Made once per training step."""

    def __init__(self, network: IFAdapter, batch: Batch) -> None:
        self.network = network
        self.batch = batch
        rows, slots = batch.present.shape
        flat = (batch.phrases.flatten(0, 1), batch.eot.flatten(0, 1), batch.counts.flatten(), batch.boxes.flatten(0, 1))
        self.tokens = network.tokens(*flat).unflatten(0, (rows, slots))
        self._projected: dict[str, KeysValues] = {}
        self._regions: dict[tuple[int, int], InstanceRegions] = {}

    def change(self, key: str, q: Tensor, h: int, w: int) -> Tensor:
        """What is added to the attention of the layer `key`, [b, h * w, c], for its query of the same shape."""
        modules: dict = self.network.adapter_modules  # type: ignore[assignment]
        layer = modules[key]
        if key not in self._projected:
            self._projected[key] = project_tokens(layer, self.tokens)
        if (h, w) not in self._regions:
            self._regions[h, w] = InstanceRegions.from_rows(self.batch.boxes, self.batch.present, h, w)
        regions = self._regions[h, w]
        slots = self.network.config.slots
        return compute_injection(
            layer, q, self._projected[key], range(len(q)), regions, slots=slots, attention=make_few_key_attention(layer.heads)
        )


def make_few_key_attention(heads: int) -> Attend:
    """Attention in plain operations: with a dozen keys its gradient is many times faster on a CPU than that of the fused kernel."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(each, "b l (n d) -> b n l d", n=heads) for each in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return rearrange(weights.to(v) @ v, "b n l d -> b l (n d)")

    return attention
