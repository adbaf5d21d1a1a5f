"""From evaluations to what the comparison of mitigations says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.mitigating.plan import ALL, NONE, subjects
from agents.mitigating.settings import FULL, MitigationsSettings
from agents.study.laboratory import Cell
from agents.study.rows import Interval, Row, Ruler, Vector, privacy_beyond
from envs.evaluators.base import Evaluation
from rewards.measurement import Measurement
from rewards.objective import Objective

BASE, EARLY = "base model", "early stop"


@dataclass(frozen=True)
class Gain:
    """What a row has beyond another, at equal gradient steps, over seeds.

    Attributes:
        quality: The difference on the quality axis.
        privacy: The difference on the privacy axis.
        metrics: The difference of each metric.
    """

    quality: Interval
    privacy: Interval
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class EnvAnalysis:
    """What was measured on one data set.

    Attributes:
        rows: Every subject with every mitigation that can act on it, and without any.
        early: Full fine-tuning stopped early, from the base model to the whole.
        nulls: Of each metric; None where there is none.
        gains: Of each row with a mitigation, beyond the same method and mask without one.
        copied: Of the chosen mask by other methods, without a mitigation, beyond that mask in full; by method.
        against_early: By how much the privacy of a row exceeds that of early stopping at no less quality.
        inverted: For rows whose images were inverted, by seed: ``inversion_success`` and ``inversion``.
    """

    rows: tuple[Row, ...]
    early: tuple[Row, ...]
    nulls: Mapping[str, float | None]
    gains: Mapping[tuple[str, str, str], Gain]
    copied: Mapping[str, Gain]
    against_early: Mapping[tuple[str, str, str], Interval]
    inverted: Mapping[tuple[str, str, str], Sequence[Mapping[str, Measurement]]]


def key_of(row: Row) -> tuple[str, str, str]:
    """Method, mask and mitigations."""
    return row.method, row.mask, row.mitigations


def analyse(
    settings: MitigationsSettings, found: Mapping[Cell, Evaluation], inverted: Mapping[Cell, Evaluation]
) -> EnvAnalysis:
    """Everything that the page says about one data set.

    Args:
        settings: Of the comparison.
        found: Evaluations of its cells; those that cannot be are missing.
        inverted: Of the cells whose images were inverted.

    Raises:
        InputError: If there are no axes: full fine-tuning is no better than the base model, or memorizes nothing.
    """
    steps = settings.inner.steps

    def of(method: str, mask: str, mitigations: str = "", after: int = steps) -> list[Evaluation]:
        wanted = (method, mask, mitigations, after)
        by_seed = {c.seed: e for c, e in found.items() if (c.method, c.mask, c.mitigations, c.steps) == wanted}
        return [by_seed[seed] for seed in settings.seeds if seed in by_seed]

    base, full = of(FULL, NONE), of(FULL, ALL)
    ruler = Ruler(Objective(tuple(settings.reward.quality), tuple(settings.reward.privacy)), base, full)
    rows = [
        ruler.row(method, mask, evaluations, mitigations)
        for method, mask in subjects(settings)
        for mitigations in ("", *settings.mitigations)
        if (evaluations := of(method, mask, mitigations))
    ]
    stops = [ruler.row(EARLY, str(n), of(FULL, ALL, after=n)) for n in sorted(settings.early_stops)]
    early = (ruler.row(BASE, "0", base), *stops, ruler.row(EARLY, str(steps), full))
    plain = {(row.method, row.mask): row for row in rows if not row.mitigations}
    return EnvAnalysis(
        tuple(rows),
        early,
        {name: measurement.null for name, measurement in full[0].metrics.items()},
        {key_of(row): gain(row, plain[row.method, row.mask]) for row in rows if row.mitigations},
        {method: gain(row, plain[FULL, mask]) for (method, mask), row in plain.items() if method != FULL},
        {key_of(row): Interval.over(privacy_beyond(row, early)) for row in rows if key_of(row) != (FULL, ALL, "")},
        _grouped(inverted),
    )


def gain(row: Row, plain: Row) -> Gain:
    """Of a row beyond another of the same seeds."""

    # The seeds are paired: both fine-tunes saw the same batches and were sampled from the same noise.
    def difference(axis: Vector, other: Vector) -> Interval:
        return Interval.over(axis - other)

    return Gain(
        difference(row.quality, plain.quality),
        difference(row.privacy, plain.privacy),
        {name: difference(values, plain.metrics[name]) for name, values in row.metrics.items()},
    )


def _grouped(inverted: Mapping[Cell, Evaluation]) -> dict[tuple[str, str, str], list[Mapping[str, Measurement]]]:
    found: dict[tuple[str, str, str], list[Mapping[str, Measurement]]] = {}
    for cell, evaluation in sorted(inverted.items(), key=lambda item: item[0].seed):
        found.setdefault((cell.method, cell.mask, cell.mitigations), []).append(evaluation.metrics)
    return found
