"""A closed form in place of fine-tuning, for tests of everything around an evaluator.

**Every number here is invented.** Nothing is trained or measured, and no result may rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from envs.evaluators.base import Evaluation
from envs.task import Mask, Schedule
from rewards.measurement import Measurement


class SyntheticEvaluator:
    """Invented metrics with the shape of the real trade-off, in microseconds. For tests, ``check_env`` and CI only.

    A mask drives learning by u, the sum of its groups' gains, and memorization by v, the sum of their leaks; each pair
    of neighbours that is on together adds a term of its own to both (of either sign to u, positive to v). A schedule of
    several phases has the mean u and v of its phases. Then ``kid = 0.03 + 0.27 exp(-3 u)``, which saturates, and
    ``membership = 1 - exp(-1.5 v^2) / 2``, which grows from 1/2 ever faster at first: for any preference well inside
    (0, 1), neither all groups nor none are best.

    Args:
        groups: Names of the toggles, at least one.
        seed: Draws gains, leaks and parameter counts.
        failures: Reasons by schedule, of schedules that are to fail.
    """

    def __init__(self, groups: Sequence[str], seed: int = 0, failures: Mapping[Schedule, str] | None = None) -> None:
        if not groups:
            raise ValueError("a synthetic evaluator needs at least one group")
        self._groups = tuple(groups)
        self._failures = dict(failures or {})
        rng = np.random.default_rng(seed)
        n = len(groups)
        self._gain = (rng.uniform(0.5, 1.5, n) / n).tolist()
        self._leak = (rng.uniform(0.3, 1.3, n) / n).tolist()
        self._pair_gain = (rng.uniform(-0.4, 0.4, n - 1) / n).tolist()
        self._pair_leak = (rng.uniform(0.0, 0.4, n - 1) / n).tolist()
        self.parameters: tuple[int, ...] = tuple(rng.integers(1_000, 100_000, n).tolist())

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles."""
        return self._groups

    def evaluate(self, schedule: Schedule) -> Evaluation:
        """The invented evaluation of one schedule."""
        if len(schedule.phases[0]) != len(self._groups):
            raise ValueError(f"schedule {schedule.key} has another length than the {len(self._groups)} groups")
        if schedule in self._failures:
            return Evaluation(schedule, failure=self._failures[schedule])
        drives = [self._drives(mask) for mask in schedule.phases]
        u = sum(drive for drive, _ in drives) / len(drives)
        v = sum(drive for _, drive in drives) / len(drives)
        return Evaluation(
            schedule,
            metrics={
                "kid": _lower_is_better(0.03 + 0.27 * math.exp(-3 * u), null=0.0),
                "membership": _lower_is_better(1 - math.exp(-1.5 * v**2) / 2, null=0.5),
            },
            trainable_parameters=sum(
                count for count, *bits in zip(self.parameters, *schedule.phases, strict=True) if any(bits)
            ),
            total_parameters=sum(self.parameters),
        )

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`."""
        for index, schedule in enumerate(schedules):
            yield index, self.evaluate(schedule)

    def close(self) -> None:
        """Holds nothing."""

    def _drives(self, mask: Mask) -> tuple[float, float]:
        """(u, v) of one mask. In plain Python, whose order of summation does not depend on a batch or on the CPU."""
        u = v = 0.0
        for i, on in enumerate(mask):
            if on:
                u += self._gain[i]
                v += self._leak[i]
                if i and mask[i - 1]:
                    u += self._pair_gain[i - 1]
                    v += self._pair_leak[i - 1]
        return u, v


def _lower_is_better(value: float, null: float) -> Measurement:
    return Measurement(value=value, null=null, low=None, high=None, n=0, higher_is_better=False)
