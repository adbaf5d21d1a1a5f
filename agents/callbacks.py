"""What a training shows while it runs: TensorBoard curves and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from stable_baselines3.common.callbacks import BaseCallback

from agents.policy import GroupTokenPolicy
from envs.evaluators.cached import CachedEvaluator
from rewards.objective import hypervolume


class PolicyCurves(BaseCallback):
    """Writes after every rollout: each group's selection probability, entropy, both axes, utility, best so far, counts.

    Args:
        groups: Names of the toggles.
        evaluator: Whose counters are logged.
    """

    def __init__(self, groups: tuple[str, ...], evaluator: CachedEvaluator) -> None:
        super().__init__()
        self.groups, self.evaluator = groups, evaluator
        self._best = -np.inf
        self._front: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        infos = [info for info in self.locals["infos"] if "schedule" in info]
        measured = [info for info in infos if "utility" in info]
        for info in measured:
            self._best = max(self._best, info["utility"])
            self._front.append((info["quality"], info["privacy"]))
        for name in ("utility", "quality", "privacy"):
            if measured:
                self.logger.record(f"search/{name}", float(np.mean([info[name] for info in measured])))
        if self._front:
            self.logger.record("search/best_utility", self._best)
            self.logger.record("search/hypervolume", hypervolume(self._front))
        self.logger.record("evaluations/distinct", self.evaluator.distinct)
        self.logger.record("evaluations/cached", self.evaluator.cached)
        self.logger.record("evaluations/failed", self.evaluator.failed)
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model.policy, GroupTokenPolicy)
        observation, _ = self.model.policy.obs_to_tensor(self.locals["new_obs"])
        assert isinstance(observation, dict)
        probability = self.model.policy.network.probabilities(observation).mean(0).numpy()
        for group, p in zip(self.groups, probability, strict=True):
            self.logger.record(f"policy/probability/{group}", float(p))
        p = np.clip(probability, 1e-7, 1 - 1e-7)
        self.logger.record("policy/entropy_bits", float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()))


@contextmanager
def search_progress(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each thing measured, with the time that is left.

    Args:
        totals: How many evaluations there will be, by what is measured.

    Yields:
        ``show(what, done)``.
    """
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn()) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=totals[what])
            progress.update(bars[what], completed=min(done, totals[what]))

        yield show
