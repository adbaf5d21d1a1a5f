from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.selection import ParameterSelectionEnv, make_env
from envs.task import Schedule
from envs.vector import SelectionVecEnv

GROUPS = tuple(f"group {i}" for i in range(8))


class Batches:
    """A synthetic evaluator that remembers each call, and answers last things first."""

    def __init__(self) -> None:
        self.inner = SyntheticEvaluator(GROUPS, failures={Schedule.from_key("11111111"): "killed by SIGKILL"})
        self.calls: list[list[Schedule]] = []

    @property
    def groups(self) -> tuple[str, ...]:
        return self.inner.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        self.calls.append(list(schedules))
        for index in reversed(range(len(schedules))):
            yield index, self.inner.evaluate(schedules[index])

    def close(self) -> None:
        self.inner.close()


def sub_environments(evaluator: Any, count: int, **settings: Any) -> list[ParameterSelectionEnv]:
    made = make_env()
    shared = {
        "evaluator": evaluator,
        "objective": made.objective,
        "group_features": made.observation()["groups"],
        "group_feature_names": made.group_feature_names,
        "task_features": made.observation()["task"],
    }
    return [make_env(**shared | settings) for _ in range(count)]


@pytest.mark.parametrize("horizon", [1, 3])
def test_behaves_like_sb3s_own_vector_environment(horizon: int) -> None:
    ours = SelectionVecEnv(sub_environments(Batches(), 5, horizon=horizon))
    theirs = DummyVecEnv([lambda env=env: Monitor(env) for env in sub_environments(Batches(), 5, horizon=horizon)])  # type: ignore[misc]
    for vector in (ours, theirs):
        vector.seed(11)
    same(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for step in range(1, 10):
        actions = rng.integers(0, 2, (5, 8), dtype=np.int8)
        actions[3] = 1
        (observations, rewards, dones, infos), expected = ours.step(actions), theirs.step(actions)
        same(observations, expected[0])
        assert rewards.dtype == expected[1].dtype
        assert rewards.tolist() == expected[1].tolist()
        assert dones.tolist() == expected[2].tolist() == [step % horizon == 0] * 5
        for info, expected_info in zip(infos, expected[3], strict=True):
            assert info.keys() == expected_info.keys()
            assert ("episode" in info) == (step % horizon == 0)
            if "episode" in info:
                same(info.pop("terminal_observation"), expected_info.pop("terminal_observation"))
                monitored = expected_info.pop("episode")
                episode = info.pop("episode")
                assert (round(episode["r"], 6), episode["l"]) == (monitored["r"], monitored["l"])
                assert episode.keys() == {"r", "l"}
            assert info == expected_info
    same(ours.reset(), theirs.reset())


def same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype
        assert np.array_equal(ours[key], theirs[key]), key


def test_all_schedules_of_a_step_go_into_one_call() -> None:
    evaluator = Batches()
    vector = SelectionVecEnv(sub_environments(evaluator, 4, horizon=2))
    vector.reset()
    actions = np.eye(4, 8, dtype=np.int8)
    vector.step(actions)
    assert evaluator.calls == []
    vector.step(1 - actions)
    assert [[schedule.key for schedule in call] for call in evaluator.calls] == [
        [f"{first}/{second}" for first, second in zip(bits(actions), bits(1 - actions), strict=True)]
    ]
    vector.step(actions)
    vector.env_method("reset", indices=[0, 2])
    dones = vector.step(1 - actions)[2]
    assert dones.tolist() == [False, True, False, True], "sub-environments may be out of step"
    assert [schedule.key for schedule in evaluator.calls[1]] == [evaluator.calls[0][i].key for i in (1, 3)]


def bits(actions: np.ndarray[Any, Any]) -> list[str]:
    return ["".join(map(str, row)) for row in actions.tolist()]


def test_what_was_returned_does_not_change_later() -> None:
    vector = SelectionVecEnv(sub_environments(Batches(), 2, horizon=2))
    before = vector.reset()
    assert isinstance(before, dict)
    after = vector.step(np.ones((2, 8), np.int8))[0]
    assert not before["chosen"].any()
    assert isinstance(after, dict)
    assert after["chosen"][:, 0].all()


def test_a_spent_budget_comes_out_of_step() -> None:
    evaluator = Batches()
    vector = SelectionVecEnv(sub_environments(BudgetedEvaluator(evaluator, 3), 2))
    vector.reset()
    vector.step(np.eye(2, 8, dtype=np.int8))
    with pytest.raises(BudgetSpent):
        vector.step(np.eye(4, 8, dtype=np.int8)[2:])
    assert [len(call) for call in evaluator.calls] == [2, 1], "what the budget had room for was evaluated"


def test_sub_environments_can_be_reached() -> None:
    vector = SelectionVecEnv(sub_environments(Batches(), 3))
    assert vector.get_attr("horizon") == [1, 1, 1]
    vector.set_attr("failure_penalty", -2.0, indices=[1])
    assert vector.get_attr("failure_penalty") == [-1.0, -2.0, -1.0]
    vector.env_method("reset", seed=3, indices=[0, 2])
    first, _, third = vector.env_method("observation")
    same(first, third)
    assert vector.env_is_wrapped(Monitor) == [False] * 3
    vector.close()


def test_sub_environments_must_fit_together() -> None:
    evaluator = Batches()
    one = sub_environments(evaluator, 1)[0]
    with pytest.raises(ValueError, match="distinct objects"):
        SelectionVecEnv([one, one])
    with pytest.raises(ValueError, match="observations of one shape"):
        SelectionVecEnv([one, *sub_environments(evaluator, 1, horizon=2)])


def test_sub_environments_of_several_tasks_each_ask_their_own_evaluator() -> None:
    evaluators = [Batches(), Batches()]
    evaluators[1].inner = SyntheticEvaluator(GROUPS, seed=1)
    features = [np.zeros(1), np.full(1, 7.5)]
    envs = [sub_environments(evaluators[i % 2], 1, task_features=features[i % 2])[0] for i in range(4)]
    vector = SelectionVecEnv(envs)
    observation = vector.reset()
    assert isinstance(observation, dict)
    assert observation["task"].tolist() == [[0.0], [7.5], [0.0], [7.5]]
    space = vector.observation_space
    assert isinstance(space, spaces.Dict)
    assert all(space["task"].contains(each.astype(np.float32)) for each in features)
    actions = np.eye(4, 8, dtype=np.int8)
    _, rewards, _, infos = vector.step(actions)
    assert [[schedule.key for schedule in call] for each in evaluators for call in each.calls] == [
        [bits(actions)[i] for i in (0, 2)],
        [bits(actions)[i] for i in (1, 3)],
    ]
    assert [info["schedule"] for info in infos] == bits(actions)
    for info, reward, env in zip(infos, rewards.tolist(), envs, strict=True):
        schedule = Schedule.from_key(info["schedule"])
        axes = env.objective.axes(env.evaluator.inner.evaluate(schedule).metrics)  # type: ignore[attr-defined]
        assert (info["quality"], info["privacy"]) == axes
        assert info["utility"] == pytest.approx(reward)


def test_frozen_groups_stay_off_and_masks_say_so() -> None:
    frozen = [False] * 8
    frozen[2] = frozen[5] = True
    vector = SelectionVecEnv(sub_environments(Batches(), 3, frozen=frozen))
    vector.reset()
    infos = vector.step(np.ones((3, 8), np.int8))[3]
    assert {info["schedule"] for info in infos} == {"11011011"}
    masks = np.stack(vector.env_method("action_masks")).reshape(3, 8, 2)
    assert masks[..., 0].all(), "off is always allowed"
    assert np.array_equal(masks[0, :, 1], ~np.asarray(frozen))


def test_ppo_learns_on_it_and_is_reproducible() -> None:
    """Twice the same, and better than chance: the mean of the last rewards beats that of the first."""

    def train() -> tuple[list[float], list[float]]:
        vector = SelectionVecEnv(sub_environments(SyntheticEvaluator(GROUPS), 16, preference=0.5))
        model = PPO("MultiInputPolicy", vector, 3e-3, n_steps=16, batch_size=64, n_epochs=4, gamma=1.0, seed=0)
        model.set_logger(Logger(None, []))
        means: list[float] = []
        for _ in range(6):
            model.learn(256, reset_num_timesteps=False)
            assert model.ep_info_buffer is not None
            means.append(statistics.fmean(info["r"] for info in model.ep_info_buffer))
        return means, model.policy.state_dict()["action_net.bias"].tolist()

    means, bias = train()
    assert means[-1] > means[0] + 0.1
    assert train() == (means, bias)


def test_the_environment_costs_at_most_a_millisecond_a_step() -> None:
    vector = SelectionVecEnv(sub_environments(SyntheticEvaluator(GROUPS), 64))
    vector.reset()
    actions = np.random.default_rng(0).integers(0, 2, (50, 64, 8), dtype=np.int8)
    times = []
    for action in actions:
        started = time.perf_counter()
        vector.step(action)
        times.append((time.perf_counter() - started) / 64)
    assert statistics.median(times) < 1e-3
