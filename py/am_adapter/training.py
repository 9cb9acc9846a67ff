"""Training AM-Adapter (arXiv 2412.03150): its exemplars, its augmented layers, and how a matcher is initialised.

Stage 1 trains ControlNeXt (optionally with the UNet) to follow maps. Stage 2 trains only the matcher. Both predict the noise:

    loss = mean |eps - eps_theta(z_t, t, ...)|^2

The authors published no training code. In stage 2 the exemplar is a second view of the target itself, as their data class suggests: the
same classes with the same look at other positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .agreement import PAPER_FORMULAS, Behaviour, Grid, compare_classes
from .attention import Exemplar, Settings, augmented_attention, match_tokens, matching_grid
from .model import Encoder, Matcher


def crop_second_view(image: Tensor, labels: Tensor, rng: torch.Generator, least: float = 0.7) -> tuple[Tensor, Tensor]:
    """A second view of an image: a window of `least` to all of each side, mirrored half of the time, at the old size.

    Args:
        image: [3, h, w], 0..1. labels: [h, w], its map.

    Returns:
        Image and labels of the window.
    """
    h, w = labels.shape
    share = least + (1 - least) * float(torch.rand((), generator=rng))
    rows, columns = max(1, round(share * h)), max(1, round(share * w))
    top = int(torch.randint(0, h - rows + 1, (), generator=rng))
    left = int(torch.randint(0, w - columns + 1, (), generator=rng))
    window = (slice(top, top + rows), slice(left, left + columns))
    image = F.interpolate(image[None, :, window[0], window[1]], (h, w), mode="bilinear", antialias=True)[0]
    labels = F.interpolate(labels[None, None, window[0], window[1]].float(), (h, w), mode="nearest-exact")[0, 0].to(labels.dtype)
    if bool(torch.rand((), generator=rng) < 0.5):
        image, labels = image.flip(-1), labels.flip(-1)
    return image, labels


def attend_through_matcher(
    encoder: Encoder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    exemplar: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    grids: tuple[Grid, Grid],
    void: int | None,
    behaviour: Behaviour = PAPER_FORMULAS,
) -> Tensor:
    """A layer whose every row attends to its own exemplar through the matcher: [b, l, c], differentiable in the encoder.

    Args:
        q, k, v: [b, l, c]. exemplar: its keys and values, [b, m, c]. labels: maps of targets and exemplars, [b, h, w].
        grids: of the layer, for target and exemplar. void: a label that matches nothing.
    """
    small = [matching_grid(grid, behaviour) for grid in grids]
    agreement = compare_classes(*labels, small[0], small[1], behaviour=behaviour, void=void).to(q.device, q.dtype)
    matched = match_tokens(encoder, q, exemplar[0], heads, agreement, *grids, behaviour=behaviour)
    return augmented_attention(q, k, v, heads, [Exemplar(*exemplar, match=matched)], Settings("matcher"))


@torch.no_grad()
def init_as_class_bias_(matcher: Matcher, spread: float = 0.3, height: float = 1.5) -> None:
    """Initialise a matcher near its closed form, P = b C: half of the channels pass C on, the others get smaller random weights."""
    for encoder in matcher.encoders:
        for layer, (convolution, norm) in enumerate(encoder.conv4d):  # type: ignore[union-attr, arg-type]
            query, support = convolution.query_conv, convolution.supp_conv
            for weight in (query.weight, support.weight, query.bias, support.bias):
                weight.mul_(spread)
            outer, inner = query.weight.shape[:2]
            is_last = layer == len(encoder.widths) - 1  # type: ignore[arg-type, union-attr]
            for channel in range(outer if is_last else outer // 2):
                source = inner - 1 if layer == 0 else channel % max(1, inner // 2)
                query.weight[channel, source, 0, 0] += 1.0
            if is_last:
                norm.weight.fill_(height)
