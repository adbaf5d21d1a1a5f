"""What makes a number believable: thresholds at a stated false-positive rate, quantiles in a null, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rewards.estimate import Estimate

CONFIDENCE = 0.95


class Threshold(NamedTuple):
    """Scores strictly below ``value`` are flagged.

    Attributes:
        value: One of the null scores.
        rate: The expected share of new held-out images that are flagged.
    """

    value: float
    rate: float


def threshold(null: Tensor, rate: float) -> Threshold:
    """The order statistic of held-out scores below which a new held-out image falls at no more than the given rate.

    With n null scores it is the k-th smallest, k = floor(rate (n + 1)): if the new image is exchangeable with them and
    scores are distinct, it is flagged with probability k / (n + 1) <= ``rate`` exactly (the rank argument of conformal
    prediction; NumPy's quantile methods would exceed the rate on small samples). With fewer than 1 / rate - 1 scores no
    threshold keeps the rate; the smallest score is taken, and ``Threshold.rate`` says what that costs: 1 / (n + 1).

    Args:
        null: ``(n,)``, n > 0; smaller is more suspicious.
        rate: In (0, 1).
    """
    n = len(null)
    k = max(1, math.floor(rate * (n + 1) + 1e-9))
    return Threshold(float(null.double().kthvalue(k).values), k / (n + 1))


def null_quantiles(distances: Tensor, null: Tensor) -> Tensor:
    """Where each distance stands among the null's, in [0, n / (n + 1)].

    Linear between (0, 0) and (i-th smallest null distance, i / (n + 1)): so a copy at distance 0 is at 0, and one far
    below every held-out image is told from one just below. Ties count as all of the tied.

    Args:
        distances: ``(m,)``, not negative.
        null: ``(n,)``, not negative.

    Returns:
        float64 ``(m,)``.
    """
    knots = np.concatenate([[0.0], np.sort(null.double().numpy())])
    return torch.from_numpy(np.interp(distances.double().numpy(), knots, np.arange(len(knots)) / len(knots)))


def leave_one_out_quantiles(null: Tensor) -> Tensor:
    """`null_quantiles` of each null distance among the others: float64 ``(n,)``, n > 1."""
    ordered, order = null.double().sort()
    position = torch.arange(len(null))
    rank = torch.searchsorted(ordered, ordered, right=True) - 1
    knots = torch.cat([ordered.new_zeros(1), ordered, ordered.new_full((1,), torch.inf)])
    below, above = torch.where(rank > position, ordered, knots[position]), knots[rank + 2]
    quantiles = (rank + (ordered - below) / (above - below)) / len(null)
    return quantiles[order.argsort()]


def wilson(flagged: int, n: int) -> Estimate:
    """A share with Wilson's score interval."""
    interval = stats.binomtest(flagged, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(flagged / n, float(interval.low), float(interval.high), n)


def bootstrap_mean(values: Tensor, *, seed: int = 0) -> Estimate:
    """A mean with its percentile bootstrap interval over the values, of 2000 resamples.

    Args:
        values: ``(n,)``, n > 1.
        seed: Of the resampling; the interval depends on it in the third digit.
    """
    sample = np.sort(values.double().numpy())
    result = stats.bootstrap(
        (sample,), np.mean, n_resamples=2000, confidence_level=CONFIDENCE, method="percentile", rng=seed
    )
    interval = result.confidence_interval
    return Estimate(float(sample.mean()), float(interval.low), float(interval.high), len(sample))


def normal(value: float, variance: float, n: int, *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """A value with the interval of a normal distribution of that variance, cut to ``[least, most]``."""
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * variance**0.5
    return Estimate(value, max(value - half, least), min(value + half, most), n)


def noise_floor(repeats: Sequence[Tensor]) -> Estimate:
    """How far one measurement of a selection is from another that differs in nothing but its seed.

    "A gain smaller than that is nothing." It is the standard deviation pooled over selections, each about its own mean:
    the root of the sum of squares over its f = sum(n_i - 1) degrees of freedom. The interval is exact for measurements
    of a normal distribution with one variance: f times the pooled variance over the quantiles of chi-square with f
    degrees of freedom.

    Args:
        repeats: One tensor ``(n_i,)`` a selection (mask): its measurements, one a seed. Those of a single seed say
            nothing of noise and are left out.

    Returns:
        In the unit of the measurements; 0 if all repeats agree; ``n`` counts the measurements used.

    Raises:
        ValueError: If no selection was measured twice, or a measurement is not finite.
    """
    # Less the first one, which changes no spread: equal repeats then have exactly none.
    repeated = [(group - group[0]).double() for group in repeats if len(group) > 1]
    if not repeated or not all(bool(group.isfinite().all()) for group in repeated):
        raise ValueError(
            f"the noise floor needs finite measurements of one selection for two seeds or more, got "
            f"{[len(group) for group in repeats]} a selection"
        )
    n = sum(len(group) for group in repeated)
    freedom = n - len(repeated)
    squares = sum(float((group - group.mean()).square().sum()) for group in repeated)
    low, high = (math.sqrt(squares / stats.chi2.ppf((1 + side * CONFIDENCE) / 2, freedom)) for side in (1, -1))
    return Estimate(math.sqrt(squares / freedom), low, high, n)


def halves(features: Tensor) -> tuple[Tensor, Tensor]:
    """Two disjoint halves of the rows, drawn with a fixed seed: real images against real images."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    middle = len(features) // 2
    return features[order[:middle]], features[order[middle:]]
