"""From evaluations to what the comparison says: axes, intervals over seeds, and the test against early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agents.capacity.runs import Cell
from agents.capacity.settings import MethodsSettings
from envs.evaluators.base import Evaluation
from rewards.measurement import Measurement
from rewards.objective import Objective, Scale

Vector = NDArray[np.float64]

BASE, EARLY = "base model", "early stop"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Vector) -> Interval:
        """Of one value a seed."""
        mean = float(values.mean())
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        return cls(mean, mean - half, mean + half)

    @property
    def side(self) -> int:
        """1 if the interval lies above 0, -1 if below, 0 if it covers 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Row:
    """A method with a mask, or an early stop.

    Attributes:
        method: Of adaptation, or `EARLY`.
        mask: Its name, or the number of steps.
        share: Trainable parameters as a share of the base model's.
        quality: One a seed: 0 = the base model, 1 = full fine-tuning, both averaged over seeds. Unlike an `Objective`'s
            axes not clipped, so that rows better than full fine-tuning can be told apart.
        privacy: The same; 0 = full fine-tuning, 1 = held-out images.
        metrics: Values by metric, one a seed.
        seconds: Mean wall time of an evaluation.
    """

    method: str
    mask: str
    share: float
    quality: Vector
    privacy: Vector
    metrics: Mapping[str, Vector]
    seconds: float


@dataclass(frozen=True)
class EnvAnalysis:
    """What was measured on one data set.

    Attributes:
        rows: Every method with every mask.
        early: Early stops of full fine-tuning, from the base model (no step) to the whole.
        nulls: Of each metric; None where there is none.
        share_privacy: Spearman's rank correlation between share and privacy over the rows that learn, with the 95 %
            interval of a bootstrap over rows.
        share_quality: The same for quality.
        against_early: For each row that learns less than everything, by how much its privacy exceeds that of early
            stopping at no less quality, one value a seed, see `privacy_beyond`.
    """

    rows: tuple[Row, ...]
    early: tuple[Row, ...]
    nulls: Mapping[str, float | None]
    share_privacy: Interval
    share_quality: Interval
    against_early: Mapping[tuple[str, str], Vector]


def analyse(settings: MethodsSettings, found: Mapping[Cell, Evaluation]) -> EnvAnalysis:
    """Everything that the page says about one data set.

    Raises:
        InputError: If there are no axes: full fine-tuning is no better than the base model, or memorizes nothing.
    """
    masks = {text: name for name, text in settings.masks.items()}
    everything, nothing = masks["all"], masks["none"]

    def of(method: str, mask: str, steps: int) -> list[Evaluation]:
        by_seed = {c.seed: e for c, e in found.items() if (c.method, c.mask, c.steps) == (method, mask, steps)}
        return [by_seed[seed] for seed in settings.seeds]

    steps = settings.inner.steps
    base, full = of("full", nothing, steps), of("full", everything, steps)
    objective = Objective(tuple(settings.reward.quality), tuple(settings.reward.privacy))
    anchored = objective.anchor(_averaged(base), _averaged(full))

    def axis(evaluations: Sequence[Evaluation], scales: Mapping[str, Scale]) -> Vector:
        positions = [(_values(evaluations, n) - scale.zero) / (scale.one - scale.zero) for n, scale in scales.items()]
        return np.asarray(np.mean(positions, axis=0))

    def row(method: str, mask: str, evaluations: Sequence[Evaluation]) -> Row:
        return Row(
            method,
            mask,
            evaluations[0].trainable_share,
            axis(evaluations, anchored.quality),
            axis(evaluations, anchored.privacy),
            {name: _values(evaluations, name) for name in settings.metrics},
            fmean(e.seconds for e in evaluations),
        )

    rows = [row(method, mask, of(method, mask, steps)) for method in settings.methods for mask in settings.masks]
    stops = [row(EARLY, str(n), of("full", everything, n)) for n in sorted(settings.early_stops)]
    early = (row(BASE, "0", base), *stops, row(EARLY, str(steps), full))
    learning = [r for r in rows if r.mask != nothing]
    return EnvAnalysis(
        tuple(rows),
        early,
        {name: full[0].metrics[name].null for name in settings.metrics},
        rank_correlation([r.share for r in learning], [float(r.privacy.mean()) for r in learning]),
        rank_correlation([r.share for r in learning], [float(r.quality.mean()) for r in learning]),
        {(r.method, r.mask): privacy_beyond(r, early) for r in learning if (r.method, r.mask) != ("full", everything)},
    )


def privacy_beyond(row: Row, early: Sequence[Row]) -> Vector:
    """Privacy of a row minus the most private early stop of no less quality, seed by seed.

    Between two stops both axes are interpolated linearly. Where no stop is as good, the best of them stands in: the row
    then has more quality besides.

    Args:
        row: With one value a seed on both axes.
        early: Stops in the order of their steps, of the same seeds.
    """
    differences = []
    for seed, (quality, privacy) in enumerate(zip(row.quality, row.privacy, strict=True)):
        q, p = (np.asarray([getattr(stop, axis)[seed] for stop in early]) for axis in ("quality", "privacy"))
        fine = np.linspace(0, len(early) - 1, 100 * (len(early) - 1) + 1)
        path_q, path_p = (np.interp(fine, np.arange(len(early)), values) for values in (q, p))
        good = path_q >= quality
        rival = path_p[good].max() if good.any() else path_p[path_q.argmax()]
        differences.append(privacy - rival)
    return np.asarray(differences)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's rank correlation and the 95 % interval of a bootstrap over pairs (percentiles, 2000 resamples).

    Where one side is constant there are no ranks, and nothing is known: 0, from -1 to 1.
    """
    pairs = np.asarray([x, y])
    if not np.ptp(pairs, axis=1).all():
        return Interval(0, -1, 1)
    rng = np.random.default_rng(0)
    draws: list[float] = []
    while len(draws) < 2000:
        drawn = pairs[:, rng.integers(pairs.shape[1], size=pairs.shape[1])]
        if np.ptp(drawn, axis=1).all():
            draws.append(stats.spearmanr(*drawn).statistic)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(stats.spearmanr(*pairs).statistic), float(low), float(high))


def _values(evaluations: Sequence[Evaluation], name: str) -> Vector:
    values = [evaluation.metrics[name].value for evaluation in evaluations]
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _averaged(evaluations: Sequence[Evaluation]) -> dict[str, Measurement]:
    """The metrics of evaluations that differ in their seed, with the mean of their values."""
    return {
        name: replace(metric, value=None if np.isnan(mean := _values(evaluations, name).mean()) else float(mean))
        for name, metric in evaluations[0].metrics.items()
    }
