"""The rule that ends a fine-tune at a memorization threshold."""

from __future__ import annotations

from collections.abc import Mapping

from agents.finetuning.settings import StopSettings
from rewards.errors import InputError
from rewards.measurement import Measurement


class StopRule:
    """Says whether a validated model is still within the limit.

    Args:
        settings: The metric and its limit.
        nulls: Of the metrics, on held-out images.

    Raises:
        InputError: If no limit is given and the metric has no null to be compared with.
    """

    def __init__(self, settings: StopSettings, nulls: Mapping[str, float | None]) -> None:
        self.metric, self._limit = settings.metric, settings.limit
        if self.metric is not None and self._limit is None and nulls[self.metric] is None:
            raise InputError(f"stop.metric={self.metric} has no null here", "set stop.limit")

    def broken(self, metrics: Mapping[str, Measurement]) -> bool:
        """True if the metric is worse than the limit.

        Raises:
            InputError: If the metric could not be measured: a rule that sees nothing is not kept.
        """
        if self.metric is None:
            return False
        measured = metrics[self.metric]
        if measured.value is None:
            raise InputError(f"stop.metric={self.metric} cannot be measured: {measured.note}", "choose another metric")
        if self._limit is None:
            return worse_than_null(measured)
        return _worse(measured, measured.value, self._limit)

    @property
    def words(self) -> str:
        """The rule for people."""
        if self.metric is None:
            return "none"
        bound = "its 95 % interval beyond its null" if self._limit is None else f"limit {self._limit:g}"
        return f"{self.metric}, {bound}"


def worse_than_null(measured: Measurement) -> bool:
    """True if the whole 95 % interval, or the value where there is none, is worse than what held-out images score."""
    if measured.value is None or measured.null is None:
        return False
    best = measured.low if not measured.higher_is_better else measured.high
    return _worse(measured, measured.value if best is None else best, measured.null)


def _worse(measured: Measurement, value: float, limit: float) -> bool:
    return value < limit if measured.higher_is_better else value > limit
