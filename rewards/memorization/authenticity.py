"""Authenticity: the share of generated images further from the training set than its own images are."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.alignment import ALIGNED_PIXELS
from rewards.calibration import wilson
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.neighbors import Neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def authenticity(distances: Tensor, spacings: Tensor) -> Estimate:
    """The share of images further from their nearest training image than that one is from its own nearest other one.

    Alaa et al. 2022 (arXiv:2102.08921), as a plain share with Wilson's interval. Real images of other
    patients do not reach 1, and how far they get depends on the number of training images: read it beside its null.
    An image exactly as far is not authentic, so that a copy of a training image that has a copy is none.

    Args:
        distances: Float ``(n,)``, n > 0: from each image to its nearest training image.
        spacings: Float ``(n,)``: from that training image to the nearest other distinct one.
    """
    authentic = distances.double() > spacings.double()
    return wilson(int(authentic.sum()), len(authentic))


class Authenticity(RewardMetric):
    """`authenticity` of distances given in pieces. Its null is the share of held-out images that are authentic.

    Args:
        distance: What is measured: an embedding's name, or ``aligned_pixels``.

    Example:
        >>> import torch
        >>> metric = Authenticity("pixels")
        >>> metric.update(torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.2]))
        >>> metric.compute()
        tensor(0.5000)
    """

    name = "authenticity"
    higher_is_better = True
    wants_train_neighbors = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    nearest: list[Tensor]
    around: list[Tensor]

    def __init__(self, distance: str = ALIGNED_PIXELS) -> None:
        super().__init__(distances=[distance])
        self.add_state("nearest", default=[], dist_reduce_fx="cat")
        self.add_state("around", default=[], dist_reduce_fx="cat")

    def update(self, distances: Tensor, spacings: Tensor) -> None:
        """Adds distances ``(n,)`` of generated images to their nearest training images, and those ones' to others."""
        self.nearest.append(distances)
        self.around.append(spacings)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(authenticity(dim_zero_cat(self.nearest), dim_zero_cat(self.around)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        distinct = sample.reference.distinct
        return "" if self._spaced(sample.reference) else f"needs 2 distinct training images, got {distinct}"

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return self._of(sample.neighbors[self.distances[0]], sample.reference)

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        found = reference.judge_neighbors[self.distances[0]]
        return self._of(found, reference).value if self._spaced(reference) else None

    def _spaced(self, reference: Reference) -> bool:
        return self.distances[0] in reference.train_neighbors

    def _of(self, found: Neighbors, reference: Reference) -> Estimate:
        spacings = reference.train_neighbors[self.distances[0]].distances[:, 0]
        return authenticity(found.distances[:, 0], spacings[found.indices[:, 0]])
