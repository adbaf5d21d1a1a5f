from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from envs.evaluators.base import Evaluation, evaluate_many
from envs.evaluators.cached import CachedEvaluator, Served
from envs.store import EvaluationStore
from envs.task import Schedule
from tests.envs.evaluators.fakes import TASK, Counting, schedules

A, B, C, D = schedules(4)
Counts = tuple[int, int, int, float]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EvaluationStore]:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        yield store


class Slow(Counting):
    """Claims a second for each evaluation, so that sums of seconds can be told."""

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        for index, evaluation in super().evaluate_iter(schedules):
            yield index, replace(evaluation, seconds=1.0)


def counts(cached: CachedEvaluator) -> Counts:
    return cached.distinct, cached.cached, cached.failed, cached.seconds


def test_nothing_is_evaluated_twice_and_all_is_stored_before_it_is_seen(store: EvaluationStore) -> None:
    inner = Slow()
    cached = CachedEvaluator(inner, store, TASK, "first")
    for served in cached.serve([A, B, A, C, B]):
        stored = store.get(TASK.evaluation_key(served.evaluation.schedule))
        assert stored is not None
        assert stored.evaluation == served.evaluation
        assert stored.run == "first"
    assert sorted(inner.asked) == [A, B, C]
    assert counts(cached) == (3, 2, 0, 3.0)
    evaluate_many(cached, [C, A])
    assert len(inner.asked) == 3
    assert counts(cached) == (3, 4, 0, 3.0)


def test_what_another_run_paid_for_is_a_hit(store: EvaluationStore) -> None:
    evaluate_many(CachedEvaluator(Slow(), store, TASK, "first"), [A, B])
    inner, answers = Slow(), list[Served]()
    cached = CachedEvaluator(inner, store, TASK, "second", record=answers.append)
    evaluate_many(cached, [A, C, A])
    assert inner.asked == [C]
    assert {served.index: served.hit for served in answers} == {0: True, 1: False, 2: True}
    assert counts(cached) == (2, 2, 0, 1.0)


def test_another_task_shares_nothing(store: EvaluationStore) -> None:
    evaluate_many(CachedEvaluator(Slow(), store, TASK, "first"), [A])
    inner = Slow()
    evaluate_many(CachedEvaluator(inner, store, replace(TASK, seed=1), "first"), [A])
    assert inner.asked == [A]


@pytest.mark.parametrize("kept", range(5))
def test_a_resumed_run_counts_like_an_uninterrupted_one(tmp_path: Path, kept: int) -> None:
    """Interrupted after any number of evaluations, the last call is repeated with what the store has."""
    requests = [[A, B, A], [C, B], [D, A]]
    failures = {B: "diverged: loss is nan", C: "killed by SIGKILL"}

    def whole(store: EvaluationStore) -> tuple[Counts, dict[tuple[int, int], tuple[Schedule, bool, str]]]:
        cached = CachedEvaluator(Slow(failures), store, TASK, "run")
        seen = {
            (call, served.index): (served.evaluation.schedule, served.hit, served.evaluation.failure)
            for call, wanted in enumerate(requests)
            for served in cached.serve(wanted)
        }
        return counts(cached), seen

    with EvaluationStore(tmp_path / "uninterrupted.sqlite") as store:
        evaluate_many(CachedEvaluator(Slow(), store, TASK, "earlier"), [D])
        expected = whole(store)
    assert expected[0] == (4, 4, 2, 3.0)
    with EvaluationStore(tmp_path / "interrupted.sqlite") as store:
        evaluate_many(CachedEvaluator(Slow(), store, TASK, "earlier"), [D])
        interrupted = CachedEvaluator(Slow(failures), store, TASK, "run")
        list(itertools.islice(interrupted.serve([A, B, C, D]), kept))
        assert whole(store) == expected


def test_a_lost_race_is_the_winners_evaluation_and_a_hit(store: EvaluationStore) -> None:
    theirs = CachedEvaluator(Slow(), store, TASK, "winner")

    class Overtaken(Slow):
        def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
            evaluate_many(theirs, schedules)
            yield from super().evaluate_iter(schedules)

    ours = CachedEvaluator(Overtaken(), store, TASK, "loser")
    assert [served.hit for served in ours.serve([A])] == [True]
    assert counts(ours) == (1, 1, 0, 0.0)


def test_only_a_final_failure_is_served_to_another_run(store: EvaluationStore) -> None:
    failures = {A: "diverged: loss is nan", B: "killed by SIGKILL", C: "error: OSError: disk full"}
    first = CachedEvaluator(Slow(failures), store, TASK, "first")
    evaluate_many(first, [A, B, C])
    assert first.failed == 3
    inner = Slow()
    second = CachedEvaluator(inner, store, TASK, "second")
    again = evaluate_many(second, [A, B, C])
    assert sorted(inner.asked) == [B, C]
    assert [e.failure for e in again] == [failures[A], "", ""]
    inner = Slow()
    assert [e.failure for e in evaluate_many(CachedEvaluator(inner, store, TASK, "first"), [A, B, C])] == list(
        failures.values()
    )
    assert not inner.asked


def test_an_evaluator_of_other_groups_is_refused(store: EvaluationStore) -> None:
    with pytest.raises(ValueError, match="toggles"):
        CachedEvaluator(Counting(), store, replace(TASK, groups=("a", "b")), "run")


def test_close_reaches_the_inner_evaluator_and_leaves_the_store_open(store: EvaluationStore) -> None:
    inner = Counting()
    CachedEvaluator(inner, store, TASK, "run").close()
    assert inner.closed == 1
    assert store.get("nothing") is None
