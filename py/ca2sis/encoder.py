"""Style codes of CA2-SIS: from an image and its mask, and from noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

#: Halvings of the encoder, and scales at which a class is averaged.
DOWNS, SCALES = 6, 5
#: The style encoder halves an image this often, so its sides are multiples of this.
MULTIPLE = 2**DOWNS


class StyleEncoder(nn.Module):
    """One small U-shaped network per class, side by side as groups of the same convolutions, averaged over the class's pixels.

    Args:
        classes: k.
        width: channels per class at full size (4 in the published weights); they double at each halving.
        style_dim: width of a code per scale (256).
        operations, dtype, device: the layers' classes and where their weights are made.

    The modules bear the names of the published file, so that its keys are ours.
    """

    def __init__(
        self, classes: int, width: int, style_dim: int, operations: Any = nn, dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__()
        self.classes, self.style_dim = classes, style_dim
        factory_kwargs = {"dtype": dtype, "device": device}
        channels = [classes * width * 2**i for i in range(DOWNS + 1)]  # at full size, half, quarter ...

        def stage(before: list[nn.Module], inputs: int, outputs: int, stride: int = 1, groups: int = classes) -> nn.Sequential:
            conv = operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, **factory_kwargs)
            return nn.Sequential(*before, conv, operations.GroupNorm(classes, outputs, **factory_kwargs), nn.ReLU())

        self.Encoder = nn.ModuleDict({"first_layer": stage([], 3, channels[0], groups=1)})
        for i in range(DOWNS):
            self.Encoder[f"enc_layer_{i}"] = stage([], channels[i], channels[i + 1], stride=2)
        self.Decoder, self.out = nn.ModuleDict(), nn.ModuleDict()
        for i in range(SCALES):
            outputs = channels[SCALES - i]
            inputs = channels[DOWNS] if i == 0 else 2 * channels[DOWNS - i]  # below the first, half of it is the skip
            up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            self.Decoder[f"dec_layer_{i}"] = stage([up], inputs, outputs)
            conv = operations.Conv1d(outputs, classes * style_dim, 1, groups=classes, **factory_kwargs)
            self.out[f"out_{i}"] = nn.Sequential(conv, nn.Tanh())

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """S, [b, k, 5 * style_dim], from x [b, 3, h, w] in [-1, 1] and M [b, k, h, w]; h and w multiples of 64."""
        x = self.Encoder["first_layer"](image)
        skips = []
        for i in range(DOWNS):
            x = self.Encoder[f"enc_layer_{i}"](x)
            skips.append(x)
        codes = []
        for i in range(SCALES):
            x = self.Decoder[f"dec_layer_{i}"](x)
            mean = masked_mean(rearrange(x, "b (k c) h w -> b k c h w", k=self.classes), mask)
            code = self.out[f"out_{i}"](rearrange(mean, "b k c -> b (k c) 1"))
            codes.append(rearrange(code, "b (k s) 1 -> b k s", k=self.classes))
            if i + 1 < SCALES:
                # Appended, not interleaved per class: group g of the next stage reads classes 2g and 2g + 1. The weights know it so.
                x = torch.cat([x, skips[DOWNS - 2 - i]], dim=1)
        return torch.cat(codes, dim=-1)

    def absent(self) -> Tensor:
        """What a class without pixels gets, [k, 5 * style_dim]: tanh(v_i), the same for every image."""
        out: Any = self.out
        biases = [out[f"out_{i}"][0].bias for i in range(SCALES)]
        return torch.cat([rearrange(bias, "(k s) -> k s", k=self.classes) for bias in biases], dim=-1).tanh()


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of a class's own features over the class's pixels; 0 for a class without pixels.

        sum(f * m) / (sum(m) + 1e-5)

    Args:
        features: f, [b, k, c, h, w].
        mask: M, [b, k, H, W], brought to h, w by nearest neighbour: small classes may vanish.

    Returns:
        [b, k, c].
    """
    m = F.interpolate(mask.to(features.dtype), size=features.shape[-2:], mode="nearest")
    # Divided before the sum and counted in float32: half precision can hold neither 16384 cells nor the sum over them.
    m = m / (m.sum(dim=(-2, -1), keepdim=True, dtype=torch.float32) + 1e-5)
    return torch.einsum("bkchw,bkhw->bkc", features, m.to(features.dtype))


class NoiseMapping(nn.Module):
    """Styles without an image: a shared network, then one a class.

    Args:
        classes: k. noise_dim: width of the noise (16; 256 in files of December 2023). width: of the hidden layers (512).
        code_dim: width of a style code (1280).
        operations, dtype, device: the layers' classes and where their weights are made.
    """

    def __init__(
        self, classes: int, noise_dim: int, width: int, code_dim: int, operations: Any = nn, dtype: Any = None, device: Any = None
    ) -> None:
        super().__init__()

        def layers(*widths: int) -> list[nn.Module]:
            linear = [operations.Linear(a, b, dtype=dtype, device=device) for a, b in pairwise(widths)]
            return [module for layer in linear for module in (layer, nn.ReLU())]

        self.shared = nn.Sequential(*layers(noise_dim, width, width, width, width))
        # Without the last activation: a code may be negative.
        self.unshared = nn.ModuleList(nn.Sequential(*layers(width, width, width, width, code_dim)[:-1]) for _ in range(classes))

    def forward(self, noise: Tensor) -> Tensor:
        """S of all classes, [b, k, code_dim], from noise [b, noise_dim]."""
        shared = self.shared(noise)
        return torch.stack([own(shared) for own in self.unshared], dim=1)
