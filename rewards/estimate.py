"""A number with its 95 % interval."""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """What a metric's pure function returns.

    Attributes:
        value: The metric.
        low: Lower end of its 95 % interval, or None.
        high: Upper end, or None.
        n: How many images the value rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int
