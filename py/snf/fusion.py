"""Saliency-adaptive noise fusion: whose prediction each cell of the latent takes (Face-diffuser, arXiv 2311.10329).

With R_m the guidance response of model m in epsilon units (T the scene model, S the subject model), per picture:

    Omega_m = Smooth(|R_m|)                            mean over the latent's channels
    P_m     = softmax over all cells of Omega_m        so that the maps of two models can be compared
    M       = [P_S > P_T]                              ties go to T
    eps     = M eps_S + (1 - M) eps_T

P is never computed: log P_m = Omega_m - logsumexp(Omega_m) orders the models as P_m does, without its tiny numbers. With more than
two models the largest P_m takes the cell. The order of the models is the order of preference at ties: the scene model is the first.

Shapes: b pictures, c latent channels, h w cells, m models, k map channels (1, or c with one mask per channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SMOOTHING = ("average", "gaussian", "none")


@dataclass(frozen=True)
class Settings:
    """How masks are made. The defaults are the published code's. Raises ValueError for values without a meaning.

    Args:
        smoothing: "average" (4x4 mean, zeros outside, stretched back by one cell), "gaussian" (edges continued outwards) or "none".
        gaussian_sigma: of "gaussian", in latent cells.
        softness: 0 gives every cell to one model. Above 0 a cell is shared by a softmax over the models of log P / softness; with two
            models a sigmoid of the difference of their log maps, in nepers, over softness.
        per_channel: compare the models in each latent channel by itself.
        saliency_scale: factor on the bare difference of the two predictions before the softmax over space, its inverse temperature. None
            takes each model's guidance scale, as published; 1 is the other reading of the paper.
    """

    smoothing: str = "average"
    gaussian_sigma: float = 1.0
    softness: float = 0.0
    per_channel: bool = False
    saliency_scale: float | None = None

    def __post_init__(self) -> None:
        if self.smoothing not in SMOOTHING:
            raise ValueError(f"smoothing is {self.smoothing!r}; it must be one of {', '.join(SMOOTHING)}.")
        if not (math.isfinite(self.gaussian_sigma) and self.gaussian_sigma > 0):
            raise ValueError(f"gaussian_sigma is {self.gaussian_sigma}; it must be above 0. For no smoothing choose 'none'.")
        if not (math.isfinite(self.softness) and self.softness >= 0):
            raise ValueError(f"softness is {self.softness}; it must be 0 (hard masks) or above.")
        if self.saliency_scale is not None and not (math.isfinite(self.saliency_scale) and self.saliency_scale > 0):
            raise ValueError(f"saliency_scale is {self.saliency_scale}; it must be above 0, at 0 all maps are equal.")


PUBLISHED = Settings()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one model says of one latent: all tensors [b, c, h, w], all epsilon or all denoised pictures (x0).

    Args:
        base: the branch without what the model is there for. Scene model: empty prompt. Subject model: prompt without the reference.
        full: the branch with it. Scene model: prompt. Subject model: prompt with the reference.
        guidance: s, how far to go from base towards full.
        null: the subject model with the empty or negative prompt. Only read if text_guidance is not 1.
        text_guidance: how far to go from null to base. 1 is base itself, as published: the negative prompt then has no say.
    """

    base: Tensor
    full: Tensor
    guidance: float
    null: Tensor | None = None
    text_guidance: float = 1.0

    def guided(self) -> Tensor:
        """null + text_guidance (base - null) + guidance (full - base), [b, c, h, w], in the units of its parts.

        A factor of 1 takes the branch itself, to the bit, and does not ask for the branch before it.
        """
        if self.text_guidance == 1.0:
            return self.full if self.guidance == 1.0 else self.base + (self.full - self.base) * self.guidance
        if self.null is None:
            raise ValueError("A text guidance other than 1 needs the subject model's prediction for the negative prompt.")
        text = self.null + (self.base - self.null) * self.text_guidance
        return text + (self.full - self.base) * self.guidance

    def response(self, sigma: float | Tensor | None = None, scale: float | None = None) -> Tensor:
        """R = scale (full - base) in epsilon units, up to its sign: [b, c, h, w], float32 at least.

        Args:
            sigma: None if the predictions are epsilon. If they are x0, the noise level, a number or [b]: eps = (x - x0) / sigma, so a
                difference of x0 is sigma times that of epsilon, and without the division the softmax would cool with the schedule.
            scale: in place of the guidance scale.
        """
        difference = _precise(self.full) - _precise(self.base)
        factor: float | Tensor = self.guidance if scale is None else scale
        if isinstance(sigma, Tensor):
            factor = factor / rearrange(sigma.to(difference).reshape(-1), "b -> b 1 1 1")
        elif sigma is not None:
            if not sigma > 0:
                raise ValueError(f"sigma is {sigma}; a denoised picture says something about the noise only above 0.")
            factor = factor / sigma
        return difference * factor


