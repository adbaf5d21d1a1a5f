from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest

from agents.policy import selection_probabilities
from agents.practice import learner
from agents.practice.landscape import Landscape
from agents.practice.settings import PracticeSettings
from agents.search import VARIANTS, dyna_ppo, find_searcher, policy
from agents.search.base import SearchProblem
from agents.search.dyna_ppo import DynaPPO
from agents.search.policy import policy_of
from agents.search.random_search import RandomSearch
from agents.source_policy import SourcePolicy
from agents.surrogate.belief import Belief
from agents.surrogate.mixture import TaskBelief
from agents.surrogate.set_ensemble import SetEnsembleSettings
from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetedEvaluator
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.features import GROUP_FEATURES, TASK_FEATURES
from envs.task import Mask, Schedule
from rewards.errors import InputError
from tests.agents.search.problems import Invented

QUICK = PracticeSettings(environments=16, episodes=2, updates=4, epochs=2, width=24, cloning=60, blur=0.0)
ENSEMBLE = SetEnsembleSettings(members=1, width=16, steps=60)
SEARCHER = DynaPPO(rounds=QUICK, final=QUICK, draws=48, proposals=96)


@cache
def invented(toggles: int, seed: int) -> Invented:
    return Invented(toggles, seed)


@cache
def source(toggles: int = 6) -> SourcePolicy:
    experiences = tuple(invented(toggles, seed).experience(f"task {seed}") for seed in (11, 12, 13))
    practice = dataclasses.replace(QUICK, cloning=150)
    return SourcePolicy(experiences, practice=practice, ensemble=ENSEMBLE)


