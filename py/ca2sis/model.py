"""The generator of CA2-SIS: shape codes become a map of features, style codes colour it by cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Watch, attend, fold_projections, folding_is_faster, mean_attention
from .encoder import MULTIPLE, SCALES, NoiseMapping, StyleEncoder

#: Levels of the generator by the numbers in the published names (res2, cross2 ...), and each one's attention heads.
LEVELS = (2, 3, 4, 5, 6)
HEADS = (8, 8, 8, 8, 4)
#: Self-attention only on the three coarse levels.
SELF_ATTENTION = (True, True, True, False, False)
GROUPS = 32
#: A feed-forward widens its tokens eightfold. In slices of so many wide values the wide map never exists whole, and on a processor it
#: stays in the cache.
SLICE, SLICE_ON_CARD = 1 << 20, 1 << 24


@dataclass(frozen=True)
class Config:
    """Everything that a file of weights decides; the defaults are the published CelebAMask-HQ weights.

    Args:
        classes: k, style codes. mask_channels: k', shape codes: k, or k - 1 where class 0 has none.
        style_dim: width of a style code per scale.
        width: channels of the finest level of the generator. encoder_width: channels per class of the style encoder at full size.
        grid: h, w of a shape code seen as a map. mask_size: h, w of the mask that it is made of.
        head_dims: width of an attention head at each level.
        noise_dim, noise_width: of the noise network; noise_dim 0 where there is none.
        tanh: whether the last step is tanh (else the image is clamped to [-1, 1]).
    """

    classes: int = 19
    mask_channels: int = 18
    style_dim: int = 256
    width: int = 32
    encoder_width: int = 4
    grid: tuple[int, int] = (16, 16)
    mask_size: tuple[int, int] = (128, 128)
    head_dims: tuple[int, ...] = (64, 64, 64, 64, 32)
    noise_dim: int = 16
    noise_width: int = 512
    tanh: bool = True

    @property
    def code_dim(self) -> int:
        """Width of a style code: all scales."""
        return SCALES * self.style_dim

    @property
    def has_background(self) -> bool:
        """Whether class 0 has a shape code."""
        return self.mask_channels == self.classes

    @property
    def image_size(self) -> tuple[int, int]:
        """h, w of every image that the generator draws; fixed by the grid."""
        up = 2 ** (len(LEVELS) - 1)
        return self.grid[0] * up, self.grid[1] * up


class MaskEmbedder(nn.Module):
    """Shape codes: one linear layer, shared by all classes, on each class's mask."""

    def __init__(self, config: Config, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.size = config.mask_size
        inputs, outputs = config.mask_size[0] * config.mask_size[1], config.grid[0] * config.grid[1]
        self.encs = nn.Sequential(operations.Linear(inputs, outputs, dtype=dtype, device=device))

    def forward(self, mask: Tensor) -> Tensor:
        """z, [b, k', e], from masks [b, k', h, w] of any size."""
        return self.encs(rearrange(F.interpolate(mask, size=self.size, mode="nearest"), "b k h w -> b k (h w)"))


class ResBlock(nn.Module):
    """Two convolutions with a short cut; `up` doubles the size (nearest) before the first convolution."""

    def __init__(self, inputs: int, outputs: int, up: bool, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.up = up
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, inputs, **factory_kwargs),
            nn.SiLU(),
            operations.Conv2d(inputs, outputs, 3, padding=1, **factory_kwargs),
        )
        self.out_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, outputs, **factory_kwargs),
            nn.SiLU(),
            nn.Identity(),  # dropout in training; it keeps the last convolution's number
            operations.Conv2d(outputs, outputs, 3, padding=1, **factory_kwargs),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else operations.Conv2d(inputs, outputs, 1, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c', h, w], or twice the size."""
        h = self.in_layers[1](self.in_layers[0](x))
        x = self.skip_connection(x)  # a 1x1 convolution and nearest doubling commute; this way round it costs a quarter
        if self.up:
            h, x = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (h, x))
        return x + self.out_layers(self.in_layers[2](h))