class Fusion(NamedTuple):
    """A fused prediction and how it came about.

    prediction: [b, c, h, w], in the units and dtype of the models' predictions.
    shares: [m, b, k, h, w], which part of each cell each model gave; they sum to 1.
    log_maps: [m, b, k, h, w], log P of each model.
    """

    prediction: Tensor
    shares: Tensor
    log_maps: Tensor

    def coverage(self) -> Tensor:
        """[m, b]: the part of each picture that each model gave."""
        return self.shares.mean(dim=(2, 3, 4))


def blend(
    predictions: Sequence[Prediction],
    settings: Settings = PUBLISHED,
    *,
    sigma: float | Tensor | None = None,
    force: Mapping[int, Tensor] | None = None,
    forbid: Mapping[int, Tensor] | None = None,
) -> Fusion:
    """The whole second stage: responses, maps, shares, fused prediction.

    Args:
        predictions: the scene model's, then the subject models'; one latent space, one size.
        sigma: None for epsilon predictions, the noise level (a number or [b]) for x0 predictions.
        force, forbid: as in `model_shares`.
    """
    _one_space([prediction.full for prediction in predictions])
    maps = [log_saliency(prediction.response(sigma, settings.saliency_scale), settings) for prediction in predictions]
    log_maps = torch.stack(maps)
    shares = model_shares(log_maps, settings, force=force, forbid=forbid)
    return Fusion(fuse([prediction.guided() for prediction in predictions], shares), shares, log_maps)


def saliency_mask(response_t: Tensor, response_s: Tensor, settings: Settings = PUBLISHED) -> Tensor:
    """Say, for each cell, whose noise to keep: 0 the scene model's, 1 the subject model's.

        Omega_m = Smooth(|R_m|)                                         m in {T, S}
        M       = [softmax_hw(Omega_S) > softmax_hw(Omega_T)]           ties go to T

    Args:
        response_t: R_T = s (eps_T(text) - eps_T(null)), [b, c, h, w], epsilon units (not x0).
        response_s: R_S = s (eps_S(ref) - eps_S(text)), [b, c, h, w], epsilon units (not x0).

    Returns:
        M, [b, k, h, w], float32 (float64 for such responses).
    """
    return model_shares(torch.stack([log_saliency(response, settings) for response in (response_t, response_s)]), settings)[1]


def log_saliency(response: Tensor, settings: Settings = PUBLISHED) -> Tensor:
    """log P of one model: where, among all cells, its guidance acts.

    Args:
        response: R, [b, c, h, w], epsilon units, guidance included.

    Returns:
        [b, k, h, w], float32 at least; its exponential sums to 1 over the cells of each picture (and channel).
    """
    if response.ndim != 4:
        raise ValueError(
            f"Noise fusion works on the latents of pictures, [batch, channels, height, width]; this latent is {list(response.shape)}."
        )
    omega = _precise(response).abs()
    if not settings.per_channel:
        omega = omega.mean(dim=1, keepdim=True)  # what follows is linear up to the softmax: one channel gives the same
    h, w = omega.shape[-2:]
    if settings.smoothing == "average":
        omega = _average(omega)
    elif settings.smoothing == "gaussian":
        omega = _gaussian(omega, settings.gaussian_sigma)
    return rearrange(rearrange(omega, "b k h w -> b k (h w)").log_softmax(dim=-1), "b k (h w) -> b k h w", h=h, w=w)


def _average(omega: Tensor) -> Tensor:
    """The published Smooth: the even kernel loses a cell, which the stretching gives back. Zeros outside count in the mean."""
    h, w = omega.shape[-2:]
    if min(h, w) < 2:
        raise ValueError(f"A latent of {h} x {w} cells is too small for the average smoothing; choose 'gaussian' or 'none'.")
    pooled = F.avg_pool2d(omega, kernel_size=4, stride=1, padding=1)  # [b, k, h-1, w-1]
    return F.interpolate(pooled, size=(h, w), mode="bilinear", align_corners=False)


