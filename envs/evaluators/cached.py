"""Pays for nothing twice: an evaluator behind the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from envs.evaluators.base import Evaluation, Evaluator
from envs.evaluators.failure import is_final
from envs.store import EvaluationStore, StoredEvaluation
from envs.task import Schedule, SelectionTask


@dataclass(frozen=True)
class Served:
    """The answer to one request.

    Attributes:
        index: Into the schedules of the call.
        evaluation: What the schedule led to.
        hit: True unless this run pays for it here: another run did, or this is a repeat.
    """

    index: int
    evaluation: Evaluation
    hit: bool


class CachedEvaluator:
    """Serves what the store has and computes the rest, each stored as it is finished and before anybody sees it.

    Counts do not depend on whether the process was interrupted: what this run id has paid for counts as paid when it is
    first asked for, also when a resumed process finds it in the store. A failure that is not final is served to the run
    that met it; another run makes its own attempt.

    Args:
        inner: What evaluates.
        store: Where evaluations are looked for and kept.
        task: What ``inner`` evaluates schedules of.
        run: Id of the run that pays.
        record: Called with every answer before it is yielded.
        paid: What the run has paid for elsewhere, and will: shared by evaluators of one task and one run, of which the
            first to ask pays.

    Attributes:
        distinct: Schedules asked for, each counted once.
        cached: Requests that were hits.
        failed: Distinct schedules that were answered with a failure.
        seconds: Sum over the evaluations that this run paid for.
    """

    def __init__(
        self,
        inner: Evaluator,
        store: EvaluationStore,
        task: SelectionTask,
        run: str,
        record: Callable[[Served], None] | None = None,
        paid: set[Schedule] | None = None,
    ) -> None:
        if inner.groups != task.groups:
            raise ValueError(f"the evaluator toggles {inner.groups}, the task {task.groups}")
        self.inner, self.store, self.task, self.run, self.record = inner, store, task, run, record
        self.distinct = self.cached = self.failed = 0
        self.seconds = 0.0
        self.paid: set[Schedule] = set() if paid is None else paid
        self._asked: set[Schedule] = set()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles."""
        return self.inner.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`; what is stored comes first."""
        for served in self.serve(schedules):
            yield served.index, served.evaluation

    def serve(self, schedules: Sequence[Schedule]) -> Iterator[Served]:
        """Like `evaluate_iter`, with provenance. A schedule that occurs several times is evaluated once."""
        wanted: dict[Schedule, list[int]] = {}
        for index, schedule in enumerate(schedules):
            wanted.setdefault(schedule, []).append(index)
        missing = []
        for schedule, indices in wanted.items():
            stored = self.store.get(self.task.evaluation_key(schedule), self.run)
            if stored is None or not (is_final(stored.evaluation.failure) or stored.run == self.run):
                missing.append(schedule)
            else:
                yield from self._answers(indices, stored)
        for position, evaluation in self.inner.evaluate_iter(missing):
            stored = self.store.put(self.task, evaluation, self.run)
            yield from self._answers(wanted[missing[position]], stored)

    def close(self) -> None:
        """Closes ``inner``; the store belongs to the caller."""
        self.inner.close()

    def _answers(self, indices: Sequence[int], stored: StoredEvaluation) -> Iterator[Served]:
        for index in indices:
            first = stored.evaluation.schedule not in self._asked
            schedule = stored.evaluation.schedule
            served = Served(index, stored.evaluation, hit=schedule in self.paid or stored.run != self.run)
            self._asked.add(schedule)
            self.paid.add(schedule)
            self.distinct += first
            self.cached += served.hit
            self.failed += first and bool(stored.evaluation.failure)
            self.seconds += 0.0 if served.hit else stored.evaluation.seconds
            if self.record is not None:
                self.record(served)
            yield served
