"""Kernel inception distance: an unbiased distance between two sets of images, fit for small ones."""

from __future__ import annotations

from torch import Tensor

from rewards.calibration import normal
from rewards.estimate import Estimate
from rewards.quality.feature_sets import FeatureSetMetric


def kid(generated: Tensor, real: Tensor) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (arXiv:1801.01401), equation 4, over all images: the paper's random subsets save time on large
    sets and add luck on small ones. It may be negative; for two samples of one source its mean is 0. The interval is
    that of a normal distribution with the delete-one jackknife's variance over both sets.

    Args:
        generated: Float ``(n, d)`` features, n > 2.
        real: Float ``(m, d)``, m > 2.
    """
    x, y = generated.double(), real.double()
    n, m = len(x), len(y)
    xx, yy, xy = _kernel(x, x).fill_diagonal_(0), _kernel(y, y).fill_diagonal_(0), _kernel(x, y)
    within_x, within_y, between = xx.sum(), yy.sum(), xy.sum()

    def discrepancy(in_x: Tensor, in_y: Tensor, across: Tensor, n: int, m: int) -> Tensor:
        return in_x / (n * (n - 1)) + in_y / (m * (m - 1)) - 2 * across / (n * m)

    without_x = discrepancy(within_x - 2 * xx.sum(1), within_y, between - xy.sum(1), n - 1, m)
    without_y = discrepancy(within_x, within_y - 2 * yy.sum(1), between - xy.sum(0), n, m - 1)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return normal(float(discrepancy(within_x, within_y, between, n, m)), float(variance), n)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


class KID(FeatureSetMetric):
    """`kid` of features given in pieces.

    torchmetrics' `KernelInceptionDistance` takes images, and random subsets of one size from both sets.

    Args:
        embedding: What features are taken of.
    """

    name = "kid"
    higher_is_better = False

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return kid(generated, real)

    def least(self, dimensions: int) -> int:
        """See `FeatureSetMetric`."""
        return 3
