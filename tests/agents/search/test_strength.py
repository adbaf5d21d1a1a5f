"""Searchers that learn from answers find more than random search does at the same budget."""

from __future__ import annotations

from functools import cache
from statistics import fmean

import pytest

from agents.search import find_searcher
from tests.agents.search.problems import Invented

BUDGET, SEEDS = 48, range(10)


@cache
def landscape(seed: int) -> Invented:
    return Invented(8, seed)


@cache
def mean_value(name: str, preference: float | None) -> float:
    """Over the seeds, each on one of five landscapes."""
    return fmean(
        (problem := landscape(seed % 5)).value(
            problem.asked(find_searcher(name), seed, budget=BUDGET, preference=preference, parallel=2), preference
        )
        for seed in SEEDS
    )


@pytest.mark.parametrize("preference", [0.5, None])
@pytest.mark.parametrize("name", ["tpe", "nsga2", "evolution", "local_search", "predictor"])
def test_it_beats_random_search(name: str, preference: float | None) -> None:
    assert mean_value(name, preference) > mean_value("random", preference)
