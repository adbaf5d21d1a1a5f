"""Workers, store, environment and memory."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from agents.benchmarks.base import Finding, Goal, seconds
from agents.benchmarks.inner import build_evaluator
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.evaluators.base import evaluate_many
from envs.evaluators.cached import CachedEvaluator
from envs.evaluators.pool import PoolEvaluator
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.selection import ParameterSelectionEnv
from envs.store import EvaluationStore
from envs.task import Schedule
from envs.vector import SelectionVecEnv
from rewards.objective import Objective


def _schedules(groups: int, count: int) -> list[Schedule]:
    return [Schedule.constant([bool(i >> g & 1) for g in range(groups)]) for i in range(1, count + 1)]


def bench_workers(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Evaluations a minute of two workers / of one, both warm, in turns."""
    assert bench.make_factory is not None
    inner = dataclasses.replace(settings.inner, steps=max(2, settings.inner.steps // 4), warmup=0, images=32)
    task = dataclasses.replace(bench.search, inner=inner)
    full, batch = [Schedule.constant([True] * len(task.groups))] * 2, 4
    pools = [PoolEvaluator(bench.make_factory(task), workers, task.groups) for workers in (1, 2)]
    try:
        for pool in pools:
            evaluate_many(pool, full)
        pairs = [
            tuple(seconds(lambda p=pool: evaluate_many(p, full * (batch // 2))) for pool in pools)  # type: ignore[misc]
            for _ in range(min(runs, 3))
        ]
    finally:
        for pool in pools:
            pool.close()
    return Finding(
        {
            "one_worker_per_minute": 60 * batch / median(one for one, _ in pairs),
            "two_workers_per_minute": 60 * batch / median(two for _, two in pairs),
            "ratio": median(one / two for one, two in pairs),
        },
        (Goal("ratio", 1.7, at_least=True),),
        len(pairs),
        {"steps": inner.steps, "images": inner.images},
    )


def bench_store(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """A request that the store answers, through `CachedEvaluator`."""
    task = dataclasses.replace(bench.search, groups=tuple(f"group {i}" for i in range(8)))
    schedules = _schedules(8, 200)
    with tempfile.TemporaryDirectory() as folder:
        store = EvaluationStore(Path(folder) / "evaluations.sqlite")
        evaluator = CachedEvaluator(SyntheticEvaluator(task.groups, seed=0), store, task, "bench")
        puts = [seconds(lambda s=schedule: evaluate_many(evaluator, [s])) for schedule in schedules]  # type: ignore[misc]
        hits = [
            seconds(lambda s=schedule: evaluate_many(evaluator, [s]))  # type: ignore[misc]
            for _ in range(runs)
            for schedule in schedules
        ]
        store.close()
    return Finding(
        {"hit_ms": 1e3 * median(hits), "put_ms": 1e3 * median(puts)}, (Goal("hit_ms", 5),), len(hits), {"stored": 200}
    )


def bench_environment(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """A step of the environment less the evaluator's part, and vectorised steps a second, on invented numbers."""
    groups = [f"group {i}" for i in range(8)]
    synthetic = _Timed(groups)
    base, full = (synthetic.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
    objective = Objective().anchor(base.metrics, full.metrics)

    def make() -> ParameterSelectionEnv:
        return ParameterSelectionEnv(
            synthetic,
            objective,
            bench.group_features[: len(groups)],
            bench.group_feature_names,
            bench.task_features,
            preference=0.5,
        )

    env, rng, count = make(), np.random.default_rng(0), 2000
    actions = rng.integers(0, 2, (count, 8), dtype=np.int8)
    single = []
    for _ in range(runs):
        synthetic.spent, started = 0.0, time.perf_counter()
        for action in actions:
            env.reset()
            env.step(action)
        single.append((time.perf_counter() - started - synthetic.spent) / count)
    many = SelectionVecEnv([make() for _ in range(64)])
    many.reset()
    rounds = [actions[64 * i : 64 * (i + 1)] for i in range(count // 64)]
    rates = [64 * len(rounds) / seconds(lambda: [many.step(batch) for batch in rounds]) for _ in range(runs)]
    return Finding(
        {"step_ms": 1e3 * median(single), "vector_steps_per_s": median(rates)},
        (Goal("step_ms", 1),),
        runs,
        {"steps": count, "sub_environments": 64},
    )


class _Timed(SyntheticEvaluator):
    """Counts the seconds spent evaluating."""

    spent = 0.0

    def evaluate_iter(self, schedules):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        found = list(super().evaluate_iter(schedules))
        self.spent += time.perf_counter() - started
        yield from found


def bench_memory(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Growth of resident memory over 50 evaluations, after 10 that let the allocator settle."""
    assert bench.make_factory is not None
    inner = dataclasses.replace(settings.inner, steps=4, warmup=0, images=16, sampling_steps=2, loss_draws=1)
    small = dataclasses.replace(bench, search=dataclasses.replace(bench.search, inner=inner))
    evaluator, process = build_evaluator(small), psutil.Process()
    schedules = _schedules(len(small.search.groups), 60)
    for schedule in schedules[:10]:
        evaluator.evaluate(schedule)
    before = process.memory_info().rss
    for schedule in schedules[10:]:
        evaluator.evaluate(schedule)
    grown = (process.memory_info().rss - before) / 2**20
    return Finding({"growth_mb": grown}, (Goal("growth_mb", 20),), 1, {"evaluations": 50})
