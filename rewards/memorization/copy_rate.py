"""Copy rate: the share of generated images nearer to the training set than almost any real image is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.alignment import ALIGNED_PIXELS
from rewards.calibration import Threshold, leave_one_out_quantiles, null_quantiles, threshold, wilson
from rewards.estimate import Estimate
from rewards.metric import RewardMetric, check_setting
from rewards.reference import Reference
from rewards.sample import Sample

DETECTOR = ("pixels", "efficientnet_lite0", ALIGNED_PIXELS)
"""Distances of the default detector: each sees copies that the others miss."""


def copies(distances: Tensor, null_distances: Tensor, rate: float = 0.01) -> Tensor:
    """Which images are copies, as seen by any of several distances.

    An image's score is the smallest of its distances' quantiles in their nulls: pixels see noisy copies, features see
    other crops, aligned pixels see shifted ones. Taking the smallest of several makes small scores likelier, so the
    scores themselves are calibrated: the threshold is that of the held-out images' scores, each computed among the
    other held-out images. Scores of new images rest on one held-out image more, so that the stated rate is kept nearly,
    not exactly; docs/measurements.md has what 200 resplits of real images gave.

    Args:
        distances: Float ``(n, e)``: of each image to its nearest training image, in each of e distances.
        null_distances: Float ``(m, e)``, m > 1: the same of held-out images.
        rate: The share of held-out images that may be flagged; see `copy_threshold` for what few of them allow.

    Returns:
        bool ``(n,)``.
    """
    return copy_scores(distances, null_distances).amin(1) < copy_threshold(null_distances, rate).value


def copy_scores(distances: Tensor, null_distances: Tensor) -> Tensor:
    """Where each distance stands among the held-out ones, see `null_quantiles`: float64 ``(n, e)`` in [0, 1)."""
    columns = zip(distances.T, null_distances.T, strict=True)
    return torch.stack([null_quantiles(column, null) for column, null in columns], dim=1)


def copy_threshold(null_distances: Tensor, rate: float = 0.01) -> Threshold:
    """The score below which `copies` flags an image, and the share of new held-out images expected there."""
    return threshold(torch.stack([leave_one_out_quantiles(null) for null in null_distances.T]).amin(0), rate)


def copy_rate(distances: Tensor, null_distances: Tensor, rate: float = 0.01) -> Estimate:
    """The share of `copies`, with Wilson's interval."""
    flagged = copies(distances, null_distances, rate)
    return wilson(int(flagged.sum()), len(flagged))


class CopyRate(RewardMetric):
    """`copy_rate` of distances given in pieces.

    Its null is the rate that its threshold stands for: ``rate`` or a little less, more only when there are fewer than
    1 / rate - 1 held-out images.

    Args:
        distances: What is measured: embeddings' names, or ``aligned_pixels``.
        rate: False-positive rate on held-out images, above 0 and below 1.

    Example:
        >>> import torch
        >>> metric = CopyRate(["pixels"], rate=0.2)
        >>> metric.update(torch.tensor([[0.3], [0.4], [0.5], [0.6]]), heldout=True)
        >>> metric.update(torch.tensor([[0.0], [0.5]]), heldout=False)
        >>> metric.compute()
        tensor(0.5000)
    """

    name = "copy_rate"
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    generated: list[Tensor]
    heldout: list[Tensor]

    def __init__(self, distances: Sequence[str] = DETECTOR, rate: float = 0.01) -> None:
        super().__init__(distances=distances)
        check_setting("copy_rate.rate", rate, 0, 1)
        self.rate = rate
        self.add_state("generated", default=[], dist_reduce_fx="cat")
        self.add_state("heldout", default=[], dist_reduce_fx="cat")

    def update(self, distances: Tensor, heldout: bool) -> None:
        """Adds distances ``(n, e)`` to the nearest training images, of held-out or of generated images."""
        (self.heldout if heldout else self.generated).append(distances)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(copy_rate(dim_zero_cat(self.generated), dim_zero_cat(self.heldout), self.rate).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        judge = sample.reference.judge_size
        return f"needs 2 held-out images to calibrate on, got {judge}" if judge < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        distances = torch.stack([sample.neighbors[name].distances[:, 0] for name in self.distances], dim=1)
        return copy_rate(distances, self._null_distances(sample.reference), self.rate)

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        return copy_threshold(self._null_distances(reference), self.rate).rate if reference.judge_size > 1 else None

    def _null_distances(self, reference: Reference) -> Tensor:
        return torch.stack([reference.null_distances(name) for name in self.distances], dim=1)
