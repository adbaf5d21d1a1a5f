from __future__ import annotations

import dataclasses
import functools
import json
from typing import ClassVar

import pytest

from agents.comparison.trace import Trace, follow
from agents.search.base import SearchProblem
from agents.search.experience import anchored_at, experience_of, measured_axes, problem_of
from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetSpent
from envs.task import Schedule
from rewards.errors import InputError
from rewards.objective import Axes, Objective, hypervolume
from tests.agents.comparison.searchers import AllOn, Random, every_mask
from tests.agents.noisy import noisy_table
from tests.agents.tables import invented_table

OBJECTIVE = Objective()
TABLE = noisy_table()
MEASURED = measured_axes(TABLE, anchored_at(TABLE, OBJECTIVE))
followed = functools.partial(follow, objective=OBJECTIVE, foretold=MEASURED)


class Batches:
    """Asks for four masks at once, each twice, and for more than the budget has."""

    name: ClassVar[str] = "batches"

    def search(self, problem: SearchProblem, seed: int) -> None:
        masks = every_mask(problem.toggles)
        for start in range(0, len(masks), 4):
            problem.ask([*masks[start : start + 4]] * 2)


@pytest.mark.parametrize("preference", [0.25, 0.5, None])
def test_a_trace_says_what_was_best_so_far(preference: float | None) -> None:
    trace = followed(Random(), TABLE, preference=preference, budget=20, seed=3, searcher_seed=7)
    assert trace.key == (3, preference)
    assert len(set(trace.masks)) == len(trace.masks) == 20
    anchored = anchored_at(TABLE, OBJECTIVE)
    axes = [MEASURED[Schedule.from_key(key).phases[0]] for key in trace.masks]
    assert list(trace.quality) == pytest.approx([at.quality for at in axes], abs=1e-6)

    def worth(points: list[Axes]) -> float:
        if preference is None:
            return hypervolume(points)
        return max(anchored.utility(point, preference) for point in points)

    assert list(trace.best) == pytest.approx([worth(axes[: i + 1]) for i in range(20)], abs=1e-6)
    assert trace.limit == pytest.approx(worth(list(MEASURED.values())), abs=1e-6)
    assert trace.anchor == pytest.approx(worth([Axes(0, 1), Axes(1, 0)]), abs=1e-6)
    of_seed = TABLE.evaluations[TABLE.task.seed]
    assert trace.fine_tuning[-1] == pytest.approx(
        sum(of_seed[Schedule.from_key(k)].seconds for k in trace.masks), abs=0.1
    )
    assert list(trace.searching) == sorted(trace.searching)
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_what_is_foreseeable_is_the_utility_of_what_was_foretold_to_be_best() -> None:
    seen = followed(AllOn(), TABLE, preference=0.5, budget=1, seed=0, searcher_seed=0)
    assert seen.foreseeable == seen.limit, "of somebody who is told the measurements themselves"
    chosen = list(MEASURED)[21]
    foretold = {mask: Axes(1, 1) if mask == chosen else Axes(0, 0) for mask in MEASURED}
    misled = followed(AllOn(), TABLE, preference=0.5, budget=1, seed=0, searcher_seed=0, foretold=foretold)
    assert misled.foreseeable == pytest.approx(anchored_at(TABLE, OBJECTIVE).utility(MEASURED[chosen], 0.5), abs=1e-6)
    whole = followed(AllOn(), TABLE, preference=None, budget=1, seed=0, searcher_seed=0)
    assert whole.foreseeable is None


def test_repeats_count_once_and_the_budget_ends_the_search() -> None:
    trace = followed(Batches(), TABLE, preference=0.5, budget=10, seed=0, searcher_seed=0)
    assert trace.masks == tuple(f"{i:06b}" for i in range(10))


def test_a_searcher_may_stop_by_itself() -> None:
    trace = followed(AllOn(), TABLE, preference=0.5, budget=10, seed=0, searcher_seed=0)
    assert trace.masks == ("111111",)
    assert (trace.quality, trace.privacy) == ((1.0,), (0.0,))


def test_the_same_seed_gives_the_same_trace() -> None:
    first, again, other = (
        followed(Random(), TABLE, preference=0.5, budget=9, seed=0, searcher_seed=s) for s in (1, 1, 2)
    )
    assert dataclasses.replace(again, searching=first.searching) == first
    assert other.masks != first.masks


def test_what_failed_is_worth_nothing() -> None:
    of_seed = {**TABLE.evaluations[TABLE.task.seed]}
    for number in (1, 2):
        failed = Schedule.from_key(f"{number:06b}")
        of_seed[failed] = Evaluation(failed, failure="NaN loss", seconds=4.0)
    table = dataclasses.replace(TABLE, evaluations={**TABLE.evaluations, TABLE.task.seed: of_seed})

    class Failing:
        name: ClassVar[str] = "failing"

        def search(self, problem: SearchProblem, seed: int) -> None:
            problem.ask([Schedule.from_key(f"{i:06b}").phases[0] for i in (1, 2, 3)])

    trace = followed(Failing(), table, preference=0.5, budget=9, seed=0, searcher_seed=0)
    assert trace.quality[:2] == (None, None)
    assert trace.best[:2] == (0, 0)
    assert trace.best[2] > 0
    assert trace.fine_tuning[:2] == (4, 8)
    assert len(experience_of(table, OBJECTIVE).outcomes) == 62


def test_a_problem_shows_what_is_asked_for_and_no_more() -> None:
    problem = problem_of(TABLE, OBJECTIVE, 0.5, 2, frozen=(True, *[False] * 5))
    assert problem.free == (1, 2, 3, 4, 5)
    (outcome,) = problem.ask([problem.mask([1])])
    assert outcome.axes == experience_of(TABLE, OBJECTIVE).outcomes[problem.mask([1])]
    problem.ask([problem.mask([2])])
    with pytest.raises(BudgetSpent):
        problem.ask([problem.mask([3])])


def test_experience_has_every_mask_and_the_features() -> None:
    experience = experience_of(TABLE, OBJECTIVE)
    assert list(experience.outcomes) == every_mask(6)
    assert experience.outcomes[(False,) * 6] == (0, 1)
    assert experience.outcomes[(True,) * 6] == (1, 0)
    assert (experience.env, experience.task) == (TABLE.task.env, TABLE.task.id)
    assert experience.group_features.shape == (6, len(experience.group_feature_names))


def test_a_table_without_axes_is_named() -> None:
    table = invented_table()
    of_seed = table.evaluations[table.task.seed]
    full = Schedule.constant([True] * 6)
    base = dataclasses.replace(of_seed[Schedule.constant([False] * 6)], schedule=full)
    flat = dataclasses.replace(table, evaluations={**table.evaluations, table.task.seed: {**of_seed, full: base}})
    with pytest.raises(InputError, match=f"table of {table.task.env}, task {table.task.id}: full fine-tuning is no"):
        experience_of(flat, OBJECTIVE)
