"""AM-Adapter's two networks (arXiv 2412.03150): the matcher phi and ControlNeXt, with the state dict keys of the published code.

Constructors take `operations`, `dtype` and `device`, so that a host can pass its own layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .pair_store import PairStore

#: The parts of a UNet, in the order of the matcher's encoders.
PARTS = ("down", "mid", "up")


@dataclass(frozen=True)
class MatcherLayout:
    """Sizes of a matcher. The defaults are the published ones: 72 tensors, 39,744 numbers.

    Args:
        heads: how many attention heads an encoder processes together. A layer may have any multiple of it, so 1 fits every layer.
        widths: channels between the convolutions.
    """

    heads: int = 8
    widths: tuple[int, ...] = (16, 32, 16)


PUBLISHED_MATCHER = MatcherLayout()


class PivotConvolution(nn.Module):
    """A "4-D" convolution with kernel 1x1 over the target tokens and 3x3 over the exemplar tokens.

        y = W_q x + b_q + W_s * x + b_s        W_q: 1x1, W_s: 3x3 over the exemplar's grid, zeros outside

    Both are applied at the same target token, so W_q only adds to the centre of W_s: one ordinary convolution per target token.
    """

    def __init__(self, inner: int, outer: int, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.query_conv = operations.Conv2d(inner, outer, 1, dtype=dtype, device=device)
        self.supp_conv = operations.Conv2d(inner, outer, 3, padding=1, dtype=dtype, device=device)

    def fold(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [outer, inner, 3, 3] and bias [outer] of the one convolution, on the device and in the type of `like`."""
        query, support = self.query_conv.weight.to(like), self.supp_conv.weight.to(like)
        return support + F.pad(query, (1, 1, 1, 1)), self.query_conv.bias.to(like) + self.supp_conv.bias.to(like)


