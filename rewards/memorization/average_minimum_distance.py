"""Average minimum distance: how far generated images are from the training set, in the mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.alignment import ALIGNED_PIXELS
from rewards.calibration import bootstrap_mean
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


def average_minimum_distance(distances: Tensor) -> Estimate:
    """Mean distance to the nearest training image, with a bootstrap interval over the images.

    MemControl (Dutt et al. 2024, arXiv:2405.19458) uses it as its measure of memorization. A mean hides a few copies
    among many others; see it beside `copy_rate`.

    Args:
        distances: Float ``(n,)``, n > 1: from each generated image to its nearest training image.
    """
    return bootstrap_mean(distances)


class AverageMinimumDistance(RewardMetric):
    """`average_minimum_distance` of distances given in pieces.

    Args:
        distance: What is measured: an embedding's name, or ``aligned_pixels``.

    Example:
        >>> import torch
        >>> metric = AverageMinimumDistance("pixels")
        >>> metric.update(torch.tensor([0.1, 0.3]))
        >>> metric.compute()
        tensor(0.2000)
    """

    name = "average_minimum_distance"
    higher_is_better = True
    plot_lower_bound = 0.0

    nearest: list[Tensor]

    def __init__(self, distance: str = ALIGNED_PIXELS) -> None:
        super().__init__(distances=[distance])
        self.add_state("nearest", default=[], dist_reduce_fx="cat")

    def update(self, distances: Tensor) -> None:
        """Adds distances ``(n,)`` of generated images to their nearest training images."""
        self.nearest.append(distances)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(average_minimum_distance(dim_zero_cat(self.nearest)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        return f"needs 2 generated images, got {sample.size}" if sample.size < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return average_minimum_distance(sample.neighbors[self.distances[0]].distances[:, 0])

    def null(self, reference: Reference) -> float:
        """See `RewardMetric`."""
        return float(reference.null_distances(self.distances[0]).mean())