class Attention(nn.Module):
    """Multi-head attention with bias-free projections; keys and values from x itself, or from a context of another width."""

    def __init__(self, inner: int, context: int, heads: int, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.heads = heads
        self.to_q = operations.Linear(inner, inner, bias=False, **factory_kwargs)
        self.to_k = operations.Linear(context, inner, bias=False, **factory_kwargs)
        self.to_v = operations.Linear(context, inner, bias=False, **factory_kwargs)
        self.to_out = nn.Sequential(operations.Linear(inner, inner, **factory_kwargs))

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention: x [b, l, c] -> [b, l, c]."""
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))

    def reader(self, context: Tensor, cells: int) -> Callable[[Tensor], Tensor]:
        """Cross-attention over context [b, m, c'], for `cells` queries in all: x [b, l, c] -> [b, l, c], in parts or at once."""
        k, v = self.to_k(context), self.to_v(context)
        channels = k.shape[-1]
        if folding_is_faster(cells, channels, k.shape[1], self.heads):
            return fold_projections(k, v, channels, self.heads, self.to_q, self.to_out)
        return lambda x: self.to_out(attend(self.to_q(x), k, v, self.heads))


class GatedLinear(nn.Module):
    """GEGLU: value * gelu(gate), exact GELU; the value comes first in the weights."""

    def __init__(self, inner: int, outputs: int, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.proj = operations.Linear(inner, 2 * outputs, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[b, l, c] -> [b, l, outputs]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated, four times as wide inside."""

    def __init__(self, inner: int, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.net = nn.Sequential(
            GatedLinear(inner, 4 * inner, operations, **factory_kwargs),
            nn.Identity(),
            operations.Linear(4 * inner, inner, **factory_kwargs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, l, c] -> [b, l, c]."""
        return self.net(x)


class Block(nn.Module):
    """Self-attention (coarse levels only), cross-attention over the style codes, feed-forward; each added to its input."""

    def __init__(
        self,
        inner: int,
        context: int,
        heads: int,
        self_attention: bool,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.self_attention = self_attention
        if self_attention:
            self.norm1 = operations.LayerNorm(inner, **factory_kwargs)
            self.attn1 = Attention(inner, inner, heads, operations, **factory_kwargs)
        self.norm2 = operations.LayerNorm(inner, **factory_kwargs)
        self.attn2 = Attention(inner, context, heads, operations, **factory_kwargs)
        self.norm3 = operations.LayerNorm(inner, **factory_kwargs)
        self.ff = FeedForward(inner, operations, **factory_kwargs)

    def forward(self, x: Tensor, style: Tensor, grid: tuple[int, int], watch: Watch | None = None) -> Tensor:
        """x [b, l, c], S [b, k, code_dim] -> [b, l, c]; `watch` sees q and k of the cross-attention."""
        if self.self_attention:
            x = x + self.attn1(self.norm1(x))
        if watch is not None:
            watch(self.attn2.to_q(self.norm2(x)), self.attn2.to_k(style), self.attn2.heads, grid)
        read, parts = self.attn2.reader(style, x.shape[1]), []
        wide = SLICE if x.device.type == "cpu" else SLICE_ON_CARD
        for part in x.split(max(1, wide // (8 * x.shape[0] * x.shape[-1])), dim=1):
            part = part + read(self.norm2(part))
            parts.append(part + self.ff(self.norm3(part)))
        return torch.cat(parts, dim=1)


class Transformer(nn.Module):
    """A map's cells as tokens through one block. No positions: the shape codes have said where everything is."""

    def __init__(
        self,
        channels: int,
        inner: int,
        context: int,
        heads: int,
        self_attention: bool,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(GROUPS, channels, eps=1e-6, **factory_kwargs)
        self.proj_in = operations.Conv2d(channels, inner, 1, **factory_kwargs)
        self.transformer_blocks = nn.ModuleList([Block(inner, context, heads, self_attention, operations, **factory_kwargs)])
        self.proj_out = operations.Conv2d(inner, channels, 1, **factory_kwargs)

    def forward(self, x: Tensor, style: Tensor, watch: Watch | None = None) -> Tensor:
        """x [b, c, h, w], S [b, k, code_dim] -> [b, c, h, w]."""
        grid = (x.shape[-2], x.shape[-1])
        tokens = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, style, grid, watch)
        return x + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=grid[0]))


class Generator(nn.Module):
    """CA2-SIS whole: both encoders, the noise network and the generator, under the names of the published file.

    Args:
        config: read off the weights by checkpoint.infer.
        operations, dtype, device: the layers' classes (torch.nn, or a host's) and where their weights are made.
    """

    def __init__(self, config: Config = Config(), operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"operations": operations, "dtype": dtype, "device": device}
        self.config = config
        self.encs = MaskEmbedder(config, **factory_kwargs)
        self.style_encoder = StyleEncoder(config.classes, config.encoder_width, config.style_dim, **factory_kwargs)
        self.noise_encoder: NoiseMapping | None = None
        if config.noise_dim:
            self.noise_encoder = NoiseMapping(
                config.classes, config.noise_dim, config.noise_width, config.code_dim, **factory_kwargs
            )
        channels = [config.width * m for m in (16, 8, 4, 2, 1, 1)]
        self.reshape_conv = operations.Conv2d(config.mask_channels, channels[0], 1, dtype=dtype, device=device)
        for i, level in enumerate(LEVELS):
            res = ResBlock(channels[i], channels[i + 1], i > 0, **factory_kwargs)
            inner = HEADS[i] * config.head_dims[i]
            cross = Transformer(channels[i + 1], inner, config.code_dim, HEADS[i], SELF_ATTENTION[i], **factory_kwargs)
            self.add_module(f"res{level}", res)
            self.add_module(f"cross{level}", cross)
        self.out_conv = operations.Conv2d(channels[-1], 3, 1, dtype=dtype, device=device)

    def encode_shape(self, mask: Tensor) -> Tensor:
        """z, [b, k', e], from M_sw [b, k, h, w] with a channel for every class; class 0 is dropped where it has no code.

        Raises:
            ValueError: another number of classes, or other proportions than the generator draws.
        """
        self._check_classes(mask)
        (h, w), (own_h, own_w) = mask.shape[-2:], self.config.image_size
        if h * own_w != w * own_h:
            raise ValueError(
                f"CA2-SIS: the map is {w}x{h}, but these weights draw {own_w}x{own_h}: crop or pad it to these proportions first."
            )
        return self.encs(mask if self.config.has_background else mask[:, 1:])

    def encode_style(self, image: Tensor, mask: Tensor) -> Tensor:
        """S, [b, k, code_dim], from x [b, 3, h, w] in [-1, 1] and M [b, k, h, w].

        Raises:
            ValueError: another number of classes, image and mask of different sizes, or sides that are not multiples of 64.
        """
        self._check_classes(mask)
        h, w = image.shape[-2:]
        if mask.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"CA2-SIS: the image is {w}x{h}, its map {mask.shape[-1]}x{mask.shape[-2]}: scale one of them (the map by nearest "
                "neighbour), they must show the same."
            )
        if h % MULTIPLE or w % MULTIPLE:
            own_h, own_w = self.config.image_size
            raise ValueError(
                f"CA2-SIS: the image is {w}x{h}, but its sides must be multiples of {MULTIPLE}. "
                f"Scale image and map to {own_w}x{own_h}, the size these weights were trained on."
            )
        b = _batch(image, mask, "images", "maps")
        return self.style_encoder(image.expand(b, -1, -1, -1), mask.expand(b, -1, -1, -1))

    def sample_style(self, noise: Tensor, present: Tensor) -> Tensor:
        """S, [b, k, code_dim], from noise [b, noise_dim]; rows of classes that are not in `present` [b, k] are 0, as in training.

        Raises:
            ValueError: the weights have no noise network.
        """
        if self.noise_encoder is None:
            raise ValueError(
                "CA2-SIS: these weights have no noise network (files before December 2023 have none), so no style can be sampled. "
                "Encode the style of an image, or load weights that have noise_encoder."
            )
        style = self.noise_encoder(noise)
        return style * present[..., None].to(style.dtype)

    def linear(self, shape: Tensor, style: Tensor, watch: Watch | None = None) -> Tensor:
        """The image before its last step, [b, 3, h, w], from z [b, k', e] and S [b, k, code_dim].

        Raises:
            ValueError: codes of other weights.
        """
        config = self.config
        asked = {"shape": (config.mask_channels, config.grid[0] * config.grid[1]), "style": (config.classes, config.code_dim)}
        for name, codes in (("shape", shape), ("style", style)):
            if tuple(codes.shape[1:]) != asked[name]:
                raise ValueError(
                    f"CA2-SIS: the {name} codes are {' x '.join(map(str, codes.shape[1:]))}, these weights take "
                    f"{asked[name][0]} x {asked[name][1]}. Encode them again with the weights that draw."
                )
        b = _batch(shape, style, "shapes", "styles")
        style = style.expand(b, -1, -1)
        x = self.reshape_conv(rearrange(shape.expand(b, -1, -1), "b k (h w) -> b k h w", h=config.grid[0]))
        for level in LEVELS:
            x = self.get_submodule(f"res{level}")(x)
            x = self.get_submodule(f"cross{level}")(x, style, watch)
        return self.out_conv(x)

    def decode(self, shape: Tensor, style: Tensor, watch: Watch | None = None) -> Tensor:
        """The image, [b, 3, h, w] in [-1, 1], from z [b, k', e] and S [b, k, code_dim]; a batch of 1 serves all of the other."""
        x = self.linear(shape, style, watch)
        return x.tanh() if self.config.tanh else x.clamp(-1, 1)

    def forward(self, image: Tensor, mask: Tensor, shape_mask: Tensor | None = None) -> Tensor:
        """G(x, M, M_sw): the style of x under M in the shape of M_sw (M itself if None), [b, 3, h, w] in [-1, 1]."""
        return self.decode(self.encode_shape(mask if shape_mask is None else shape_mask), self.encode_style(image, mask))

    def attention_maps(self, shape: Tensor, style: Tensor) -> list[Tensor]:
        """Which class each pixel reads: one [b, k, h, w] a level, coarse to fine, mean over heads, sums to 1 over the classes."""
        found: list[Tensor] = []
        self.linear(shape, style, lambda q, k, heads, grid: found.append(mean_attention(q, k, heads, grid)))
        return found

    def _check_classes(self, mask: Tensor) -> None:
        if mask.ndim != 4 or mask.shape[1] != self.config.classes:
            found = f"{mask.shape[1]} classes" if mask.ndim == 4 else f"the shape {list(mask.shape)}"
            raise ValueError(
                f"CA2-SIS: the map has {found}, these weights {self.config.classes}. "
                "Remap its labels to the classes of the weights, or load weights for this data set."
            )


def _batch(first: Tensor, second: Tensor, what: str, other: str) -> int:
    """The batch of two inputs together: equal, or one of them 1."""
    if first.shape[0] != second.shape[0] and 1 not in (first.shape[0], second.shape[0]):
        raise ValueError(f"CA2-SIS: {first.shape[0]} {what} and {second.shape[0]} {other}: give the same number, or 1 for all.")
    return max(first.shape[0], second.shape[0])
