"""Nearest ratio: the share of generated images far nearer to one training image than to any other."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import wilson
from rewards.estimate import Estimate
from rewards.metric import RewardMetric, check_setting
from rewards.neighbors import Neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def nearest_ratio(distances: Tensor, ratio: float = 1 / 3) -> Estimate:
    """The share of images with d1 / d2 below ``ratio``, with Wilson's interval.

    d1 and d2 are the distances to the two nearest training images. Gu et al. (TMLR 2025, arXiv:2310.02664) use
    1/3 on pixels, after Yoon et al. 2023. Copies of one training image have to count as one neighbour: otherwise
    d2 is as small as d1, and what was copied most looks least copied. An exact copy (d1 = 0) counts whatever d2 is, for
    where d2 is 0 too there is a copy among the training images that nobody collapsed.

    Args:
        distances: Float ``(n, k)``, n > 0, k > 1: to the nearest distinct training images, nearest first.
        ratio: Above 0 and below 1.
    """
    first, second = distances[:, 0].double(), distances[:, 1].double()
    memorized = (first < ratio * second) | (first == 0)
    return wilson(int(memorized.sum()), len(memorized))


class NearestRatio(RewardMetric):
    """`nearest_ratio` of distances given in pieces. Its null is the same share of held-out images.

    Args:
        distance: What is measured: an embedding's name. ``aligned_pixels`` knows one neighbour only.
        ratio: Above 0 and below 1.

    Example:
        >>> import torch
        >>> metric = NearestRatio()
        >>> metric.update(torch.tensor([[0.1, 0.4], [0.2, 0.4]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    name = "nearest_ratio"
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    nearest: list[Tensor]

    def __init__(self, distance: str = "pixels", ratio: float = 1 / 3) -> None:
        super().__init__(distances=[distance])
        check_setting("nearest_ratio.ratio", ratio, 0, 1)
        self.ratio = ratio
        self.add_state("nearest", default=[], dist_reduce_fx="cat")

    def neighbors(self, distinct: int) -> int:
        """See `RewardMetric`."""
        return 2

    def update(self, distances: Tensor) -> None:
        """Adds distances ``(n, 2)`` of generated images to the two nearest distinct training images."""
        self.nearest.append(distances)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(nearest_ratio(dim_zero_cat(self.nearest), self.ratio).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        found = _count(sample.neighbors[self.distances[0]])
        return f"needs the 2 nearest distinct training images, got {found}" if found < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return nearest_ratio(sample.neighbors[self.distances[0]].distances, self.ratio)

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        found = reference.judge_neighbors[self.distances[0]]
        return nearest_ratio(found.distances, self.ratio).value if _count(found) > 1 else None


def _count(found: Neighbors) -> int:
    return found.distances.shape[1]