class Encoder(nn.Module):
    """phi of one part: four convolutions, each followed by a one-group norm and a ReLU. P = phi(logits, C) >= 0.

    Volumes are [b, l, c, h, w]: for each of l target tokens a map over the exemplar's grid. Target tokens interact only in the norms.
    """

    def __init__(self, layout: MatcherLayout, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        widths = (layout.heads + 1, *layout.widths, layout.heads)
        self.heads = layout.heads
        self.widths = widths[1:]
        self.conv4d = nn.ModuleList(
            nn.Sequential(
                PivotConvolution(inner, outer, operations=operations, **factory_kwargs),
                operations.GroupNorm(1, outer, eps=1e-5, **factory_kwargs),
            )
            for inner, outer in itertools.pairwise(widths)
        )

    def forward(self, volume: Tensor) -> Tensor:
        """phi at once, differentiable: [b, l, heads + 1, h, w] (logits of the heads, then C) -> [b, l, heads, h, w]."""
        x = volume
        for convolution, norm in self._layers():
            x = _convolve(x, *convolution.fold(x))
            x = _normalize(x, *_norm_factors(norm, *_moments(x)))
        return x

    @torch.no_grad()
    def forward_in_chunks(self, volume: Callable[[slice], Tensor], tokens: int, chunk: int, exact: bool = False) -> PairStore:
        """The same for `tokens` target tokens, `chunk` at a time, without gradients and with little memory.

        A layer can be normalised when its convolution has passed over all tokens. So each layer is one pass. Its raw result overwrites
        the one before it, token by token; a layer too wide for that is computed again in the next pass instead of kept.

        Args:
            volume: gives [b, r, heads + 1, h, w] for a slice of target tokens.
            tokens: l. chunk: how many tokens at a time. exact: keep every number in the volume's own type.

        Returns:
            P, [b, l, heads, h, w].
        """
        kept_width = max(self.widths[0], self.heads)
        example = volume(slice(0, 1))
        store = PairStore(example, tokens, kept_width, exact)
        folded = [convolution.fold(example) for convolution, _ in self._layers()]
        factors: list[tuple[Tensor, Tensor]] = []
        kept = -1  # the layer whose raw result is in the buffer; -1 is the input
        for last, (_, norm) in enumerate(self._layers()):
            width = self.widths[last]
            mean = variance = torch.zeros(example.shape[0], device=example.device)
            for rows in split_range(tokens, chunk):
                x = volume(rows) if kept < 0 else store.decode(rows, self.widths[kept])
                for layer in range(kept + 1, last + 1):
                    x = _convolve(_normalize(x, *factors[layer - 1]) if layer else x, *folded[layer])
                mean, variance = _merge_moments((mean, variance), _moments(x), rows)
                if width <= kept_width:
                    store.encode(rows, x)
            factors.append(_norm_factors(norm, mean, variance))
            kept = last if width <= kept_width else kept
        for rows in split_range(tokens, chunk):
            store.encode(rows, _normalize(store.decode(rows, self.heads), *factors[-1]))
        return store.select_channels(self.heads)

    def _layers(self) -> list[tuple[PivotConvolution, nn.GroupNorm]]:
        return [(layer[0], layer[1]) for layer in self.conv4d]  # type: ignore[index]


class Matcher(nn.Module):
    """One encoder for each part of the network."""

    def __init__(
        self, layout: MatcherLayout = PUBLISHED_MATCHER, *, operations: Any = nn, dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.encoders = nn.ModuleList(Encoder(layout, operations=operations, dtype=dtype, device=device) for _ in PARTS)

    def encoder(self, part: str, part_encoder: bool) -> Encoder:
        """The encoder for a part: "down", "mid" or "up". Without `part_encoder` it is the first one for all parts, as in the published code."""
        if part not in PARTS:
            raise ValueError(f"AM-Adapter: part is {part!r}; it must be one of {', '.join(PARTS)}.")
        return self.encoders[PARTS.index(part) if part_encoder else 0]  # type: ignore[return-value]


def split_range(total: int, chunk: int) -> Iterator[slice]:
    """0..total in slices of at most `chunk`, and of at least 1."""
    step = max(1, chunk)
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = F.conv2d(rearrange(x, "b l c h w -> (b l) c h w"), weight, bias, padding=1)
    return rearrange(y, "(b l) c h w -> b l c h w", b=x.shape[0])


Moments = tuple[Tensor, Tensor]  # mean and variance of each row of the batch, [b], float32


def _moments(x: Tensor) -> Moments:
    variance, mean = torch.var_mean(x.float(), dim=(1, 2, 3, 4), correction=0)
    return mean, variance


def _merge_moments(seen: Moments, new: Moments, rows: slice) -> Moments:
    """Moments of tokens 0..rows.stop, from those of 0..rows.start and of the rows. Stable, unlike a sum of squares."""
    share = (rows.stop - rows.start) / rows.stop
    apart = new[0] - seen[0]
    return seen[0] + apart * share, seen[1] * (1 - share) + new[1] * share + apart.square() * share * (1 - share)


def _norm_factors(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift [b, 1, c, 1, 1] that a one-group norm with these moments amounts to."""
    scale = norm.weight.to(mean) * rearrange((variance + norm.eps).rsqrt(), "b -> b 1")
    shift = norm.bias.to(mean) - rearrange(mean, "b -> b 1") * scale
    return rearrange(scale, "b c -> b 1 c 1 1"), rearrange(shift, "b c -> b 1 c 1 1")


def _normalize(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Norm and ReLU."""
    return torch.addcmul(shift.to(x), x, scale.to(x)).relu()


@dataclass(frozen=True)
class ControlNeXtLayout:
    """Sizes of a ControlNeXt. The defaults are the published ones for SD1.5: 52 tensors, 3,526,400 numbers.

    Args:
        out_channels: channels of the base model where the control is injected.
        widths: channels of the first convolutions, of the first and of the second stage.
        time_channels: of the sinusoidal embedding; time_width: of the embedding after it.
    """

    out_channels: int = 320
    widths: tuple[int, int, int] = (64, 128, 256)
    time_channels: int = 128
    time_width: int = 256


PUBLISHED_CONTROLNEXT = ControlNeXtLayout()


class ControlNeXt(nn.Module):
    """A coloured semantic map and a time -> what to add to the base model's features.

    ControlNeXt (arXiv 2408.06070) as AM-Adapter uses it: a stem, two residual stages that halve the size, and a head.
    """

    def __init__(
        self, layout: ControlNeXtLayout = PUBLISHED_CONTROLNEXT, *, operations: Any = nn, dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__()
        self.layout = layout
        factory_kwargs = {"dtype": dtype, "device": device}
        layer_kwargs = {"operations": operations, **factory_kwargs}
        stem, first, second = layout.widths
        self.time_embedding = nn.ModuleDict(
            {
                "linear_1": operations.Linear(layout.time_channels, layout.time_width, **factory_kwargs),
                "linear_2": operations.Linear(layout.time_width, layout.time_width, **factory_kwargs),
            }
        )
        self.embedding = nn.Sequential(
            operations.Conv2d(3, stem, 3, stride=2, padding=1, **factory_kwargs),
            operations.GroupNorm(2, stem, **factory_kwargs),
            nn.ReLU(),
            operations.Conv2d(stem, stem, 3, padding=1, **factory_kwargs),
            operations.GroupNorm(2, stem, **factory_kwargs),
            nn.ReLU(),
            operations.Conv2d(stem, first, 3, padding=1, **factory_kwargs),
            operations.GroupNorm(2, first, **factory_kwargs),
            nn.ReLU(),
        )
        self.down_res = nn.ModuleList(
            [
                _Residual(first, first, 4, layout.time_width, **layer_kwargs),
                _Residual(first, second, 8, layout.time_width, **layer_kwargs),
            ]
        )
        self.down_sample = nn.ModuleList([_Halving(first, **layer_kwargs), _Halving(second, **layer_kwargs)])
        self.mid_convs = nn.ModuleList(
            [
                nn.Sequential(
                    operations.Conv2d(second, second, 3, padding=1, **factory_kwargs),
                    nn.ReLU(),
                    operations.GroupNorm(8, second, **factory_kwargs),
                    operations.Conv2d(second, second, 3, padding=1, **factory_kwargs),
                    operations.GroupNorm(8, second, **factory_kwargs),
                ),
                operations.Conv2d(second, layout.out_channels, 1, **factory_kwargs),
            ]
        )

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        """The control to inject.

        Args:
            image: the map's colours, [b, 3, h, w], 0..1, not -1..1.
            time: the model's timestep, 0..999, [b] or one number.

        Returns:
            [b, out_channels, h / 8, w / 8], rounded up.
        """
        sine = embed_time(time.expand(image.shape[0]), self.layout.time_channels).to(image)
        time_code = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](sine)))
        x = self.embedding(image)
        for residual, halving in zip(self.down_res, self.down_sample):
            x = halving(residual(x, time_code))
        return self.mid_convs[1](x + self.mid_convs[0](x))


class _Residual(nn.Module):
    def __init__(
        self, inner: int, outer: int, groups: int, time_width: int, *, operations: Any = nn, dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.norm1 = operations.GroupNorm(groups, inner, eps=1e-6, **factory_kwargs)
        self.conv1 = operations.Conv2d(inner, outer, 3, padding=1, **factory_kwargs)
        self.time_emb_proj = operations.Linear(time_width, outer, **factory_kwargs)
        self.norm2 = operations.GroupNorm(groups, outer, eps=1e-6, **factory_kwargs)
        self.conv2 = operations.Conv2d(outer, outer, 3, padding=1, **factory_kwargs)
        self.conv_shortcut = operations.Conv2d(inner, outer, 1, **factory_kwargs) if inner != outer else None

    def forward(self, x: Tensor, time_code: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + rearrange(self.time_emb_proj(F.silu(time_code)), "b c -> b c 1 1")
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Halving(nn.Module):
    def __init__(self, channels: int, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def embed_time(time: Tensor, channels: int) -> Tensor:
    """[b] -> [b, channels], float32: cosines, then sines, of time / 10000^(i / half)."""
    half = channels // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=time.device) * (-math.log(10000.0) / half))
    angles = rearrange(time.float(), "b -> b 1") * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def inject(h: Tensor, control: Tensor, scale: float) -> Tensor:
    """Add a control to features in their own mean and deviation ("cross normalisation").

        c' = (c - mean_c) * std_h / (std_c + 1e-12) + mean_h        h <- h + scale * c'

    In SD1.5 once, after the first stage's downsampling; the skip connections stay as they are.

    Args:
        h: [b, c, h, w]. control: [b or 1, c, any, any], pooled to h's size.

    Returns:
        [b, c, h, w] in h's type. `h` itself if the scale is 0.
    """
    if scale == 0.0:
        return h
    control = F.adaptive_avg_pool2d(control.float(), (h.shape[-2], h.shape[-1]))
    # Unbiased deviations over (c, h, w), as published; half precision would overflow in the squares.
    deviation_h, mean_h = torch.std_mean(h.float(), dim=(1, 2, 3), keepdim=True)
    deviation_c, mean_c = torch.std_mean(control, dim=(1, 2, 3), keepdim=True)
    return (h.float() + scale * ((control - mean_c) * (deviation_h / (deviation_c + 1e-12)) + mean_h)).to(h.dtype)
