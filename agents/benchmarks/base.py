"""What a benchmark finds, and how it takes time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Goal:
    """A promise about one figure.

    Attributes:
        figure: Its name.
        limit: The largest value that keeps the promise, or the smallest if ``at_least``.
        at_least: The direction.
    """

    figure: str
    limit: float
    at_least: bool = False

    def met(self, figures: Mapping[str, float]) -> bool:
        """True if the figure keeps the promise."""
        value = figures[self.figure]
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Finding:
    """Figures of one benchmark: medians over ``runs`` repetitions.

    Attributes:
        figures: By name, the unit at the end of the name.
        goals: What was promised about some of them.
        runs: Repetitions.
        notes: What was measured on.
    """

    figures: Mapping[str, float]
    goals: tuple[Goal, ...]
    runs: int
    notes: Mapping[str, Any] = field(default_factory=dict)


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, until every GPU has done what was asked of it."""
    _finish()
    started = time.perf_counter()
    action()
    _finish()
    return time.perf_counter() - started


def _finish() -> None:
    for i in range(torch.cuda.device_count()):
        torch.cuda.synchronize(i)


def paired(first: Callable[[], object], second: Callable[[], object], runs: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios first / second, taken pair by pair.

    The two take turns after a warm-up, so that a machine whose speed drifts moves both.
    """
    first()
    second()
    pairs = [(seconds(first), seconds(second)) for _ in range(runs)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs)
