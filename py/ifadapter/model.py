"""IFAdapter's networks: the resampler of phrases, the position network, and the weights that one attention layer gets.

Names are those of the published checkpoint. `Config` describes any base: the published SDXL adapter, SD1.5, or a small one.
Constructors take `operations` (torch.nn, or a host's replacement that casts and offloads), `dtype` and `device`.

Axes: b rows of the batch, i instances, t text layers, l positions of a phrase, m tokens, n heads, d width of a head, c channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One adapted text attention of the base.

    Args:
        key: its name in the checkpoint. In the published file the index in diffusers' list of attention processors.
        place: block, number and transformer index as ComfyUI's `set_model_attn2_replace` takes them, such as ("output", 0, 3).
        channels: width of the base layer's query. heads: of the base layer.
    """

    key: str
    place: tuple[str, int, int]
    channels: int
    heads: int


@dataclass(frozen=True)
class Config:
    """Everything that the shapes of an adapter and its text layers depend on; stored in a checkpoint's metadata.

    Args:
        layers: the adapted layers.
        encoders: (name, width) of each text encoder, in the order in which their hidden states are joined along the channels.
        text_layers: the hidden layers that are resampled, counted from the end, without the last norm.
        eot_layer: the hidden layer whose end-of-text position is the EoT token.
        phrase_length: positions of a phrase, start and end of text included.
        queries: appearance tokens per text layer.
        dim, depth, heads, dim_head, ff_mult: of the resampler.
        position_width, frequencies, temperature: of the position network.
        reduction, gate_kernel: of the gate (CBAM).
        slots: the least number of instances that the gate's softmax runs over; also the largest number of instances in training.
    """

    layers: tuple[Layer, ...]
    encoders: tuple[tuple[str, int], ...] = (("l", 768), ("g", 1280))
    text_layers: tuple[int, ...] = (-2, -4, -6)
    eot_layer: int = -2
    phrase_length: int = 77
    queries: int = 4
    dim: int = 2560
    depth: int = 4
    heads: int = 20
    dim_head: int = 128
    ff_mult: int = 4
    position_width: int = 768
    frequencies: int = 64
    temperature: float = 100.0
    reduction: int = 16
    gate_kernel: int = 7
    slots: int = 10

    def __post_init__(self) -> None:
        counts = {field.name: getattr(self, field.name) for field in fields(self) if type(field.default) is int}
        del counts["eot_layer"]  # counts from the end
        wrong = [f"{name} is {value!r}" for name, value in counts.items() if not _count(value)]
        wrong += [] if isinstance(self.temperature, (int, float)) and self.temperature > 0 else ["temperature is not positive"]
        wrong += [] if self.layers else ["there are no layers"]
        wrong += [] if self.encoders and self.text_layers else ["there are no text encoders or no text layers"]
        wrong += [] if _count(self.gate_kernel) and self.gate_kernel % 2 else [f"gate_kernel is {self.gate_kernel!r}, not odd"]
        for layer in self.layers:
            if not _count(layer.channels) or not _count(layer.heads) or layer.channels % layer.heads:
                wrong.append(f"layer {layer.key!r} has {layer.channels!r} channels for {layer.heads!r} heads")
            elif _count(self.reduction) and layer.channels < self.reduction:
                wrong.append(
                    f"layer {layer.key!r} has {layer.channels} channels, fewer than the gate's reduction {self.reduction}"
                )
            if not layer.key or "." in layer.key:
                wrong.append(f"layer key {layer.key!r} is empty or has a dot")
        if len({layer.key for layer in self.layers}) != len(self.layers):
            wrong.append("two layers have the same key")
        if wrong:
            raise ValueError(f"This does not describe an IFAdapter: {'; '.join(wrong)}.")

    @property
    def width(self) -> int:
        """Channels of a phrase's embedding and of every token: those of all text encoders together."""
        return sum(width for _, width in self.encoders)

    @property
    def appearance_tokens(self) -> int:
        """How many of an instance's tokens come from the resampler; they come first, then the EoT token."""
        return self.queries * len(self.text_layers)

    def to_json(self) -> str:
        """The configuration as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote. Raises ValueError naming what is missing, unknown or wrong."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, TypeError, RecursionError) as error:
            raise ValueError(f"The adapter's description is not JSON: {error}.") from None
        if not isinstance(data, dict):
            raise ValueError(f"The adapter's description is {type(data).__name__}; it must be an object with layers.")
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown or "layers" not in data:
            raise ValueError(
                f"The adapter's description has {', '.join(unknown) or 'no layers'}"
                f"{', which this version does not know' if unknown else ''}. Update the pack, or convert the file again."
            )
        try:
            data["layers"] = tuple(
                Layer(str(e["key"]), _place(e["place"]), int(e["channels"]), int(e["heads"])) for e in data["layers"]
            )
            if "encoders" in data:
                data["encoders"] = tuple((str(name), int(width)) for name, width in data["encoders"])
            if "text_layers" in data:
                data["text_layers"] = tuple(int(number) for number in data["text_layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The adapter's description is damaged ({type(error).__name__}: {error}).") from None
        return cls(**data)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _place(value: Sequence[Any]) -> tuple[str, int, int]:
    block, number, index = value
    return str(block), int(number), int(index)


def _sdxl_layers() -> tuple[Layer, ...]:
    """The 16 layers of the published file: the first four transformer blocks of `up_blocks.0` and of the middle.

    Keys count diffusers' attention processors (down, up, middle; self- and text attention alternate).
    """
    starts = {("output", 0): 49, ("output", 1): 69, ("output", 2): 89, ("middle", 0): 121}
    return tuple(
        Layer(str(first + 2 * index), (*place, index), channels=1280, heads=20)
        for place, first in starts.items()
        for index in range(4)
    )


SDXL = Config(layers=_sdxl_layers())
"""The published adapter: 519,750,464 parameters, of which the resampler has 429,982,208."""


def visible_words(counts: Tensor, length: int, depth: int, whole_phrase: bool = False) -> Tensor:
    """The positions of each phrase that each layer of the resampler attends to.

    The intention is: the words, without start, end and padding. The published code removes both ends of what was visible in the layer
    before, so from the second layer on it removes a word as if it were the end. With words at 1..5 the layers see 12345, 1235, 125, 15.
    The published weights were probably trained in this way.

    Args:
        counts: [i] positions used, start and end of text included; 0 for a dropped phrase.
        length, depth: positions of a phrase; layers of the resampler.
        whole_phrase: every layer attends to all words.

    Returns:
        [depth, i, length] bool.
    """
    visible = torch.arange(length, device=counts.device) < counts[:, None]
    layers = []
    for layer in range(depth):
        if layer == 0 or not whole_phrase:
            # Without any visible position this is the last one, which is not visible anyway.
            end = (visible.sum(dim=1, keepdim=True) - 1) % length
            visible = visible.scatter(1, end, False)
            visible[:, 0] = False  # in place is safe: `scatter` has just made a new tensor
        layers.append(visible)
    return torch.stack(layers)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last axis, in float32 (Gemma's: the stored weight is zero-centred)."""

    def __init__(self, width: int, eps: float = 1e-6, *, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same, in the type of x."""
        return (normalize_rms(x.float(), self.eps) * (1.0 + self.weight.to(x.device, torch.float32))).to(x.dtype)


def normalize_rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last axis. Pass float32: squares overflow in half precision."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


class ResamplerAttention(nn.Module):
    """The queries attend to the phrase and to themselves."""

    def __init__(self, dim: int, heads: int, dim_head: int, *, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        self.heads = heads
        inner, factory_kwargs = heads * dim_head, {"dtype": dtype, "device": device}
        self.norm1 = operations.LayerNorm(dim, **factory_kwargs)
        self.norm2 = operations.LayerNorm(dim, **factory_kwargs)
        self.to_q = operations.Linear(dim, inner, bias=False, **factory_kwargs)
        self.to_kv = operations.Linear(dim, 2 * inner, bias=False, **factory_kwargs)
        self.to_out = operations.Linear(inner, dim, bias=False, **factory_kwargs)
        self.q_norm = RMSNorm(dim_head, **factory_kwargs)
        self.k_norm = RMSNorm(dim_head, **factory_kwargs)

    def forward(self, x: Tensor, latents: Tensor, seen: Tensor) -> Tensor:
        """x [b, l, c], latents [b, m, c], seen [b, l + m] bool -> [b, m, c]."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(each, "b l (n d) -> b n l d", n=self.heads) for each in (self.to_q(latents), k, v))
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=seen[:, None, None, :])
        return self.to_out(rearrange(out, "b n l d -> b l (n d)"))


