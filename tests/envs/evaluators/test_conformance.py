from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from envs.evaluators.budget import BudgetedEvaluator
from envs.evaluators.cached import CachedEvaluator
from envs.evaluators.pool import PoolEvaluator
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.store import EvaluationStore
from tests.envs.evaluators.conformance import check_evaluator
from tests.envs.evaluators.fakes import GROUPS, TASK, Counting, Misbehaving, schedules

*WORKING, FAILING = schedules(7)


def test_synthetic() -> None:
    reason = "diverged: loss is nan"
    check_evaluator(lambda: SyntheticEvaluator(GROUPS, 7, {FAILING: reason}), WORKING, FAILING, reason)


@pytest.mark.parametrize("reason", ["diverged: loss is nan", "killed by SIGKILL"])
def test_cached(tmp_path: Path, reason: str) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        check_evaluator(
            lambda: CachedEvaluator(Counting({FAILING: reason}), store, TASK, "run"), WORKING, FAILING, reason
        )


def test_budgeted() -> None:
    check_evaluator(lambda: BudgetedEvaluator(Counting({FAILING: "diverged: x"}), 7), WORKING, FAILING, "diverged: x")


@pytest.mark.parametrize("workers", [0, 2])
def test_pool(tmp_path: Path, workers: int) -> None:
    factory = partial(Misbehaving, tmp_path, {FAILING.key: ["bug"]})
    check_evaluator(lambda: PoolEvaluator(factory, workers, GROUPS), WORKING, FAILING, "error: KeyError: 'a bug'")