def _gaussian(omega: Tensor, sigma: float) -> Tensor:
    """A Gaussian cut at three sigmas. Edges are continued outwards, so that the border is not darker than what it borders."""
    k = omega.shape[1]
    radius = math.ceil(3 * sigma)
    cells = torch.arange(-radius, radius + 1, dtype=omega.dtype, device=omega.device)
    kernel = (-0.5 * (cells / sigma) ** 2).softmax(dim=0)
    flat = F.pad(rearrange(omega, "b k h w -> (b k) 1 h w"), (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, rearrange(kernel, "n -> 1 1 n 1"))
    flat = F.conv2d(flat, rearrange(kernel, "n -> 1 1 1 n"))
    return rearrange(flat, "(b k) 1 h w -> b k h w", k=k)


def model_shares(
    log_maps: Tensor,
    settings: Settings = PUBLISHED,
    *,
    force: Mapping[int, Tensor] | None = None,
    forbid: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Which part of each cell each model gives.

    Args:
        log_maps: [m, b, k, h, w] from `log_saliency`, the scene model first.
        force: model number -> mask [f, H, W] of any size, 0..1: there the model gives that part of the cell at least, whatever the maps
            say. Wins over `forbid`; where several models are forced beyond 1 they share the cell.
        forbid: subject model number (1 or above) -> mask. There the model gives nothing (where the mask is 1), and the best of the others
            takes its place; where all subject models are forbidden, the scene. Between 0 and 1 a hard mask passes on that part of the
            cell, and a soft one counts the model's P that much less.

    Returns:
        [m, b, k, h, w], 0..1, sums to 1 over m.
    """
    force, forbid = dict(force or {}), dict(forbid or {})
    m, b, _, h, w = log_maps.shape
    for name, first, regions in (("force", 0, force), ("forbid", 1, forbid)):
        wrong = [number for number in regions if not first <= number < m]
        if wrong:
            raise ValueError(f"{name} names model {wrong[0]}; there are models {first} to {m - 1} to {name}.")
    allowed = {number: 1.0 - mask_on_grid(mask, b, h, w).to(log_maps) for number, mask in forbid.items()}
    shares = _soft_shares(log_maps, allowed, settings.softness) if settings.softness > 0 else _hard_shares(log_maps, allowed)
    return _forced(shares, {number: mask_on_grid(mask, b, h, w).to(log_maps) for number, mask in force.items()})


def _winner(log_maps: Tensor) -> Tensor:
    """[b, k, h, w]: the number of the model with the largest map; at a tie the earlier one."""
    best, winner = log_maps[0], torch.zeros_like(log_maps[0], dtype=torch.long)
    for number in range(1, len(log_maps)):
        better = log_maps[number] > best
        best, winner = torch.where(better, log_maps[number], best), winner.masked_fill(better, number)
    return winner


def _of_winner(log_maps: Tensor) -> Tensor:
    """[m, b, k, h, w]: True for the winner of each cell."""
    winner = _winner(log_maps)
    return torch.stack([winner == number for number in range(len(log_maps))])


def _hard_shares(log_maps: Tensor, allowed: Mapping[int, Tensor]) -> Tensor:
    if not allowed:
        return _of_winner(log_maps).to(log_maps.dtype)
    # The winner takes what it is allowed of a cell, the next best of the rest what that one is allowed, and so on.
    m = len(log_maps)
    limits = torch.stack([allowed.get(number, torch.ones_like(log_maps[0, :, :1])) for number in range(m)])
    shares, rest = torch.zeros_like(log_maps), torch.ones_like(log_maps[0])
    for _ in range(m):
        wins = _of_winner(log_maps)
        taken = torch.where(wins, limits * rest, 0.0)
        shares, rest = shares + taken, rest - taken.sum(dim=0)
        log_maps = log_maps.masked_fill(wins, -math.inf)
    return shares


def _soft_shares(log_maps: Tensor, allowed: Mapping[int, Tensor], softness: float) -> Tensor:
    logits = log_maps / softness
    for number, limit in allowed.items():
        logits[number] += limit.log()  # log 0 takes the model out of the softmax; the scene always stays in
    return logits.softmax(dim=0)


def _forced(shares: Tensor, forced: Mapping[int, Tensor]) -> Tensor:
    if not forced:
        return shares
    total = torch.stack(list(forced.values())).sum(dim=0)
    shares = shares * (1.0 - total).clamp(min=0.0)
    for number, mask in forced.items():
        shares[number] += mask / total.clamp(min=1.0)
    return shares


def mask_on_grid(mask: Tensor, b: int, h: int, w: int) -> Tensor:
    """A MASK on the cells of a latent: each cell gets the mean of the pixels it covers.

    Args:
        mask: [f, H, W] or [H, W], 0..1; picture number i takes mask number i modulo f.

    Returns:
        [b, 1, h, w], 0..1, float32.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"A mask must be [pictures, height, width]; this one is {list(mask.shape)}.")
    cells = F.interpolate(rearrange(mask.float(), "f h w -> f 1 h w"), size=(h, w), mode="area").clamp(0.0, 1.0)
    return cells[[picture % len(cells) for picture in range(b)]]


def fuse(guided: Sequence[Tensor], shares: Tensor) -> Tensor:
    """sum_m shares_m guided_m.

    As a chain of interpolations: where a share is 1 the result is that model's prediction to the bit, and where all models agree it
    is what they agree on, whatever the shares.

    Args:
        guided: m predictions [b, c, h, w] in one unit, epsilon or x0.
        shares: [m, b, k, h, w] that sum to 1.

    Returns:
        [b, c, h, w] in the dtype of the predictions.
    """
    _one_space(guided)
    result, total = _precise(guided[0]), shares[0]
    for prediction, share in zip(guided[1:], shares[1:], strict=True):
        total = total + share
        part = share / total.clamp(min=1e-12)
        result = torch.lerp(result, prediction.to(result), part.to(result))
    return result.to(guided[0].dtype)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _one_space(predictions: Sequence[Tensor]) -> None:
    shapes = [list(prediction.shape) for prediction in predictions]
    different = [shape for shape in shapes if shape != shapes[0]]
    if different:
        raise ValueError(
            f"The models predict latents of different shapes, {shapes[0]} and {different[0]}. "
            "Noise fusion needs models of one latent space: two of Stable Diffusion 1.5, say."
        )
