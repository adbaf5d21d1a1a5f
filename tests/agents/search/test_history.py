from __future__ import annotations

from collections import Counter

import numpy as np

from agents.search.base import SearchProblem
from agents.search.history import History, flipped
from envs.task import Mask
from rewards.objective import Axes
from tests.agents.search.problems import Invented

LANDSCAPE = Invented(4)


def history(frozen: Mask = (), preference: float | None = 0.5) -> History:
    features = LANDSCAPE.group_features
    return History(
        SearchProblem(
            LANDSCAPE.evaluator, LANDSCAPE.objective, features, (), LANDSCAPE.task_features, (), preference, frozen
        )
    )


def test_the_anchors_are_known_for_nothing() -> None:
    assert history().known == {(False,) * 4: Axes(0, 1), (True,) * 4: Axes(1, 0)}
    assert LANDSCAPE.axes[(False,) * 4] == (0, 1)
    assert history((True, False, False, False)).known == {(False,) * 4: Axes(0, 1)}
    assert history().is_new((True,) * 4)


def test_draws_are_uniform_and_never_repeat() -> None:
    firsts = Counter(history().draw(np.random.default_rng(seed)) for seed in range(1600))
    assert len(firsts) == 16
    assert max(abs(count - 100) for count in firsts.values()) < 40
    drawn, rng, past = [], np.random.default_rng(0), history((False, True, False, False))
    while (mask := past.draw(rng)) is not None:
        drawn.append(mask)
    assert len(drawn) == len(set(drawn)) == 8
    assert not any(mask[1] for mask in drawn)
    assert past.exhausted


def test_near_flips_as_few_toggles_as_it_can() -> None:
    past, rng, centre = history(), np.random.default_rng(0), (True, False, True, False)
    near = [past.near(centre, rng) for _ in range(17)]
    distances = [sum(map(bool.__ne__, centre, mask)) for mask in near if mask is not None]
    assert distances == [0] + [1] * 4 + [2] * 6 + [3] * 4 + [4]
    assert near[-1] is None


def test_a_search_without_a_preference_has_many_weights() -> None:
    rng = np.random.default_rng(0)
    assert {history().weight(rng) for _ in range(3)} == {0.5}
    weights = [history(preference=None).weight(rng) for _ in range(200)]
    assert min(weights) < 0.05
    assert max(weights) > 0.95


def test_flipped() -> None:
    assert flipped((True, False, False), [0, 2]) == (False, False, True)
