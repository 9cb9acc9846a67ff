"""How an adapter is trained: the base's own denoising loss, with the base frozen and parts of the conditions left out.

    L = || eps - eps_theta(x_t, t, y, {(r_i, l_i)}) ||^2

The phrases of a picture are dropped in 15 % of the rows, its global prompt in 30 %, independently; dropped phrases are what an uncond row
has: zero, nothing visible, boxes still there (`model.IFAdapter.row_sets`). In training each row has boxes of its own, so whole maps are
computed; the result is that of `injection.inject` with each row alone.

Axes: b rows, i instances (padded, see `Batch.present`), t text layers, l positions of a phrase, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .attention import Attend, KeysValues, Places, injected, prepare
from .model import IFAdapter

LOCAL_DROP = 0.15
GLOBAL_DROP = 0.30


@dataclass(frozen=True, eq=False)
class Batch:
    """The layouts of a batch.

    Args:
        phrases: [b, i, t, l, c]. eot: [b, i, 1, c]. counts: [b, i]. As `model.IFAdapter.tokens` takes them, one row more of axes.
        boxes: [b, i, 4] x0 y0 x1 y1 in 0..1.
        present: [b, i] bool, False in the padding of rows with fewer instances.
    """

    phrases: Tensor
    eot: Tensor
    counts: Tensor
    boxes: Tensor
    present: Tensor

    def without(self, rows: Tensor) -> Batch:
        """The same with the phrases of these rows [b] bool dropped."""
        keep = (~rows).to(self.phrases.device)
        wide = keep.view(-1, 1, 1, 1).to(self.phrases)
        return replace(self, phrases=self.phrases * wide[..., None], eot=self.eot * wide, counts=self.counts * keep[:, None])

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(*(getattr(self, name).to(device) for name in ("phrases", "eot", "counts", "boxes", "present")))


def drops(rows: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which rows lose their phrases and which their global prompt, two [b] bool."""
    chance = torch.rand((2, rows), generator=rng)
    return chance[0] < LOCAL_DROP, chance[1] < GLOBAL_DROP


class Prepared:
    """The keys and values of one batch in every layer, with gradients, and its places on every grid."""

    def __init__(self, network: IFAdapter, batch: Batch) -> None:
        self.network = network
        self.batch = batch
        rows, slots = batch.present.shape
        flat = (batch.phrases.flatten(0, 1), batch.eot.flatten(0, 1), batch.counts.flatten(), batch.boxes.flatten(0, 1))
        self.tokens = network.tokens(*flat).unflatten(0, (rows, slots))
        self._known: dict[str, KeysValues] = {}
        self._places: dict[tuple[int, int], Places] = {}

    def change(self, key: str, q: Tensor, h: int, w: int) -> Tensor:
        """What the layer `key` gains, [b, h * w, c], from its query of the same shape."""
        modules: dict = self.network.adapter_modules  # type: ignore[assignment]
        layer = modules[key]
        if key not in self._known:
            self._known[key] = prepare(layer, self.tokens)
        if (h, w) not in self._places:
            self._places[h, w] = Places.of_rows(self.batch.boxes, self.batch.present, h, w)
        places = self._places[h, w]
        slots = self.network.config.slots
        return injected(layer, q, self._known[key], range(len(q)), places, slots=slots, attention=few_keys(layer.heads))


def few_keys(heads: int) -> Attend:
    """Attention written out. With a dozen keys its gradient is many times faster on a CPU than that of the fused kernel."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(each, "b l (n d) -> b n l d", n=heads) for each in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return rearrange(weights.to(v) @ v, "b n l d -> b l (n d)")

    return attention
