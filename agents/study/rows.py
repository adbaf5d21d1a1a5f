"""From evaluations with several seeds to axes and intervals, and the test against early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envs.evaluators.base import Evaluation
from rewards.measurement import Measurement
from rewards.objective import Objective, Scale

Vector = NDArray[np.float64]


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

    def text(self, digits: int = 2) -> str:
        """For example ``0.12 [0.03, 0.21]``."""
        values = (self.mean, self.low, self.high)
        mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in values)  # and no -0.00
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Row:
    """One way to fine-tune, over several seeds.

    Attributes:
        method: Of adaptation, or what stands in its place.
        mask: Its name, or the number of steps.
        share: Trainable parameters as a share of the base model's.
        quality: One a seed: 0 = the base model, 1 = full fine-tuning, both averaged over seeds. Unlike an `Objective`'s
            axes not clipped, so that rows better than full fine-tuning can be told apart.
        privacy: The same; 0 = full fine-tuning, 1 = held-out images.
        metrics: Values by metric, one a seed.
        seconds: Mean wall time of an evaluation.
        mitigations: Their names, joined by commas; empty for none.
        figures: Means over seeds of what mitigations report.
    """

    method: str
    mask: str
    share: float
    quality: Vector
    privacy: Vector
    metrics: Mapping[str, Vector]
    seconds: float
    mitigations: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


class Ruler:
    """Places evaluations between two anchors, each averaged over seeds.

    Args:
        objective: The axes.
        base: The base model's, one a seed.
        full: Full fine-tuning's, one a seed.

    Raises:
        InputError: If there are no axes: full fine-tuning is no better than the base model, or memorizes nothing.
    """

    def __init__(self, objective: Objective, base: Sequence[Evaluation], full: Sequence[Evaluation]) -> None:
        self._anchored = objective.anchor(_averaged(base), _averaged(full))

    def row(self, method: str, mask: str, evaluations: Sequence[Evaluation], mitigations: str = "") -> Row:
        """What evaluations of one thing, one a seed, came to."""
        first = evaluations[0]
        return Row(
            method,
            mask,
            first.trainable_share,
            _axis(evaluations, self._anchored.quality),
            _axis(evaluations, self._anchored.privacy),
            {name: _values(evaluations, name) for name in first.metrics},
            fmean(e.seconds for e in evaluations),
            mitigations,
            # By name: evaluations that were given away as a file come back in this order.
            {name: fmean(e.figures[name] for e in evaluations) for name in sorted(first.figures)},
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


def _axis(evaluations: Sequence[Evaluation], scales: Mapping[str, Scale]) -> Vector:
    positions = [(_values(evaluations, n) - scale.zero) / (scale.one - scale.zero) for n, scale in scales.items()]
    return np.asarray(np.mean(positions, axis=0))


def _values(evaluations: Sequence[Evaluation], name: str) -> Vector:
    values = [evaluation.metrics[name].value for evaluation in evaluations]
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _averaged(evaluations: Sequence[Evaluation]) -> dict[str, Measurement]:
    """The metrics of evaluations that differ in their seed, with the mean of their values."""
    return {
        name: replace(metric, value=None if np.isnan(mean := _values(evaluations, name).mean()) else float(mean))
        for name, metric in evaluations[0].metrics.items()
    }
