"""Statistics of few noisy runs, after Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.estimate import Estimate

Vector = NDArray[np.float64]
Draws = NDArray[np.intp]

_CONFIDENCE = 0.95


def iqm(scores: Vector) -> Vector:
    """The interquartile mean over the last axis: without the lowest and the highest quarter, rounded down."""
    cut = int(0.25 * scores.shape[-1])
    return np.asarray(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(axis=-1))


def draw_seeds(sources: Sequence[str], seeds: int, resamples: int, rng: np.random.Generator) -> Draws:
    """Which seeds each resample has, for a bootstrap that is stratified by data source.

    Runs of one seed on tables of one source share the searcher's seed, and what it learned from the other sources, so
    they are drawn together; drawing them one by one, as if independent, would give intervals that are too narrow.

    Args:
        sources: The data source of each table.
        seeds: How many there are.
        resamples: How many to draw.
        rng: Draws them.

    Returns:
        ``(resamples, tables, seeds)``, indices of seeds; equal for tables of one source.
    """
    strata = {source: rng.integers(seeds, size=(resamples, seeds)) for source in dict.fromkeys(sources)}
    return np.stack([strata[source] for source in sources], axis=1)


def iqm_estimate(scores: Vector, draws: Draws) -> Estimate:
    """The interquartile mean of all runs with its percentile bootstrap interval.

    Args:
        scores: ``(tables, seeds)`` or ``(tables, seeds, preferences)``.
        draws: By `draw_seeds`.
    """
    return _estimate(scores, draws, iqm)


def median_estimate(scores: Vector, draws: Draws) -> Estimate:
    """The median of all runs with its interval, for counts that are infinite where a run never got there.

    Args:
        scores: ``(tables, seeds)``.
        draws: By `draw_seeds`.
    """
    return _estimate(scores, draws, lambda runs: np.asarray(np.median(runs, axis=-1)))


def resampled_iqm(scores: Vector, draws: Draws) -> Vector:
    """The interquartile mean in every resample, for intervals of what is computed from several of them."""
    return iqm(_resampled(scores, draws))


def interval(value: float, resampled: Vector, n: int) -> Estimate:
    """A value with the percentile interval of its resamples.

    Args:
        value: From all runs.
        resampled: One a resample; may be infinite.
        n: How many runs it rests on.
    """
    tail = (1 - _CONFIDENCE) / 2
    # Between two infinite values there is nothing to interpolate.
    low, high = np.quantile(resampled, (tail, 1 - tail), method="inverted_cdf")
    return Estimate(value, float(low), float(high), n)


def probability_of_improvement(x: Vector, y: Vector, x_draws: Draws, y_draws: Draws) -> Estimate:
    """How likely a run of X is better than one of Y on the same table, on average over tables.

    Of each table (and preference) the Mann-Whitney statistic over all pairs of seeds, where ties count half.

    Args:
        x: ``(tables, seeds)`` or ``(tables, seeds, preferences)``.
        y: The same shape.
        x_draws: By `draw_seeds`.
        y_draws: Others than ``x_draws``: X and Y ran independently.
    """
    x, y = (scores.reshape(*scores.shape[:2], -1) for scores in (x, y))
    seeds = x.shape[1]
    first, second = x[:, :, None, :], y[:, None, :, :]
    wins = ((first > second) + 0.5 * (first == second)).mean(axis=-1)  # (tables, seeds of x, seeds of y)
    x_weights, y_weights = (_counts(draws, seeds) / seeds for draws in (x_draws, y_draws))
    resampled = np.einsum("rti,tij,rtj->rt", x_weights, wins, y_weights, optimize=True).mean(axis=1)
    return interval(float(wins.mean()), resampled, x.size)


def _counts(draws: Draws, seeds: int) -> Vector:
    return np.asarray((draws[..., None] == np.arange(seeds)).sum(axis=2), dtype=np.float64)


def _estimate(scores: Vector, draws: Draws, statistic: Callable[[Vector], Vector]) -> Estimate:
    return interval(float(statistic(scores.reshape(-1))), statistic(_resampled(scores, draws)), scores.size)


def _resampled(scores: Vector, draws: Draws) -> Vector:
    """``(resamples, runs)``."""
    tables = np.arange(scores.shape[0])[None, :, None]
    return scores[tables, draws].reshape(len(draws), -1)
