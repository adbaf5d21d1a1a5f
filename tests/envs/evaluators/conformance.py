"""What every evaluator promises. Run by `test_conformance.py` for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from envs.evaluators.base import Evaluation, Evaluator, evaluate_many
from envs.task import Schedule


def check_evaluator(make: Callable[[], Evaluator], schedules: list[Schedule], failing: Schedule, reason: str) -> None:
    """Fails if an evaluator breaks the promises of `Evaluator`.

    Args:
        make: Builds one without a past. It must know how to answer all that is asked for here.
        schedules: At least three distinct ones that succeed, some of which lead to different numbers.
        failing: One that fails.
        reason: What its failure must say.
    """
    everything = [*schedules, failing]
    with _closed_twice(make()) as evaluator:
        assert len(evaluator.groups) == len(failing.phases[0])
        assert list(evaluator.evaluate_iter([])) == []
        pairs = list(evaluator.evaluate_iter(everything))
        assert sorted(index for index, _ in pairs) == list(range(len(everything))), "each index once"
        first = {evaluation.schedule: evaluation for _, evaluation in pairs}
        assert all(evaluation.schedule == everything[index] for index, evaluation in pairs)
        assert first[failing].failure == reason
        assert not first[failing].metrics
        assert all(first[schedule].metrics and not first[schedule].failure for schedule in schedules)
        assert all(Evaluation.from_json(e.to_json()) == e for e in first.values()), "survives JSON"
        assert len({e.metrics["kid"] for e in first.values() if not e.failure}) > 1, "the schedule matters"

        _same(first, evaluate_many(evaluator, everything[::-1]), "another order, with a past")
        _same(first, evaluate_many(evaluator, [schedules[0], failing, schedules[0]]), "repeats in one call")
    with _closed_twice(make()) as evaluator:
        for schedule in everything[::-1]:
            _same(first, evaluate_many(evaluator, [schedule]), "alone, without a past")


@contextmanager
def _closed_twice(evaluator: Evaluator) -> Iterator[Evaluator]:
    try:
        yield evaluator
    finally:
        evaluator.close()
        evaluator.close()


def _same(first: dict[Schedule, Evaluation], again: list[Evaluation], where: str) -> None:
    for evaluation in again:
        assert evaluation.same_numbers(first[evaluation.schedule]), f"{evaluation.schedule.key} differs: {where}"
