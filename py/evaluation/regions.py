"""How similar one region of an image is to a reference image: the region CLIP score, and the quality score of whole images.

As Paint by Example (arXiv 2211.13227) measures, without three errors of its published code: a region is the rectangle around the whole mask
whatever its shape, its last row and column belong to it, and images are resized before they are normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COMPONENTS = 20  # of the mixture
FULL_MARK = 300.0  # log likelihood from which on the quality is 100


def region_scores(regions: Tensor, exemplars: Tensor) -> Tensor:
    """100 times the cosine of each region's embedding [n, c] with its exemplar's [n or 1, c]: [n]."""
    return 100 * F.cosine_similarity(regions.double(), exemplars.double(), dim=-1)


def region(image: Tensor, box: tuple[int, int, int, int], side: int = 224) -> Tensor:
    """The rectangle x0 y0 x1 y1 (pixels, ends excluded) of a image [3, h, w] as a square [3, side, side], its aspect ratio ignored."""
    x0, y0, x1, y1 = box
    return F.interpolate(image[None, :, y0:y1, x0:x1], size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]


def quality_scores(log_likelihoods: Tensor) -> Tensor:
    """Log likelihoods [n] of CLIP features under a Gaussian mixture of real images' -> 0..100 each."""
    return 100 * (log_likelihoods / FULL_MARK).clamp(0, 1)


def mixture_of(features: Tensor, components: int = COMPONENTS, seed: int = 0):
    """A Gaussian mixture of the features [n, c] of real images, as the quality score uses it (20 components on CLIP ViT-B/32).

    Its `score_samples(features)` gives the log likelihoods. Raises ValueError if there are fewer images than components.
    """
    if len(features) < components:
        raise ValueError(f"A mixture of {components} components needs at least as many images; there are {len(features)}.")
    from sklearn.mixture import GaussianMixture  # only for measuring: no node needs it

    return GaussianMixture(components, covariance_type="full", random_state=seed, reg_covar=1e-4).fit(
        features.double().cpu().numpy()
    )


def quality(mixture, features: Tensor) -> float:
    """The mean quality score of images with these features [n, c]."""
    return float(quality_scores(torch.from_numpy(mixture.score_samples(features.double().cpu().numpy()))).mean())
