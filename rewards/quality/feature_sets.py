"""What metrics that compare the features of generated images with those of real ones have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import halves
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


class FeatureSetMetric(RewardMetric):
    """Compares generated images with the judge's: never with the training set, which a perfect copy would match.

    Its null is the same comparison of one half of the judge's images with the other.

    Args:
        embedding: What features are taken of.
    """

    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, embedding: str = "efficientnet_lite0") -> None:
        super().__init__([embedding])
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        self.add_state("real", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def compare(self, generated: Tensor, real: Tensor) -> Estimate:
        """The metric's pure function with this metric's settings, on features ``(n, d)`` and ``(m, d)``."""

    @abstractmethod
    def least(self, dimensions: int) -> int:
        """How many images each set needs at that many features."""

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features ``(n, d)`` of real or of generated images."""
        (self.real if real else self.generated).append(features)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(self.compare(dim_zero_cat(self.generated), dim_zero_cat(self.real)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        least, sizes = self.least(self._real(sample.reference).shape[1]), (sample.size, sample.reference.judge_size)
        return (
            f"needs {least} generated and {least} real images, got {sizes[0]} and {sizes[1]}"
            if min(sizes) < least
            else ""
        )

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return self.compare(sample.features[self.embeddings[0]], self._real(sample.reference))

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        real = self._real(reference)
        return self.compare(*halves(real)).value if len(real) // 2 >= self.least(real.shape[1]) else None

    def _real(self, reference: Reference) -> Tensor:
        return reference.judge[self.embeddings[0]]
