"""Improved precision and recall: are generated images like real ones, and are all kinds of real ones among them?"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.calibration import wilson
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.neighbors import nearest_neighbors
from rewards.quality.feature_sets import FeatureSetMetric

_ROWS = 1024
"""Points at a time: what a thousand points and their balls take is a few matrices of 8 MB."""

_NUMBERS = 1 << 20
"""Differences at a time."""


def precision(generated: Tensor, real: Tensor, k: int = 3) -> Estimate:
    """The share of generated images within the manifold of real ones.

    Kynkaanniemi et al. 2019 (arXiv:1904.06991), equations 1 and 2: the manifold is the union of balls around points,
    each reaching to its point's k-th nearest other one. Balls shrink as points get more: compare at equal sizes only.
    The interval is Wilson's, for the given manifold.

    Args:
        generated: Float ``(n, d)`` features.
        real: Float ``(m, d)``, m > k.
        k: Of the paper: 3.
    """
    return _share_within(generated, real, k)


def recall(generated: Tensor, real: Tensor, k: int = 3) -> Estimate:
    """The share of real images within the manifold of generated ones: `precision` with its sets exchanged."""
    return _share_within(real, generated, k)


def _share_within(points: Tensor, support: Tensor, k: int) -> Estimate:
    return wilson(int(within_balls(points, support, k).any(dim=1).sum()), len(points))


def within_balls(points: Tensor, support: Tensor, k: int) -> Tensor:
    """Which points lie in which balls around the support's points, each reaching to the k-th nearest other one.

    A point on a ball's surface is in it. Distances are matrix products in double precision; wherever their rounding
    could decide, differences do, so that a copy of the k-th neighbour is on the surface exactly.

    Args:
        points: Float ``(n, d)``.
        support: Float ``(m, d)``, m > k.
        k: At least 1.

    Returns:
        bool ``(n, m)``.
    """
    x, y = points.double(), support.double()
    furthest = nearest_neighbors(support, support, k=k, exclude_self=True).indices[:, -1]
    radii = _squared_distances(y, y[furthest])
    # Distances do not change with the centre, but norms become small, and rounding with them.
    centre = y.mean(0)
    b = y - centre
    inside = [_within(part, part - centre, y, b, radii) for part in x.split(_ROWS)]
    return torch.cat([torch.empty(0, len(y), dtype=torch.bool), *inside])


def _within(x: Tensor, a: Tensor, y: Tensor, b: Tensor, radii: Tensor) -> Tensor:
    a_norm, b_norm = a.norm(dim=1)[:, None], b.norm(dim=1)
    beyond = a_norm.square() + b_norm.square() - 2 * a @ b.T - radii
    # Sums of d + 2 products, of coordinates and radii that are rounded themselves (Higham 2002, section 3.1), twice.
    error = 2 * (x.shape[1] + 10) * torch.finfo(x.dtype).eps * (a_norm + b_norm).square()
    inside: Tensor = beyond < 0
    row, column = (beyond.abs() <= error).nonzero(as_tuple=True)
    size = max(1, _NUMBERS // max(1, x.shape[1]))
    for i, j in zip(row.split(size), column.split(size), strict=True):
        inside[i, j] = _squared_distances(x[i], y[j]) <= radii[j]
    return inside


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares: Tensor = (a - b).square()
    return squares.sum(dim=1)


class BallMetric(FeatureSetMetric):
    """What metrics of balls around images share. Their nulls are of halves, whose balls are larger than those of all.

    Args:
        embedding: What features are taken of.
        k: The neighbour that sets a ball's radius, at least 1.
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(self, embedding: str = "efficientnet_lite0", k: int = 3) -> None:
        super().__init__(embedding)
        if k < 1:
            raise InputError(f"{self.name}.k={k}", "set it to 1 or more")
        self.k = k

    def least(self, dimensions: int) -> int:
        """See `FeatureSetMetric`."""
        return self.k + 1


class Precision(BallMetric):
    """`precision` of features given in pieces."""

    name = "precision"
    plot_upper_bound = 1.0

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return precision(generated, real, self.k)


class Recall(BallMetric):
    """`recall` of features given in pieces."""

    name = "recall"
    plot_upper_bound = 1.0

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return recall(generated, real, self.k)