class ResamplerMLP(nn.Module):
    """down(rmsnorm(gelu(gate(x)) * up(x))), without a norm in front."""

    def __init__(self, dim: int, mult: int, *, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        factory_kwargs = {"bias": False, "dtype": dtype, "device": device}
        self.gate_proj = operations.Linear(dim, mult * dim, **factory_kwargs)
        self.up_proj = operations.Linear(dim, mult * dim, **factory_kwargs)
        self.down_proj = operations.Linear(mult * dim, dim, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, m, c] -> [b, m, c]."""
        inner = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        return self.down_proj(normalize_rms(inner.float()).to(x.dtype))


class Resampler(nn.Module):
    """Compress the hidden layers of the text encoders into a few appearance tokens.

    The same queries attend to every text layer; text layers do not attend to each other.
    """

    def __init__(
        self,
        dim: int = 2560,
        depth: int = 4,
        heads: int = 20,
        dim_head: int = 128,
        queries: int = 4,
        ff_mult: int = 4,
        in_width: int = 2048,
        out_width: int = 2048,
        *,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        layer_kwargs: dict[str, Any] = {"operations": operations, **factory_kwargs}
        self.latents = nn.Parameter(torch.randn(1, queries, dim, **factory_kwargs) / dim**0.5)
        self.proj_in = operations.Linear(in_width, dim, **factory_kwargs)
        self.proj_out = operations.Linear(dim, out_width, **factory_kwargs)
        self.norm_out = operations.LayerNorm(out_width, **factory_kwargs)
        self.attention_norm = operations.LayerNorm(dim, **factory_kwargs)
        self.layers = nn.ModuleList(
            nn.ModuleList([ResamplerAttention(dim, heads, dim_head, **layer_kwargs), ResamplerMLP(dim, ff_mult, **layer_kwargs)])
            for _ in range(depth)
        )

    def forward(self, phrases: Tensor, counts: Tensor, whole_phrase: bool = False) -> Tensor:
        """[i, t, l, c] and the positions used [i] -> appearance tokens [i, t * queries, c'], first those of the first text layer.

        `whole_phrase`: see `visible_words`.
        """
        i, t, length, _ = phrases.shape
        words = visible_words(counts.to(phrases.device), length, len(self.layers), whole_phrase)
        seen = F.pad(words, (0, self.latents.shape[1]), value=True)  # the queries always attend to each other
        x = self.proj_in(rearrange(phrases, "i t l c -> (i t) l c"))
        latents = self.latents.to(x).expand(i * t, -1, -1)
        layers: Any = self.layers
        for (attention, mlp), visible in zip(layers, seen.repeat_interleave(t, dim=1)):
            latents = latents + attention(x, latents, visible)
            latents = latents + mlp(latents)
        out = self.norm_out(self.proj_out(self.attention_norm(latents)))
        return rearrange(out, "(i t) m c -> i (t m) c", t=t)


class PositionNet(nn.Module):
    """Embeds a box. There is no text in it and no embedding for "no box"."""

    def __init__(
        self,
        out_width: int = 2048,
        inner: int = 768,
        frequencies: int = 64,
        temperature: float = 100.0,
        *,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.frequencies, self.temperature = frequencies, temperature
        factory_kwargs = {"dtype": dtype, "device": device}
        self.linears_position = nn.Sequential(
            operations.Linear(8 * frequencies, inner, **factory_kwargs),
            nn.SiLU(),
            operations.Linear(inner, inner, **factory_kwargs),
            nn.SiLU(),
            operations.Linear(inner, out_width, **factory_kwargs),
        )

    def fourier(self, boxes: Tensor) -> Tensor:
        """[i, 4] in 0..1 -> [i, 8 * frequencies] float32: by frequency, then sine and cosine, then x0 y0 x1 y1."""
        exponents = torch.arange(self.frequencies, device=boxes.device) / self.frequencies
        angles = self.temperature ** exponents[:, None] * boxes.float()[:, None, :]
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    def forward(self, boxes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x0 y0 x1 y1 in 0..1, [i, 4] -> [i, c], computed in `dtype` (that of the boxes)."""
        return self.linears_position(self.fourier(boxes).to(dtype or boxes.dtype))


class ChannelGate(nn.Module):
    """CBAM's first half: a weight for each channel of a map."""

    def __init__(self, channels: int, reduction: int, *, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.linear = nn.Sequential(
            operations.Linear(channels, channels // reduction, **factory_kwargs),
            nn.ReLU(),
            operations.Linear(channels // reduction, channels, **factory_kwargs),
        )

    def forward(self, x: Tensor, cells: int | None = None) -> Tensor:
        """Part of a map, [b, y, x, c] -> factors [b, 1, 1, c]. `cells`: of the whole map, which is zero outside of this part."""
        inside = x.shape[1] * x.shape[2]
        peak = x.amax(dim=(1, 2))
        if cells is not None and cells > inside:
            peak = peak.clamp(min=0)
        mean = x.mean(dim=(1, 2)) * (inside / (cells or inside))
        return torch.sigmoid(self.linear(peak) + self.linear(mean))[:, None, None]


class SpatialGate(nn.Module):
    """CBAM's second half: a weight for each cell of a map."""

    def __init__(self, kernel: int, *, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[b, y, x, c] -> factors [b, y, x, 1]. A part of a map is enough if the rest is zero, as the convolution's padding is."""
        return rearrange(torch.sigmoid(self.conv(torch.stack([x.amax(dim=-1), x.mean(dim=-1)], dim=1))), "b 1 y x -> b y x 1")


class CBAM(nn.Module):
    """Convolutional block attention (arXiv 1807.06521): channels, then cells."""

    def __init__(self, channels: int, reduction: int, kernel: int, *, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        factory_kwargs: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        self.cam = ChannelGate(channels, reduction, **factory_kwargs)
        self.sam = SpatialGate(kernel, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, y, x, c] -> the same. `Injection.gate_logits` computes the convolution after it without the second product."""
        x = x * self.cam(x)
        return x * self.sam(x)


class Injection(nn.Module):
    """The weights added to one text attention of the base: keys and values of the instances, and the gate that fuses them."""

    def __init__(
        self,
        channels: int,
        heads: int,
        token_width: int = 2048,
        reduction: int = 16,
        gate_kernel: int = 7,
        *,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        factory_kwargs = {"dtype": dtype, "device": device}
        self.to_k_ap = operations.Linear(token_width, channels, bias=False, **factory_kwargs)
        self.to_v_ap = operations.Linear(token_width, channels, bias=False, **factory_kwargs)
        self.q_norm = RMSNorm(channels // heads, **factory_kwargs)
        self.k_norm = RMSNorm(channels // heads, **factory_kwargs)
        self.cbam = CBAM(channels, reduction, gate_kernel, operations=operations, **factory_kwargs)
        self.conv = operations.Conv2d(channels, 1, 1, **factory_kwargs)
        self.alpha = nn.Parameter(
            torch.zeros((), **factory_kwargs)
        )  # tanh(0) = 0: an untrained adapter leaves the base unchanged

    def queries(self, q: Tensor) -> Tensor:
        """The base layer's projected query [b, l, c], normalised in each head. The base itself attends with the plain query."""
        return self._in_heads(self.q_norm, q)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., m, token width] -> keys and values [..., m, c]. They do not depend on the latents, so once per run is enough."""
        return self._in_heads(self.k_norm, self.to_k_ap(tokens)), self.to_v_ap(tokens)

    def _in_heads(self, norm: RMSNorm, x: Tensor) -> Tensor:
        return norm(x.unflatten(-1, (self.heads, -1))).flatten(-2)

    def gate_logits(self, s: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """The logit with which an instance competes for each cell: g = conv(CBAM(s)).

        Args:
            s: an instance's attention in the rectangle around its region, [b, y, x, c].
            cells: number of cells of the full grid. Outside of the rectangle s is zero, and the pools of CBAM include these zeros.

        Returns:
            Logits in the rectangle [b, y, x] and the logit everywhere else (), both float32. The latter is the convolution's bias.
        """
        gated = s * self.cbam.cam(s, cells)
        outside = self.conv(s.new_zeros(1, s.shape[-1], 1, 1)).float().flatten()[0]
        # The spatial factor is one number a cell and the convolution is linear, so it is applied to what the convolution returns.
        linear = self.conv(rearrange(gated, "b y x c -> b c y x"))[:, 0].float() - outside
        return linear * self.cbam.sam(gated)[..., 0].float() + outside, outside


class IFAdapter(nn.Module):
    """The whole adapter, with the published checkpoint's three groups of weights."""

    def __init__(self, config: Config = SDXL, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        self.config = config
        factory_kwargs: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        resampler = (config.dim, config.depth, config.heads, config.dim_head, config.queries, config.ff_mult)
        self.text_proj_model = Resampler(*resampler, in_width=config.width, out_width=config.width, **factory_kwargs)
        self.pos_net = PositionNet(config.width, config.position_width, config.frequencies, config.temperature, **factory_kwargs)
        self.adapter_modules = nn.ModuleDict(
            {
                layer.key: Injection(
                    layer.channels, layer.heads, config.width, config.reduction, config.gate_kernel, **factory_kwargs
                )
                for layer in config.layers
            }
        )

    def tokens(self, phrases: Tensor, eot: Tensor, counts: Tensor, boxes: Tensor, whole_phrase: bool = False) -> Tensor:
        """The tokens that the layers attend to: [appearance ; EoT], with the position added to each.

        Args:
            phrases: hidden states [i, t, l, c] of `Config.text_layers`, text encoders joined along c.
            eot: [i, 1, c] the hidden state at the end-of-text position, of `Config.eot_layer`.
            counts: [i] positions used by each phrase, start and end of text included.
            boxes: [i, 4] x0 y0 x1 y1 in 0..1.
            whole_phrase: see `visible_words`.

        Returns:
            [i, appearance_tokens + 1, c].
        """
        return join_tokens(self.text_proj_model(phrases, counts, whole_phrase), eot, self.pos_net(boxes, phrases.dtype))

    def conditional_and_unconditional_tokens(
        self, phrases: Tensor, eot: Tensor, counts: Tensor, boxes: Tensor, whole_phrase: bool = False
    ) -> Tensor:
        """`tokens` for both kinds of rows, [2, i, m, c]: index 0 for unconditional rows, 1 for conditional ones.

        Unconditional rows have the same boxes, but phrases that are zero and not visible; one resampled zero is used for all instances.
        """
        position = self.pos_net(boxes, phrases.dtype)
        cond = join_tokens(self.text_proj_model(phrases, counts, whole_phrase), eot, position)
        zero = self.text_proj_model(torch.zeros_like(phrases[:1]), torch.zeros_like(counts[:1]), whole_phrase)
        uncond = join_tokens(zero.expand(len(phrases), -1, -1), torch.zeros_like(eot), position)
        return torch.stack([uncond, cond])


def join_tokens(appearance: Tensor, eot: Tensor, position: Tensor) -> Tensor:
    """Concatenate [i, m, c] and [i, 1, c] to [i, m + 1, c] and add the position [i, c] to each token."""
    return torch.cat([appearance, eot.to(appearance)], dim=1) + position[:, None].to(appearance)


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of an adapter, in the order of its state dict; allocates no weights."""
    return {name: tuple(weight.shape) for name, weight in IFAdapter(config, device="meta").state_dict().items()}
