"""Saliency-adaptive noise fusion: which model predicts each latent pixel (Face-diffuser, arXiv 2311.10329).

With R_m the guidance response of model m in epsilon units (T the scene model, S the subject model), per image:

    Omega_m = Smooth(|R_m|)                            mean over the latent channels
    P_m     = softmax over all pixels of Omega_m       so that the maps of two models can be compared
    M       = [P_S > P_T]                              ties go to T
    eps     = M eps_S + (1 - M) eps_T

P is never computed: log P_m = Omega_m - logsumexp(Omega_m) orders the models as P_m does, without its tiny numbers. With more than
two models the largest P_m wins the pixel. The order of the models is the order of preference at ties: the scene model is the first.

Shapes: b images, c latent channels, h w latent pixels, m models, k map channels (1, or c with one mask per channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SMOOTHING = ("average", "gaussian", "none")
#: log P of a scene model that only fills what is forbidden to the subject models, and of a model without a share. Finite, since the
#: difference of two infinities is NaN.
LAST_RESORT, ABSENT = -1e4, -2e4


@dataclass(frozen=True)
class MaskSettings:
    """How masks are computed. The defaults are the published code's.

    Args:
        smoothing: "average" (4x4 mean with zero padding, resized to the latent), "gaussian" (edges are replicated) or "none".
        gaussian_sigma: standard deviation of "gaussian", in latent pixels.
        softness: 0 gives every pixel to one model. Above 0 the models share a pixel by a softmax of log P / softness; with two models
            that is a sigmoid of (log P_S - log P_T) / softness.
        per_channel: compute one mask per latent channel.
        saliency_scale: factor on the difference of the two predictions before the softmax over space, its inverse temperature. None
            takes each model's guidance scale, as published; 1 is the other reading of the paper.

    Raises:
        ValueError: a value out of range.
    """

    smoothing: str = "average"
    gaussian_sigma: float = 1.0
    softness: float = 0.0
    per_channel: bool = False
    saliency_scale: float | None = None

    def __post_init__(self) -> None:
        if self.smoothing not in SMOOTHING:
            raise ValueError(f"smoothing is {self.smoothing!r}; choose one of: {', '.join(SMOOTHING)}.")
        if not (math.isfinite(self.gaussian_sigma) and self.gaussian_sigma > 0):
            raise ValueError(f"gaussian_sigma is {self.gaussian_sigma}; it must be above 0. For no smoothing choose 'none'.")
        if not (math.isfinite(self.softness) and self.softness >= 0):
            raise ValueError(f"softness is {self.softness}; it must be 0 (hard masks) or above.")
        if self.saliency_scale is not None and not (math.isfinite(self.saliency_scale) and self.saliency_scale > 0):
            raise ValueError(f"saliency_scale is {self.saliency_scale}; it must be above 0, at 0 all maps are equal.")


PUBLISHED = MaskSettings()


def guidance_response(full: Tensor, base: Tensor, scale: float, x0_per_epsilon: float | Tensor = 1.0) -> Tensor:
    """R = scale (eps_full - eps_base), up to its sign.

    A model may predict the denoised latent x0 instead of epsilon. A difference of x0 is `x0_per_epsilon` times that of epsilon (up to
    its sign), and without the division the softmax over space would change its temperature along the schedule:

        epsilon predictions                                  1
        x = x0 + sigma eps          (epsilon, v, EDM)        sigma
        x = (1 - sigma) x0 + sigma eps   (rectified flow)    sigma / (1 - sigma), infinite at sigma 1: the response is 0 there

    Args:
        full, base: [b, c, h, w], the predictions with and without what the model is guided towards. Scene model: its prompt and the
            negative prompt. Subject model: the prompt with the reference and the prompt without.
        scale: the guidance scale, or MaskSettings.saliency_scale.
        x0_per_epsilon: above 0, a number or [b].

    Returns:
        [b, c, h, w], float32 at least.
    """
    if not isinstance(x0_per_epsilon, Tensor) and not x0_per_epsilon > 0:
        raise ValueError(f"x0_per_epsilon is {x0_per_epsilon}; it must be above 0.")
    difference = _at_least_float32(full) - _at_least_float32(base)
    if isinstance(x0_per_epsilon, Tensor):
        x0_per_epsilon = rearrange(x0_per_epsilon.to(difference).reshape(-1), "b -> b 1 1 1")
    return difference * (scale / x0_per_epsilon)


def saliency_shares(
    responses: Sequence[Tensor | None],
    settings: MaskSettings = PUBLISHED,
    *,
    scene_is_last_resort: bool = False,
    force: Mapping[int, Tensor] | None = None,
    forbid: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """M for any number of models: which part of each latent pixel each model predicts.

    Args:
        responses: R of each model from `guidance_response`, the scene model's first; None for a model that was not evaluated and gets no
            share.
        scene_is_last_resort: the scene model only fills what is forbidden to all subject models (stage 3).
        force, forbid: as in `compute_shares`.

    Returns:
        [m, b, k, h, w], 0..1, sums to 1 over m.
    """
    shapes = [response.shape for response in responses if response is not None]
    b, c, h, w = shapes[0]
    _check_same_shape([list(shape) for shape in shapes])
    some = next(response for response in responses if response is not None)
    log_maps = _at_least_float32(some).new_full((len(responses), b, c if settings.per_channel else 1, h, w), ABSENT)
    for number, response in enumerate(responses):
        if response is not None and not (number == 0 and scene_is_last_resort):
            log_maps[number] = log_saliency(response, settings)
    if scene_is_last_resort:
        log_maps[0] = LAST_RESORT
    return compute_shares(log_maps, settings, force=force, forbid=forbid)


def log_saliency(response: Tensor, settings: MaskSettings = PUBLISHED) -> Tensor:
    """log P of one model: how strongly its guidance acts at each latent pixel, relative to all others.

    Args:
        response: R, [b, c, h, w], from `guidance_response`.

    Returns:
        [b, k, h, w], float32 at least; its exponential sums to 1 over the pixels of each image (and channel).
    """
    if response.ndim != 4:
        raise ValueError(
            f"Noise fusion needs the latents of images, [batch, channels, height, width]; this latent is {list(response.shape)}."
        )
    omega = _at_least_float32(response).abs()
    if not settings.per_channel:
        omega = omega.mean(dim=1, keepdim=True)  # what follows is linear up to the softmax: one channel gives the same
    h, w = omega.shape[-2:]
    if settings.smoothing == "average":
        omega = _smooth_average(omega)
    elif settings.smoothing == "gaussian":
        omega = _smooth_gaussian(omega, settings.gaussian_sigma)
    return rearrange(rearrange(omega, "b k h w -> b k (h w)").log_softmax(dim=-1), "b k (h w) -> b k h w", h=h, w=w)


def _smooth_average(omega: Tensor) -> Tensor:
    """The published Smooth: the even kernel loses a row and a column, which the resize restores. The zero padding counts in the mean."""
    h, w = omega.shape[-2:]
    if min(h, w) < 2:
        raise ValueError(f"A latent of {h} x {w} pixels is too small for the average smoothing; choose 'gaussian' or 'none'.")
    pooled = F.avg_pool2d(omega, kernel_size=4, stride=1, padding=1)  # [b, k, h-1, w-1]
    return F.interpolate(pooled, size=(h, w), mode="bilinear", align_corners=False)


def _smooth_gaussian(omega: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur, cut at three sigmas. Edges are replicated, so that the border is not darker than what it borders."""
    k = omega.shape[1]
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=omega.dtype, device=omega.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).softmax(dim=0)
    flat = F.pad(rearrange(omega, "b k h w -> (b k) 1 h w"), (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, rearrange(kernel, "n -> 1 1 n 1"))
    flat = F.conv2d(flat, rearrange(kernel, "n -> 1 1 1 n"))
    return rearrange(flat, "(b k) 1 h w -> b k h w", k=k)


def compute_shares(
    log_maps: Tensor,
    settings: MaskSettings = PUBLISHED,
    *,
    force: Mapping[int, Tensor] | None = None,
    forbid: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Which part of each latent pixel each model predicts, from the saliency maps of all models.

    Args:
        log_maps: [m, b, k, h, w] from `log_saliency`, the scene model first.
        force: model number -> mask [f, H, W] of any size, 0..1: the least share of that model there, whatever the maps are. Takes
            precedence over `forbid`; where the masks of several models add up to more than 1 they are normalised.
        forbid: subject model number (1 or above) -> mask. Where it is 1 the model has no share, and the best of the others replaces it;
            where all subject models are forbidden, the scene model. Between 0 and 1 a hard mask passes that part of the pixel on to
            the next best model, and a soft one multiplies the model's P by 1 - mask.

    Returns:
        [m, b, k, h, w], 0..1, sums to 1 over m.
    """
    force, forbid = dict(force or {}), dict(forbid or {})
    m, b, _, h, w = log_maps.shape
    for name, first, regions in (("force", 0, force), ("forbid", 1, forbid)):
        wrong = [number for number in regions if not first <= number < m]
        if wrong:
            raise ValueError(f"{name} names model {wrong[0]}; it must be one of {first} to {m - 1}.")
    allowed = {number: 1.0 - mask_to_latent(mask, b, h, w).to(log_maps) for number, mask in forbid.items()}
    shares = _soft_shares(log_maps, allowed, settings.softness) if settings.softness > 0 else _hard_shares(log_maps, allowed)
    return _apply_force(shares, {number: mask_to_latent(mask, b, h, w).to(log_maps) for number, mask in force.items()})


def _winner(log_maps: Tensor) -> Tensor:
    """[b, k, h, w]: the number of the model with the largest map; at a tie the lower number."""
    best, winner = log_maps[0], torch.zeros_like(log_maps[0], dtype=torch.long)
    for number in range(1, len(log_maps)):
        better = log_maps[number] > best
        best, winner = torch.where(better, log_maps[number], best), winner.masked_fill(better, number)
    return winner


def _is_winner(log_maps: Tensor) -> Tensor:
    """[m, b, k, h, w]: True for the winner of each pixel."""
    winner = _winner(log_maps)
    return torch.stack([winner == number for number in range(len(log_maps))])


def _hard_shares(log_maps: Tensor, allowed: Mapping[int, Tensor]) -> Tensor:
    if not allowed:
        return _is_winner(log_maps).to(log_maps.dtype)
    # The winner gets what it is allowed of a pixel, the next best gets what it is allowed of the rest, and so on.
    m = len(log_maps)
    limits = torch.stack([allowed.get(number, torch.ones_like(log_maps[0, :, :1])) for number in range(m)])
    shares, rest = torch.zeros_like(log_maps), torch.ones_like(log_maps[0])
    for _ in range(m):
        wins = _is_winner(log_maps)
        taken = torch.where(wins, limits * rest, 0.0)
        shares, rest = shares + taken, rest - taken.sum(dim=0)
        log_maps = log_maps.masked_fill(wins, -math.inf)
    return shares


def _soft_shares(log_maps: Tensor, allowed: Mapping[int, Tensor], softness: float) -> Tensor:
    logits = log_maps / softness
    for number, limit in allowed.items():
        logits[number] += limit.log()  # log 0 removes the model from the softmax; the scene model is never removed
    return logits.softmax(dim=0)


def _apply_force(shares: Tensor, forced: Mapping[int, Tensor]) -> Tensor:
    if not forced:
        return shares
    total = torch.stack(list(forced.values())).sum(dim=0)
    shares = shares * (1.0 - total).clamp(min=0.0)
    for number, mask in forced.items():
        shares[number] += mask / total.clamp(min=1.0)
    return shares


def mask_to_latent(mask: Tensor, b: int, h: int, w: int) -> Tensor:
    """A mask at the size of a latent: each latent pixel gets the mean of the image pixels that it covers.

    Args:
        mask: [f, H, W] or [H, W], 0..1; image number i uses mask number i modulo f.

    Returns:
        [b, 1, h, w], 0..1, float32.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"A mask must be [batch, height, width]; this one is {list(mask.shape)}.")
    resized = F.interpolate(rearrange(mask.float(), "f h w -> f 1 h w"), size=(h, w), mode="area").clamp(0.0, 1.0)
    return resized[[image % len(resized) for image in range(b)]]


def fuse(guided: Sequence[Tensor], shares: Tensor) -> Tensor:
    """sum_m shares_m guided_m.

    Computed as a chain of interpolations: where a share is 1 the result is bit-identical to that model's prediction, and where all
    models agree the result is bit-identical to their common prediction, whatever the shares.

    Args:
        guided: m predictions [b, c, h, w] all epsilon or all x0.
        shares: [m, b, k, h, w] that sum to 1.

    Returns:
        [b, c, h, w] in the dtype of the predictions.
    """
    _check_same_shape([list(prediction.shape) for prediction in guided])
    result, total = _at_least_float32(guided[0]), shares[0]
    for prediction, share in zip(guided[1:], shares[1:], strict=True):
        total = total + share
        part = share / total.clamp(min=1e-12)
        result = torch.lerp(result, prediction.to(result), part.to(result))
    return result.to(guided[0].dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_same_shape(shapes: Sequence[list[int]]) -> None:
    different = [shape for shape in shapes if shape != shapes[0]]
    if different:
        raise ValueError(
            f"The models predict latents of different shapes, {shapes[0]} and {different[0]}. "
            "Noise fusion needs models with one latent space, such as two of Stable Diffusion 1.5."
        )
