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

from agents.policy import GroupTokenPolicy, MaskableGroupTokenPolicy
from agents.session import Session, frozen_mask
from rewards.objective import hypervolume


class PolicyCurves(BaseCallback):
    """Writes after every rollout: each group's selection probability, entropy, both axes, utility, best so far, counts.

    Args:
        session: Whose search is followed.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def _on_step(self) -> bool:
        measured = [info for info in self.locals["infos"] if "utility" in info]
        for name in ("utility", "quality", "privacy"):
            if measured:
                self.logger.record(f"search/{name}", float(np.mean([info[name] for info in measured])))
        return True

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        assert isinstance(policy, GroupTokenPolicy | MaskableGroupTokenPolicy)
        self._record_search()
        observation, _ = policy.obs_to_tensor(self.locals["new_obs"])
        assert isinstance(observation, dict)
        frozen = np.asarray(frozen_mask(self.session.settings.frozen, self.session.bench.search.groups))
        probability = np.where(frozen, 0, policy.network.probabilities(observation).mean(0).numpy())
        for group, p in zip(self.session.bench.search.groups, probability, strict=True):
            self.logger.record(f"policy/probability/{group}", float(p))
        p = np.clip(probability, 1e-7, 1 - 1e-7)
        self.logger.record("policy/entropy_bits", float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()))

    def _on_training_end(self) -> None:
        self._record_search()

    def _record_search(self) -> None:
        scored = self.session.scored()
        if scored:
            self.logger.record("search/best_utility", max(each.utility for each in scored))
            self.logger.record("search/hypervolume", hypervolume(each.axes for each in scored))
        for name in ("distinct", "cached", "failed"):
            self.logger.record(f"evaluations/{name}", getattr(self.session.evaluator, name))


@contextmanager
def search_progress(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each thing measured, with the time that is left.

    Args:
        totals: How many evaluations there will be, by what is measured. Each is looked up when it is first shown, so
            that it may depend on what was measured before.

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
