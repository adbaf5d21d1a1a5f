from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.export import ExportedPolicy
from agents.policy import SelectionNetwork
from agents.search.ppo import learn
from agents.settings import PPOSettings, TrainSettings, read_settings
from agents.workbench import Workbench, prepare
from envs.evaluators.budget import BudgetedEvaluator
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.selection import ParameterSelectionEnv
from envs.task import Schedule
from envs.vector import SelectionVecEnv
from rewards.objective import AnchoredObjective


class Diary(BaseCallback):
    """Remembers the utilities of each step of all environments, and how often the search was told to have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.utilities: list[list[float]] = []
        self.threads: set[int] = set()
        self.ended = 0

    def _on_step(self) -> bool:
        self.utilities.append([info["utility"] for info in self.locals["infos"] if "utility" in info])
        self.threads.add(torch.get_num_threads())
        return True

    def _on_training_end(self) -> None:
        self.ended += 1


class Search:
    """PPO on the synthetic task, with everything around it known."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            config = hydra.compose("train", overrides=["evaluator=synthetic", "agent=ppo", *overrides])
        self.settings = read_settings(config, TrainSettings)
        self.bench: Workbench = prepare(self.settings)
        evaluator = self.bench.make_evaluator(self.bench.search)
        assert isinstance(evaluator, SyntheticEvaluator)
        self.evaluator = evaluator
        base, full = (evaluator.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
        self.objective: AnchoredObjective = self.bench.objective.anchor(base.metrics, full.metrics)
        self.budgeted = BudgetedEvaluator(evaluator, self.settings.budget.evaluations)
        self.diary = Diary()
        self.network = self._learn(folder)

    def utility(self, mask: tuple[bool, ...]) -> float:
        axes = self.objective.axes(self.evaluator.evaluate(Schedule.constant(mask)).metrics)
        return self.objective.utility(axes, self.settings.preference)

    def _learn(self, folder: Path) -> SelectionNetwork:
        bench, settings = self.bench, self.settings
        assert isinstance(settings.agent, PPOSettings)
        around: dict[str, Any] = {
            "evaluator": self.budgeted,
            "objective": self.objective,
            "group_features": bench.group_features,
            "group_feature_names": bench.group_feature_names,
            "task_features": bench.task_features,
            "preference": settings.preference,
            "horizon": settings.horizon,
        }
        env = SelectionVecEnv([ParameterSelectionEnv(**around) for _ in range(settings.agent.rollout)])
        env.seed(settings.seed)
        return learn(
            env,
            settings.agent,
            budget=settings.budget.evaluations,
            seed=settings.seed,
            tensorboard=folder,
            callback=self.diary,
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_policy_learns(tmp_path: Path, seed: int) -> None:
    """128 of 256 masks paid for: its last samples are far better than its first, and its choice is in the top tenth."""
    search = Search(tmp_path, f"seed={seed}", "budget.evaluations=128")
    rollouts = [fmean(utilities) for utilities in search.diary.utilities]
    first, last = fmean(rollouts[:2]), fmean(rollouts[-4:])
    everything = sorted(search.utility(mask) for mask in itertools.product((False, True), repeat=8))
    assert abs(first - fmean(everything)) < 0.1, "it starts as a fair coin for every group"
    assert last > first + 0.1

    bench = search.bench
    policy = ExportedPolicy(search.network, bench.group_feature_names, bench.task_feature_names)
    chosen = policy.choose(bench.group_features, bench.task_features, search.settings.preference)
    assert search.utility(chosen) >= everything[-26]


def test_a_search_ends_when_the_budget_is_spent(tmp_path: Path) -> None:
    search = Search(tmp_path, "budget.evaluations=10", "agent.rollout=4")
    assert search.budgeted.remaining == 0
    assert len(search.diary.utilities) in (2, 3), "the third rollout of 4 is not complete, unless masks came twice"
    assert search.diary.ended == 1


def test_a_search_that_asks_for_nothing_new_ends_too(tmp_path: Path) -> None:
    """8 groups have 256 masks, fewer than the budget."""
    search = Search(tmp_path, "budget.evaluations=300", "agent.rollout=60", "agent.max_episodes=1", "agent.epochs=1")
    assert search.budgeted.remaining > 0
    assert len(search.diary.utilities) == 300 // 60
    assert search.diary.ended == 1


def test_a_rollout_is_an_episode_in_each_environment(tmp_path: Path) -> None:
    search = Search(tmp_path, "budget.evaluations=8", "agent.rollout=4", "horizon=3")
    counts = [len(utilities) for utilities in search.diary.utilities]
    assert counts[:6] == [0, 0, 4, 0, 0, 4]


def test_updates_take_one_thread_and_evaluations_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updating: list[int] = []
    update = PPO.train

    def watched(model: PPO) -> None:
        updating.append(torch.get_num_threads())
        update(model)

    monkeypatch.setattr(PPO, "train", watched)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            search = Search(tmp_path / str(threads), "budget.evaluations=8", "agent.rollout=4")
            assert search.diary.threads == {threads}
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(updating) == {1}


def test_learning_moves_every_weight(tmp_path: Path) -> None:
    start, end = (
        Search(tmp_path / rate, "budget.evaluations=8", "agent.rollout=4", f"agent.learning_rate={rate}").network
        for rate in ("1e-30", "1e-2")
    )
    moved = {name: not torch.allclose(tensor, end.state_dict()[name]) for name, tensor in start.state_dict().items()}
    assert all(moved.values()), moved
