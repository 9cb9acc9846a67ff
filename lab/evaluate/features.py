"""Measures on embeddings: how well an image fits its text, how far one set of images is from another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_score(images: Tensor, texts: Tensor) -> float:
    """100 times the mean cosine of each image [n, c] with its own text [n, c], at least 0 per pair (arXiv 2104.08718 without weight)."""
    return float(100 * F.cosine_similarity(images.double(), texts.double(), dim=-1).clamp(min=0).mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the normal distributions of two sets of features [n, c] and [m, c] (arXiv 1706.08500):

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is taken through symmetric matrices, so that it is real. Raises ValueError on fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"A Frechet distance needs at least two images on each side; there are {len(a)} and {len(b)}.")
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(apart + covariance_a.trace() + covariance_b.trace() - 2 * both)
