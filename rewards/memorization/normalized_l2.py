"""Normalized distance: how far generated images are from the training set, in units of how far it is around there."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import bootstrap_mean
from rewards.estimate import Estimate
from rewards.metric import RewardMetric, check_setting
from rewards.reference import Reference
from rewards.sample import Sample

_MOST = 50
"""The paper's number of neighbours, of 50 000 training images."""


def normalized_distances(distances: Tensor, alpha: float = 0.5) -> Tensor:
    """Distance to the nearest training image over ``alpha`` times the mean distance to the n nearest.

    Carlini et al. 2023 (arXiv:2301.13188, section 5). A distance alone calls every plain image a copy, since plain
    images are near to many; this one asks for a training image that is nearer than the others. As the nearest is among
    the n, none is above 1 / alpha; an image at 0 from all n is at 0. The lowest of these numbers are the copies.

    Args:
        distances: Float ``(m, n)``, n > 1: from each image to its n nearest distinct training images, nearest first.
        alpha: Above 0; of the paper: 1/2.

    Returns:
        float64 ``(m,)`` in [0, 1 / alpha].
    """
    first, mean = distances[:, 0].double(), distances.double().mean(1)
    # The mean of equal numbers can be rounded to less than them.
    return torch.where(mean > 0, (first / mean).clamp(max=1), first) / alpha


def normalized_l2(distances: Tensor, alpha: float = 0.5) -> Estimate:
    """Mean of `normalized_distances`, with a bootstrap interval over the images.

    A mean hides a few copies among many other images; see it beside `nearest_ratio` and `copy_rate`.

    Args:
        distances: Float ``(m, n)``, m > 1, n > 1: see `normalized_distances`.
        alpha: Above 0.
    """
    return bootstrap_mean(normalized_distances(distances, alpha))


class NormalizedL2(RewardMetric):
    """`normalized_l2` of distances given in pieces. Its null is the same mean over held-out images.

    It looks at the ceil(sqrt(t)) nearest of t distinct training images and never at more than the paper's 50: the n
    nearest are an image's surroundings only if they are few among all.

    Args:
        distance: What is measured: an embedding's name. ``aligned_pixels`` knows one neighbour only.
        alpha: Above 0.

    Example:
        >>> import torch
        >>> metric = NormalizedL2()
        >>> metric.update(torch.tensor([[0.1, 0.3], [0.2, 0.2]]))
        >>> metric.compute()
        tensor(1.5000)
    """

    name = "normalized_l2"
    higher_is_better = True
    plot_lower_bound = 0.0

    nearest: list[Tensor]

    def __init__(self, distance: str = "pixels", alpha: float = 0.5) -> None:
        super().__init__(distances=[distance])
        check_setting("normalized_l2.alpha", alpha, 0, math.inf)
        self.alpha = alpha
        self.add_state("nearest", default=[], dist_reduce_fx="cat")

    def neighbors(self, distinct: int) -> int:
        """See `RewardMetric`."""
        return min(_MOST, math.isqrt(max(distinct, 1) - 1) + 1)

    def update(self, distances: Tensor) -> None:
        """Adds distances ``(m, n)`` of generated images to the n nearest distinct training images."""
        self.nearest.append(distances)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(normalized_l2(dim_zero_cat(self.nearest), self.alpha).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        sizes = sample.size, self._nearest(sample.neighbors[self.distances[0]].distances, sample.reference).shape[1]
        if min(sizes) > 1:
            return ""
        return f"needs 2 generated images and their 2 nearest distinct training images, got {sizes[0]} and {sizes[1]}"

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        distances = sample.neighbors[self.distances[0]].distances
        return normalized_l2(self._nearest(distances, sample.reference), self.alpha)

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        nearest = self._nearest(reference.judge_neighbors[self.distances[0]].distances, reference)
        return float(normalized_distances(nearest, self.alpha).mean()) if nearest.shape[1] > 1 else None

    def _nearest(self, distances: Tensor, reference: Reference) -> Tensor:
        """Other metrics may have asked for more neighbours."""
        return distances[:, : self.neighbors(reference.distinct)]
