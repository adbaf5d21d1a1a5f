"""Improved precision and recall: are generated images like real ones, and are all kinds of real ones among them?"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import halves, wilson
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.neighbors import nearest_neighbors
from rewards.reference import Reference
from rewards.sample import Sample


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


class _ManifoldMetric(RewardMetric):
    """What precision and recall share: features given in pieces.

    Args:
        embedding: What features are taken of.
        k: The neighbour that sets a ball's radius, at least 1.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    generated: list[Tensor]
    real: list[Tensor]

    def __init__(self, embedding: str = "efficientnet_lite0", k: int = 3) -> None:
        super().__init__([embedding])
        if k < 1:
            raise InputError(f"{self.name}.k={k}", "set it to 1 or more")
        self.k = k
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        self.add_state("real", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features ``(n, d)`` of real or of generated images."""
        (self.real if real else self.generated).append(features)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(self._estimate(dim_zero_cat(self.generated), dim_zero_cat(self.real)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        sizes = sample.size, sample.reference.judge_size
        need = self.k + 1
        return f"needs {need} generated and {need} real images, got {sizes}" if min(sizes) < need else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        name = self.embeddings[0]
        return self._estimate(sample.features[name], sample.reference.judge[name])

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        if reference.judge_size // 2 <= self.k:
            return None
        return self._estimate(*halves(reference.judge[self.embeddings[0]])).value

    @abstractmethod
    def _estimate(self, generated: Tensor, real: Tensor) -> Estimate: ...


class Precision(_ManifoldMetric):
    """`precision`; its null is that of one half of the judge's images in the manifold of the other."""

    name = "precision"

    def _estimate(self, generated: Tensor, real: Tensor) -> Estimate:
        return precision(generated, real, self.k)


class Recall(_ManifoldMetric):
    """`recall`; its null is that of one half of the judge's images in the manifold of the other."""

    name = "recall"

    def _estimate(self, generated: Tensor, real: Tensor) -> Estimate:
        return recall(generated, real, self.k)