def problem_of(target: Invented, budget: int, **changes: object) -> SearchProblem:
    fields = {
        "evaluator": BudgetedEvaluator(target.evaluator, budget),
        "objective": target.objective,
        "group_features": target.group_features,
        "group_feature_names": GROUP_FEATURES,
        "task_features": target.task_features,
        "task_feature_names": TASK_FEATURES,
        "preference": 0.5,
    }
    return SearchProblem(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("preference", [0.3, 0.7])
def test_with_sources_the_first_mask_is_the_policys_own_choice(preference: float) -> None:
    target, searcher = invented(6, 0), dataclasses.replace(SEARCHER, source=source())
    asked = target.asked(searcher, seed=0, budget=3, preference=preference, parallel=2)
    p = selection_probabilities(source().network(0), target.group_features, target.task_features, preference)
    assert asked[0] == tuple(bool(each > 0.5) for each in p)
    assert len(asked) == 3


def test_the_choice_leaves_out_what_is_frozen() -> None:
    target, searcher = invented(6, 0), dataclasses.replace(SEARCHER, source=source())
    (first,) = target.asked(searcher, budget=1)
    toggle = first.index(True)
    (asked,) = target.asked(searcher, budget=1, frozen=tuple(i == toggle for i in range(6)))
    assert asked == tuple(on and i != toggle for i, on in enumerate(first))


@pytest.mark.parametrize(("preference", "first"), [(None, ()), (0.9, (0.9,))])
def test_what_it_chooses_at_other_preferences_comes_next(preference: float | None, first: tuple[float, ...]) -> None:
    target, searcher = invented(6, 0), dataclasses.replace(SEARCHER, source=source())
    features = target.group_features, target.task_features
    choices = [
        tuple(bool(p > 0.5) for p in selection_probabilities(source().network(0), *features, w))
        for w in (*first, 0.5, 0.25, 0.75)
    ]
    different = list(dict.fromkeys(choices))
    assert len(different) > 1 + len(first)
    assert target.asked(searcher, budget=len(different) + 2, preference=preference)[: len(different)] == different


@pytest.mark.parametrize("preference", [0.5, None])
def test_it_finds_more_than_random_search(preference: float | None) -> None:
    """At 24 of 256 masks, on average over six landscapes; random search may try five times on each."""
    mine, others = [], []
    for seed in range(6):
        target = invented(8, seed)
        mine.append(
            target.value(target.asked(SEARCHER, seed, budget=24, preference=preference, parallel=2), preference)
        )
        for draw in range(5):
            asked = target.asked(RandomSearch(), draw, budget=24, preference=preference)
            others.append(target.value(asked, preference))
    assert fmean(mine) > fmean(others) + 0.01


@pytest.mark.parametrize("preference", [0.5, None])
def test_from_scratch_each_toggle_is_measured_alone_first(preference: float | None) -> None:
    target, frozen = invented(6, 0), tuple(i == 4 for i in range(6))
    asked = target.asked(SEARCHER, budget=8, preference=preference, parallel=3, frozen=frozen)
    alone = {tuple(i == toggle for i in range(6)) for toggle in (0, 1, 2, 3, 5)}
    assert set(asked[:5]) == alone
    assert len(asked) == 8
    assert not set(asked[5:]) & alone
    # Where more is known the choices of a policy come first, and nothing else is put off.
    told = target.asked(dataclasses.replace(SEARCHER, source=source()), budget=8, preference=preference, frozen=frozen)
    assert not alone <= set(told)


def test_beyond_enumeration_the_policy_proposes() -> None:
    """Of 4096 masks, some of which must stay off."""
    mine, others = [], []
    frozen = tuple(i == 4 for i in range(12))
    for seed in range(3):
        target = invented(12, seed)
        asked = target.asked(SEARCHER, seed, budget=32, parallel=4, frozen=frozen)
        assert len(asked) == 32
        assert not any(mask[4] for mask in asked)
        mine.append(target.value(asked, 0.5))
        others += [target.value(target.asked(RandomSearch(), s, budget=32, frozen=frozen), 0.5) for s in range(5)]
    assert fmean(mine) > fmean(others) + 0.02


class OneByOne:
    """Answers in batches of which the last is cut short; remembers what it answered."""

    def __init__(self, inner: SyntheticEvaluator) -> None:
        self.inner, self.answered = inner, list[Mask]()

    @property
    def groups(self) -> tuple[str, ...]:
        return self.inner.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        self.answered += [schedule.phases[0] for schedule in schedules]
        yield from self.inner.evaluate_iter(schedules)

    def close(self) -> None:
        self.inner.close()


def test_what_a_batch_that_broke_off_has_answered_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 5, and four side by side: of the last two toggles, which come next, one alone is answered."""
    beliefs: list[Belief] = []
    init = Belief.__init__

    def kept(self: Belief, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)  # type: ignore[arg-type]
        beliefs.append(self)

    monkeypatch.setattr(Belief, "__init__", kept)
    practised: list[set[Mask]] = []
    practise = learner.practise

    def watched(landscapes: Sequence[Landscape], *args: object, **kwargs: object) -> object:
        practised.append(set(beliefs[0].known))
        return practise(landscapes, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dyna_ppo, "practise", watched)
    listening = OneByOne(invented(6, 0).evaluator)
    problem = problem_of(invented(6, 0), 5, evaluator=BudgetedEvaluator(listening, 5), parallel=4)
    rounds: list[int] = []
    network = SEARCHER.learn(problem, 0, lambda policy, belief: rounds.append(len(belief.known)))
    assert len(set(listening.answered)) == 5
    assert practised[-1] == {*listening.answered, (False,) * 6, (True,) * 6}
    assert rounds == [2, 6]
    assert network.layout.width == 24


def test_a_learned_policy_chooses_well_where_it_has_searched() -> None:
    final = PracticeSettings(environments=32, updates=40, learning_rate=6e-3, width=24, cloning=200, blur=0.0)
    searcher, shares = dataclasses.replace(SEARCHER, final=final), []
    for seed in range(2):
        target = invented(6, seed)
        network = searcher.learn(problem_of(target, 24), seed)
        p = selection_probabilities(network, target.group_features, target.task_features, 0.5)
        utilities = {mask: target.objective.utility(axes, 0.5) for mask, axes in target.axes.items()}
        shares.append(utilities[tuple(bool(each > 0.5) for each in p)] / max(utilities.values()))
    assert min(shares) > 0.9


def test_an_answer_that_failed_is_not_asked_for_again() -> None:
    target = invented(4, 0)
    failing = Invented(4, 0, failures=list(target.axes)[3:9])
    asked = failing.asked(SEARCHER, budget=16)
    assert sorted(asked) == sorted(target.axes), "every mask once"


def test_a_watched_search_practises_after_every_round() -> None:
    """And finds the same masks as one that nobody watches, whose policy has no say among so few."""
    target, seen = invented(6, 1), list[np.ndarray]()
    problem = problem_of(target, 5)
    features = target.group_features, target.task_features

    def watch(network: object, belief: TaskBelief) -> None:
        seen.append(selection_probabilities(network, *features, 0.5))  # type: ignore[arg-type]

    listening = OneByOne(target.evaluator)
    SEARCHER.learn(dataclasses.replace(problem, evaluator=BudgetedEvaluator(listening, 5)), 3, watch)
    assert list(dict.fromkeys(listening.answered)) == target.asked(SEARCHER, 3, budget=5)
    assert len(seen) == 6, "before the first measurement, after each of five"
    assert all((a != b).any() for a, b in pairwise(seen))


def test_the_policy_has_something_to_learn_from() -> None:
    with pytest.raises(InputError, match="searcher=policy has nothing to learn from"):
        policy_of([])
    made = policy_of([invented(6, 11).experience("task")])
    assert made.name == "policy"
    assert made.source is not None
    assert [each.task for each in made.source.sources] == ["task"]


def test_each_variant_of_the_policy_changes_one_thing() -> None:
    experiences = [invented(6, 11).experience("task")]
    whole = policy_of(experiences)
    assert set(policy.VARIANTS) == set(VARIANTS), "those that are known are those that can be asked for"
    for name in VARIANTS:
        variant = find_searcher(name, experiences)
        assert isinstance(variant, DynaPPO)
        assert variant.name == name
        differing = {
            field.name
            for field in dataclasses.fields(DynaPPO)
            if getattr(variant, field.name) != getattr(whole, field.name)
        }
        assert len(differing) == 2, f"the name, and one of {differing}"


def test_without_the_others_or_without_doubt_it_asks_for_something_else() -> None:
    target, whole = invented(6, 0), dataclasses.replace(SEARCHER, source=source())
    asked = target.asked(whole, budget=8, preference=0.9)
    alone = target.asked(dataclasses.replace(whole, others=()), budget=8, preference=0.9)
    sure = dataclasses.replace(whole, doubts=False)
    assert alone[0] == asked[0]
    assert alone[1] != asked[1]
    assert isinstance(sure.belief(problem_of(target, 8), 0), Belief)
    assert target.asked(sure, budget=8, preference=0.9) != asked
