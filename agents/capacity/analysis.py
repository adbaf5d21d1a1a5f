"""From evaluations to what the comparison says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from agents.capacity.settings import MethodsSettings
from agents.study.laboratory import Cell
from agents.study.rows import Interval, Row, Ruler, Vector, privacy_beyond
from envs.evaluators.base import Evaluation
from rewards.objective import Objective

BASE, EARLY = "base model", "early stop"


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
    ruler = Ruler(Objective(tuple(settings.reward.quality), tuple(settings.reward.privacy)), base, full)

    rows = [ruler.row(method, mask, of(method, mask, steps)) for method in settings.methods for mask in settings.masks]
    stops = [ruler.row(EARLY, str(n), of("full", everything, n)) for n in sorted(settings.early_stops)]
    early = (ruler.row(BASE, "0", base), *stops, ruler.row(EARLY, str(steps), full))
    learning = [r for r in rows if r.mask != nothing]
    return EnvAnalysis(
        tuple(rows),
        early,
        {name: full[0].metrics[name].null for name in settings.metrics},
        rank_correlation([r.share for r in learning], [float(r.privacy.mean()) for r in learning]),
        rank_correlation([r.share for r in learning], [float(r.quality.mean()) for r in learning]),
        {(r.method, r.mask): privacy_beyond(r, early) for r in learning if (r.method, r.mask) != ("full", everything)},
    )


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
