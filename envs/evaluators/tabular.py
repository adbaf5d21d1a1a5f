"""Looks evaluations up in a table: microseconds, and the best mask is known exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envs.evaluators.base import Evaluation
from envs.evaluators.table import EvaluationTable
from envs.task import Schedule
from rewards.errors import InputError


class TabularEvaluator:
    """The evaluations of a table.

    Args:
        table: Where every mask was measured.
        seed: Which of the table's; None for the one that every mask has.

    Raises:
        InputError: By `evaluate_iter`, for a schedule that the table has not: one of several phases, or with a seed
            that not every mask has.
    """

    def __init__(self, table: EvaluationTable, seed: int | None = None) -> None:
        self.table = table
        self._seed = table.task.seed if seed is None else seed
        self._evaluations = table.evaluations[self._seed]

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles."""
        return self.table.task.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`."""
        for index, schedule in enumerate(schedules):
            if len(schedule.phases[0]) != len(self.groups):
                raise ValueError(f"schedule {schedule.key} has another length than the {len(self.groups)} groups")
            evaluation = self._evaluations.get(schedule)
            if evaluation is None:
                raise InputError(
                    f"the table has no schedule {schedule.key} with seed {self._seed}",
                    "set horizon=1, or evaluator=finetune",
                )
            yield index, evaluation

    def close(self) -> None:
        """Holds nothing."""
