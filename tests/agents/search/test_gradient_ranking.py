from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from agents.search.base import SearchProblem
from agents.search.gradient_ranking import Criterion, GradientRanking
from envs.features import GROUP_FEATURES
from rewards.errors import InputError
from tests.agents.search.problems import Invented

LANDSCAPE = Invented(8, seed=2)
GRADIENT, WEIGHT, FISHER = (
    LANDSCAPE.group_features[:, GROUP_FEATURES.index(name)]
    for name in ("gradient_train", "weight_norm", "fisher_train")
)


@pytest.mark.parametrize(
    ("criterion", "score"), [("relative_gradient", GRADIENT - WEIGHT), ("gradient", GRADIENT), ("fisher", FISHER)]
)
def test_masks_are_nested_and_grow_by_the_next_best_toggle(criterion: Criterion, score: np.ndarray) -> None:
    asked = sorted(LANDSCAPE.asked(GradientRanking(criterion), budget=99), key=sum)
    assert [sum(mask) for mask in asked] == list(range(1, 9))
    assert all(all(map(bool.__le__, small, large)) for small, large in pairwise(asked))
    added = [np.flatnonzero(np.not_equal(small, large))[0] for small, large in pairwise([(False,) * 8, *asked])]
    assert added == np.argsort(-score).tolist()


def test_few_evaluations_cover_the_whole_way() -> None:
    assert [sum(mask) for mask in LANDSCAPE.asked(GradientRanking(), budget=3)] == [4, 6, 2]


def test_frozen_toggles_are_left_out_of_the_ranking() -> None:
    frozen = (True, False) * 4
    assert sorted(sum(mask) for mask in LANDSCAPE.asked(GradientRanking(), budget=99, frozen=frozen)) == [1, 2, 3, 4]


def test_features_without_gradients_are_one_line() -> None:
    problem = SearchProblem(
        LANDSCAPE.evaluator, LANDSCAPE.objective, np.zeros((8, 1), np.float32), ("depth",), np.zeros(0, np.float32), ()
    )
    with pytest.raises(InputError, match=r"by relative_gradient: gradient_train, weight_norm is not among"):
        GradientRanking().search(problem, 0)


def test_an_unknown_criterion_is_one_line() -> None:
    with pytest.raises(InputError, match="choose among relative_gradient, gradient, fisher"):
        GradientRanking("size")  # type: ignore[arg-type]
