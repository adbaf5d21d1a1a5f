"""Density and coverage: precision and recall that a few outlying images do not spoil."""

from __future__ import annotations

from torch import Tensor

from rewards.calibration import bootstrap_mean, wilson
from rewards.estimate import Estimate
from rewards.quality.precision_recall import BallMetric, within_balls


def density(generated: Tensor, real: Tensor, k: int = 5) -> Estimate:
    """How many balls around real images a generated image lies in, in units of k.

    The density of Naeem et al. 2020 (arXiv:2002.09797); balls reach to a real image's k-th nearest other one, surface
    included. About 1 for two samples of one source, and above 1 where generated images crowd in the middle of the real
    ones, which is no virtue. The interval is the bootstrap's over generated images, for the given balls.

    Args:
        generated: Float ``(n, d)`` features, n > 1.
        real: Float ``(m, d)``, m > k.
        k: Of the paper: 5.
    """
    return bootstrap_mean(within_balls(generated, real, k).sum(dim=1).double() / k)


def coverage(generated: Tensor, real: Tensor, k: int = 5) -> Estimate:
    """The share of real images with a generated one in their ball.

    The coverage of Naeem et al. 2020 (arXiv:2002.09797). Unlike recall, it gives nothing for generated outliers. It
    grows with the number of generated images: compare at equal sizes only. The interval is Wilson's, for the given
    generated ones.

    Args:
        generated: Float ``(n, d)`` features.
        real: Float ``(m, d)``, m > k.
        k: Of the paper: 5.
    """
    return wilson(int(within_balls(generated, real, k).any(dim=0).sum()), len(real))


class Density(BallMetric):
    """`density` of features given in pieces."""

    name = "density"

    def __init__(self, embedding: str = "efficientnet_lite0", k: int = 5) -> None:
        super().__init__(embedding, k)

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return density(generated, real, self.k)


class Coverage(BallMetric):
    """`coverage` of features given in pieces."""

    name = "coverage"
    plot_upper_bound = 1.0

    def __init__(self, embedding: str = "efficientnet_lite0", k: int = 5) -> None:
        super().__init__(embedding, k)

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return coverage(generated, real, self.k)
