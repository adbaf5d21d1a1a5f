"""A searcher's allowance of distinct schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envs.evaluators.base import Evaluation, Evaluator
from envs.task import Schedule
from rewards.errors import InputError


class BudgetSpent(Exception):
    """A schedule was asked for that the budget has no room for: the search is over."""


class BudgetedEvaluator:
    """Answers for at most ``limit`` distinct schedules; repeats are free.

    Put it around the store, not inside: a schedule counts whether or not somebody has paid for it before, so that a
    resumed run is the same run, and searchers that follow one another are compared on equal terms.

    Args:
        inner: What evaluates.
        limit: Distinct schedules, at least 1.

    Raises:
        InputError: If ``limit`` is below 1.
    """

    def __init__(self, inner: Evaluator, limit: int) -> None:
        if limit < 1:
            raise InputError(f"budget.evaluations={limit}", "set it to 1 or more")
        self.inner, self.limit = inner, limit
        self._granted: dict[Schedule, None] = {}

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles."""
        return self.inner.groups

    @property
    def remaining(self) -> int:
        """How many new schedules may still be asked for."""
        return self.limit - len(self._granted)

    @property
    def granted(self) -> tuple[Schedule, ...]:
        """The distinct schedules in the order in which they were asked for, whenever their answers come."""
        return tuple(self._granted)

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`.

        Raises:
            BudgetSpent: After everything that the budget had room for, taken in order, was yielded.
        """
        granted = []
        for index, schedule in enumerate(schedules):
            if self.remaining:
                self._granted.setdefault(schedule)
            if schedule in self._granted:
                granted.append(index)
        for position, evaluation in self.inner.evaluate_iter([schedules[index] for index in granted]):
            yield granted[position], evaluation
        if len(granted) < len(schedules):
            raise BudgetSpent(f"all {self.limit} distinct evaluations are spent")

    def close(self) -> None:
        """Closes ``inner``."""
        self.inner.close()
