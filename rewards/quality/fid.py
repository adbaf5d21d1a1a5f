"""Frechet distance between two sets of images."""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.estimate import Estimate
from rewards.quality.feature_sets import FeatureSetMetric


def fid(generated: Tensor, real: Tensor) -> Estimate:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

    Heusel et al. 2017 (arXiv:1706.08500), equation 6.

    Biased upwards by an amount that falls with the number of images: compare at equal sizes only. No interval is given,
    because resampling repeats images and so lowers the covariance's rank.

    Args:
        generated: Float ``(n, d)`` features, n > d: fewer give a singular covariance, and the number means little.
        real: Float ``(m, d)``, m > d.

    Raises:
        ValueError: If there are too few.
    """
    (n, d), m = generated.shape, len(real)
    if min(n, m) <= d:
        raise ValueError(
            f"the Frechet distance of {d} features needs more than {d} images in each set, got {n} and {m}"
        )
    x, y = generated.double(), real.double()
    x_covariance, y_covariance = x.T.cov(), y.T.cov()
    # tr sqrt(A B) through the symmetric sqrt(A) B sqrt(A), which has the same eigenvalues: real, and twice as fast.
    eigenvalues, vectors = torch.linalg.eigh(x_covariance)
    root = vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ y_covariance @ root).clamp(min=0).sqrt().sum()
    mean_term = (x.mean(0) - y.mean(0)).square().sum()
    value = float(mean_term + x_covariance.trace() + y_covariance.trace() - 2 * overlap)
    return Estimate(value, None, None, n)


class FID(FeatureSetMetric):
    """`fid` of features given in pieces. Its null is of halves, so it is biased upwards more than its value.

    torchmetrics' `FrechetInceptionDistance` gives the same number, slower and for any number of images.

    Args:
        embedding: What features are taken of.
    """

    name = "fid"
    higher_is_better = False
    plot_lower_bound = 0.0

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return fid(generated, real)

    def least(self, dimensions: int) -> int:
        """See `FeatureSetMetric`."""
        return dimensions + 1
