"""The reusable policy: steps in tables, learning from other data sources, and a choice."""

from __future__ import annotations

import time
from statistics import median

import joblib
import numpy as np

from agents.benchmarks.base import Finding, Goal, seconds
from agents.lookup import known_tables, read_table
from agents.policy import selection_probabilities
from agents.search.base import Experience
from agents.search.experience import anchored_at, experience_of
from agents.settings import TrainSettings
from agents.source_policy import SourcePolicy
from agents.workbench import Workbench
from envs.evaluators.table import EvaluationTable
from envs.evaluators.tabular import TabularEvaluator
from envs.selection import ParameterSelectionEnv
from envs.vector import SelectionVecEnv
from rewards.errors import InputError
from rewards.objective import Objective

_SUB_ENVIRONMENTS, _STEPS = 64, 200


def bench_policy(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Vectorised steps a second in a table, all leave-one-source-out trainings on two cores, and one choice."""
    tables = [read_table(path) for path in known_tables(settings.run_dir)]
    if not tables:
        raise InputError("there is no table of evaluations", "measure one with python -m agents.tabulate")
    objective = bench.objective
    rates = [_steps_per_second(tables[0], objective) for _ in range(runs)]
    experiences = [experience_of(table, objective) for table in tables]
    envs = sorted({each.env for each in experiences})
    folds = [[each for each in experiences if each.env != env] for env in envs] if len(envs) > 1 else [experiences]
    started = time.perf_counter()
    policies = joblib.Parallel(n_jobs=2)(joblib.delayed(_learn)(fold, settings.seed) for fold in folds)
    training = time.perf_counter() - started
    network, target = policies[0].network(settings.seed), experiences[0]
    choices = [
        seconds(lambda: selection_probabilities(network, target.group_features, target.task_features, 0.5))
        for _ in range(100)
    ]
    return Finding(
        {"vector_steps_per_s": median(rates), "leave_one_out_min": training / 60, "choice_ms": 1e3 * median(choices)},
        (Goal("vector_steps_per_s", 20_000, at_least=True), Goal("leave_one_out_min", 10), Goal("choice_ms", 50)),
        runs,
        {"tables": len(tables), "folds": len(folds), "sub_environments": _SUB_ENVIRONMENTS},
    )


def _steps_per_second(table: EvaluationTable, objective: Objective) -> float:
    anchored, evaluator = anchored_at(table, objective), TabularEvaluator(table)
    env = SelectionVecEnv(
        [
            ParameterSelectionEnv(
                evaluator, anchored, table.group_features, table.group_feature_names, table.task_features
            )
            for _ in range(_SUB_ENVIRONMENTS)
        ]
    )
    env.seed(0)
    env.reset()
    shape = (_STEPS, _SUB_ENVIRONMENTS, len(table.task.groups))
    actions = np.random.default_rng(0).integers(0, 2, shape, dtype=np.int8)
    return _STEPS * _SUB_ENVIRONMENTS / seconds(lambda: [env.step(batch) for batch in actions])


def _learn(fold: list[Experience], seed: int) -> SourcePolicy:
    policy = SourcePolicy(tuple(fold))
    policy.network(seed)
    policy.prior(seed)
    return policy
