"""Frechet distance between two sets of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import halves
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


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


class FID(RewardMetric):
    """`fid` of features given in pieces. Its null, one half of the judge's images against the other, is biased more.

    torchmetrics' `FrechetInceptionDistance` gives the same number, slower and for any number of images.

    Args:
        embedding: What features are taken of.
    """

    name = "fid"
    higher_is_better = False
    plot_lower_bound = 0.0

    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, embedding: str = "efficientnet_lite0") -> None:
        super().__init__([embedding])
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        self.add_state("real", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features ``(n, d)`` of real or of generated images."""
        (self.real if real else self.generated).append(features)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(fid(dim_zero_cat(self.generated), dim_zero_cat(self.real)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        d = self._real(sample.reference).shape[1]
        sizes = sample.size, sample.reference.judge_size
        return f"needs more than {d} generated and {d} real images, got {sizes}" if min(sizes) <= d else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return fid(sample.features[self.embeddings[0]], self._real(sample.reference))

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        real = self._real(reference)
        return fid(*halves(real)).value if len(real) // 2 > real.shape[1] else None

    def _real(self, reference: Reference) -> Tensor:
        return reference.judge[self.embeddings[0]]
