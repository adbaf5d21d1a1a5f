"""Invented tables in which seeds differ, for tests of what tells masks from noise."""

from __future__ import annotations

import dataclasses

import numpy as np

from envs.evaluators.base import Evaluation
from envs.evaluators.table import EvaluationTable
from tests.agents.tables import invented_table


def noisy_table(*overrides: str, seed: int = 0, noise: float = 0.1, repeated: int = 16) -> EvaluationTable:
    """An invented table whose metrics of every mask but the anchors have normal noise, in shares of their range.

    Args:
        overrides: Of the command line; they name the task.
        seed: Of the invented numbers.
        noise: Its standard deviation.
        repeated: Masks with three seeds, anchors included.
    """
    table = invented_table(*overrides, seed=seed)
    rng = np.random.default_rng(seed)
    found = sorted(table.evaluations[table.task.seed].values(), key=lambda e: e.schedule)
    values = {name: [e.metrics[name].value or 0.0 for e in found] for name in table.task.metrics}
    ranges = {name: max(of) - min(of) for name, of in values.items()}

    def again(evaluation: Evaluation) -> Evaluation:
        if all(evaluation.schedule.phases[0]) or not evaluation.schedule.learns:
            return dataclasses.replace(evaluation, seconds=30.0)
        metrics = {
            name: dataclasses.replace(m, value=(m.value or 0.0) + noise * ranges[name] * rng.normal())
            for name, m in evaluation.metrics.items()
        }
        return dataclasses.replace(evaluation, metrics=metrics, seconds=float(rng.uniform(20, 40)))

    few = [found[0], found[-1], *(found[i] for i in rng.choice(np.arange(1, 63), repeated - 2, replace=False))]
    own = table.task.seed
    seeds = {own: found, own + 1: few, own + 2: few}
    evaluations = {number: {e.schedule: again(e) for e in of} for number, of in seeds.items()}
    return dataclasses.replace(table, evaluations=evaluations)
