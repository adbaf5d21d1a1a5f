from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.comparison.goals import COPY_MASK, POLICY, RIVALS, SCRATCH, TPE, Verdict, verdicts
from agents.comparison.scores import Scores
from tests.agents.comparison.invented import Course, scores


def flat(value: float, spread: float = 0.0) -> Course:
    return lambda t, s, p: [value + spread * (s - 1.5)]


def rising(first: float, steps: int) -> Course:
    """Reaches everything after so many evaluations."""
    return lambda t, s, p: list(np.linspace(first, 1, steps))


def arriving(steps: int) -> Course:
    """Has nothing before it has everything."""
    return lambda t, s, p: [0.0] * (steps - 1) + [1.0]


def found(courses: dict[str, Course], preferences: Sequence[float | None] = (0.5, None)) -> dict[str, Verdict]:
    results: Scores = scores(courses, budget=128, preferences=preferences)
    return {verdict.goal: verdict for verdict in verdicts(results)}


def starting(verdict_by_goal: dict[str, Verdict], start: str) -> Verdict:
    (verdict,) = (verdict for goal, verdict in verdict_by_goal.items() if goal.startswith(start))
    return verdict


def test_nothing_is_claimed_of_searchers_that_did_not_run() -> None:
    verdicts = found({"random": flat(0.9)})
    assert {verdict.met for verdict in verdicts.values()} == {None}
    assert starting(verdicts, "Zero-shot: above").measured == "not measured: policy, copy_mask did not run"


def test_a_small_budget_measures_no_more_than_it_has() -> None:
    results = scores({POLICY: flat(1), TPE: flat(0)}, budget=128, budgets={TPE: 64})
    verdicts_of = {verdict.goal: verdict for verdict in verdicts(results)}
    assert starting(verdicts_of, "Zero-shot: at least what TPE").met
    assert starting(verdicts_of, "Few-shot: after 16").measured == (
        "not measured: the budgets have no 128 evaluations of tpe"
    )


@pytest.mark.parametrize(("value", "met"), [(0.94, False), (0.95, True), (0.99, True)])
def test_zero_shot_is_the_first_mask(value: float, met: bool) -> None:
    verdicts = found({POLICY: lambda t, s, p: [value, 1.0]})
    assert starting(verdicts, "Zero-shot on").met is met
    assert f"{value:.3f} [{value:.3f}, {value:.3f}]" in starting(verdicts, "Zero-shot on").measured


def test_above_copy_mask_is_above_its_interval() -> None:
    assert starting(found({POLICY: flat(0.9), COPY_MASK: flat(0.8)}), "Zero-shot: above").met
    assert starting(found({POLICY: flat(0.81), COPY_MASK: flat(0.8, 0.05)}), "Zero-shot: above").met is False
    assert starting(found({POLICY: flat(0.8), COPY_MASK: flat(0.8)}), "Zero-shot: above").met is False


def test_tpe_is_judged_at_64_and_128() -> None:
    tpe = [0.5] * 63 + [0.8] * 64 + [0.95]
    verdicts = found({POLICY: lambda t, s, p: [0.8] * 15 + [0.94], TPE: lambda t, s, p: tpe})
    assert starting(verdicts, "Zero-shot: at least what TPE").met
    assert starting(verdicts, "Few-shot: after 16").met is False
    assert "0.940 [0.940, 0.940], tpe 0.950" in starting(verdicts, "Few-shot: after 16").measured


@pytest.mark.parametrize(("steps", "met"), [(10, True), (11, False)])
def test_a_quarter_of_what_the_best_rival_needs(steps: int, met: bool) -> None:
    # 40 evaluations for the best one; it is not the first of the list.
    needs = dict(zip(RIVALS, (80, 40, 100, 60), strict=True))
    rivals = {name: arriving(n) for name, n in needs.items()}
    verdict = starting(found({SCRATCH: arriving(steps), **rivals}), "From scratch")
    assert verdict.met is met
    assert "tpe 40 [40, 40] evaluations" in verdict.measured


def test_runs_that_never_arrive_are_counted_as_such() -> None:
    never = {name: flat(0.5) for name in RIVALS}
    assert starting(found({SCRATCH: rising(0, 20), **never}), "From scratch").met
    assert starting(found({SCRATCH: rising(0, 40), **never}), "From scratch").met is False
    verdict = starting(found({SCRATCH: flat(0.5), **never}), "From scratch")
    assert verdict.met is False
    assert verdict.measured.startswith("not reached by most runs of dyna_ppo")


def test_few_shot_tells_its_gain() -> None:
    verdict = starting(found({POLICY: rising(0.5, 16)}), "Few-shot: never")
    assert verdict.met
    assert "the gain is 0.500 [0.500, 0.500]" in verdict.measured


def test_preferences_that_did_not_run() -> None:
    verdicts = found({POLICY: flat(1), SCRATCH: flat(1), **{name: flat(1) for name in RIVALS}}, preferences=[0.5])
    assert starting(verdicts, "From scratch").measured == "not measured: these preferences did not run"
    verdicts = found({POLICY: flat(1)}, preferences=[None])
    assert starting(verdicts, "Zero-shot on").met is None
