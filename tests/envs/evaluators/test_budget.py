from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.evaluators.base import evaluate_many
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from rewards.errors import InputError
from tests.envs.evaluators.fakes import Counting, schedules

A, B, C, D = schedules(4)


def test_repeats_are_free_and_the_rest_of_the_budget_is_used_before_it_raises() -> None:
    inner = Counting()
    budgeted = BudgetedEvaluator(inner, 3)
    evaluate_many(budgeted, [A, A, B])
    assert budgeted.remaining == 1
    evaluate_many(budgeted, [B, A])
    answers = budgeted.evaluate_iter([A, C, D, C])
    first = {index: evaluation.schedule for index, evaluation in itertools.islice(answers, 3)}
    assert first == {0: A, 1: C, 3: C}
    with pytest.raises(BudgetSpent):
        next(answers)
    assert D not in inner.asked
    assert budgeted.remaining == 0
    evaluate_many(budgeted, [A, B, C])
    with pytest.raises(BudgetSpent):
        evaluate_many(budgeted, [D])
    assert budgeted.granted == (A, B, C)


@given(st.lists(st.lists(st.integers(0, 15), max_size=6), max_size=8), st.integers(1, 6))
def test_what_is_granted_does_not_depend_on_how_requests_are_grouped(calls: list[list[int]], limit: int) -> None:
    every = schedules(16)
    budgeted = BudgetedEvaluator(Counting(), limit)
    answered = []
    for call in calls:
        got = {}
        try:
            for index, evaluation in budgeted.evaluate_iter([every[n] for n in call]):
                got[index] = evaluation.schedule
        except BudgetSpent:
            pass
        answered += [got[index] for index in sorted(got)]
    first_asked = list(dict.fromkeys(n for call in calls for n in call))[:limit]
    assert answered == [every[n] for call in calls for n in call if n in first_asked]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_budget_below_one_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"budget.evaluations={limit} "):
        BudgetedEvaluator(Counting(), limit)


def test_close_reaches_the_inner_evaluator() -> None:
    inner = Counting()
    BudgetedEvaluator(inner, 1).close()
    assert inner.closed == 1
