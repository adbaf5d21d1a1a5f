"""Inversion of named images as metrics: how many a model gives back, and how easily. See `rewards.inversion`."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import CONFIDENCE, wilson
from rewards.estimate import Estimate
from rewards.evidence import Inversions
from rewards.measurement import Measurement
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


def censored_median(values: Tensor) -> Estimate:
    """The median where infinity stands for "beyond the budget", with the interval between two order statistics.

    Of sorted values the j-th smallest and the j-th largest enclose the median with probability
    1 - 2 P(B < j), B binomial(n, 1/2), whatever the distribution; j is the largest for which that is 95 % or more. An
    end that is censored, or for which there are too few values, is None.

    Args:
        values: ``(n,)``, n > 0, not NaN.

    Returns:
        The value is infinite if the median is censored.
    """
    ordered = values.double().sort().values
    n = len(ordered)
    median = float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    j = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    if j and stats.binom.cdf(j - 1, n, 0.5) > (1 - CONFIDENCE) / 2:
        j -= 1
    if not j:
        return Estimate(median, None, None, n)
    low, high = (float(x) if x.isfinite() else None for x in (ordered[j - 1], ordered[n - j]))
    return Estimate(median, low, high, n)


def inversion_share(values: Tensor) -> Estimate:
    """The share of finite values, of images that were found, with Wilson's interval; ``(n,)``, n > 0."""
    return wilson(int(values.isfinite().sum()), len(values))


class _InversionMetric(RewardMetric):
    """What the two metrics share: values given in pieces, and a null that comes with the evidence.

    Only a model can be inverted, so real images alone give no null. That of the same model on held-out images does.
    """

    needs = frozenset({"inversions"})
    plot_lower_bound = 0.0

    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Adds values ``(n,)`` of training images, infinity for those that were not found."""
        self.values.append(values)

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(self._estimate(dim_zero_cat(self.values)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        return "" if len(_inversions(sample).train) else "no training image was tried"

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return self._estimate(_inversions(sample).train)

    def null(self, reference: Reference) -> None:
        """See `RewardMetric`."""
        return None

    def measure(self, sample: Sample) -> Measurement:
        """See `RewardMetric`; the null is that of held-out images, None if none was tried or it is censored."""
        measurement = super().measure(sample)
        inversions = sample.evidence.inversions
        if inversions is None or not len(inversions.heldout):
            return measurement
        null = self._estimate(inversions.heldout).value
        return replace(measurement, null=null if math.isfinite(null) else None)

    @abstractmethod
    def _estimate(self, values: Tensor) -> Estimate: ...


class Inversion(_InversionMetric):
    """`censored_median` of the training images' divergences: the larger, the less likely the model gives one away.

    No value if half of them or more were not found within the budget; `InversionSuccess` then says more.

    Example:
        >>> import torch
        >>> metric = Inversion()
        >>> metric.update(torch.tensor([0.25, torch.inf, 0.5]))
        >>> metric.compute()
        tensor(0.5000)
    """

    name = "inversion"
    higher_is_better = True

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        if note := super().shortfall(sample):
            return note
        values = _inversions(sample).train
        if math.isfinite(censored_median(values).value):
            return ""
        return f"inverted {int(values.isfinite().sum())} of {len(values)}: the median is beyond the budget"

    def _estimate(self, values: Tensor) -> Estimate:
        return censored_median(values)


class InversionSuccess(_InversionMetric):
    """`inversion_share` of the training images; its null is the share of held-out images.

    Example:
        >>> import torch
        >>> metric = InversionSuccess()
        >>> metric.update(torch.tensor([0.25, torch.inf]))
        >>> metric.compute()
        tensor(0.5000)
    """

    name = "inversion_success"
    higher_is_better = False
    plot_upper_bound = 1.0

    def _estimate(self, values: Tensor) -> Estimate:
        return inversion_share(values)


def _inversions(sample: Sample) -> Inversions:
    inversions = sample.evidence.inversions
    assert inversions is not None
    return inversions
