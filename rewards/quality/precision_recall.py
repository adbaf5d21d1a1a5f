"""Improved precision and recall: are generated images like real ones, and are all kinds of real ones among them?"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.calibration import wilson
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.neighbors import nearest_neighbors
from rewards.quality.feature_sets import FeatureSetMetric


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
    scale = support.shape[1] ** 0.5
    radii = nearest_neighbors(support, support, k=k, exclude_self=True).distances[:, -1] * scale
    distances = torch.cdist(points.double(), support.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return wilson(int((distances <= radii).any(dim=1).sum()), len(points))


class _ManifoldMetric(FeatureSetMetric):
    """What precision and recall share. Their nulls are of halves, whose balls are larger than those of all.

    Args:
        embedding: What features are taken of.
        k: The neighbour that sets a ball's radius, at least 1.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, embedding: str = "efficientnet_lite0", k: int = 3) -> None:
        super().__init__(embedding)
        if k < 1:
            raise InputError(f"{self.name}.k={k}", "set it to 1 or more")
        self.k = k

    def least(self, dimensions: int) -> int:
        """See `FeatureSetMetric`."""
        return self.k + 1


class Precision(_ManifoldMetric):
    """`precision` of features given in pieces."""

    name = "precision"

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return precision(generated, real, self.k)


class Recall(_ManifoldMetric):
    """`recall` of features given in pieces."""

    name = "recall"

    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """See `FeatureSetMetric`."""
        return recall(generated, real, self.k)
