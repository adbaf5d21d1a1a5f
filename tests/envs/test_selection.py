from __future__ import annotations

import json
import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs.evaluators.base import Evaluation
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.selection import ParameterSelectionEnv, make_env
from envs.task import Schedule
from rewards.errors import InputError
from rewards.measurement import Measurement
from rewards.objective import Axes

ID = "memcontrol/ParameterSelection-v0"
SETTINGS: list[dict[str, Any]] = [{}, {"horizon": 3}, {"preference": 0.25}]


def make(**settings: Any) -> ParameterSelectionEnv:
    env = gym.make(ID, **settings).unwrapped
    assert isinstance(env, ParameterSelectionEnv)
    return env


@pytest.mark.parametrize("settings", SETTINGS)
def test_passes_gymnasiums_checks_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(make(**settings))


@pytest.mark.parametrize("settings", SETTINGS)
def test_passes_sb3s_checks(settings: dict[str, Any]) -> None:
    """Without a warning, but that a matrix (G, F) wants a policy of its own: it has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*observation groups has an unconventional shape")
        sb3_check_env(make(**settings))


def test_two_runs_of_one_seed_are_equal_and_infos_are_json() -> None:
    def run(seed: int) -> list[Any]:
        env = make(horizon=2)
        env.action_space.seed(seed)
        seen: list[Any] = [env.reset(seed=seed)]
        for _ in range(3):
            seen += [env.step(env.action_space.sample()), env.step(env.action_space.sample()), env.reset()]
        return seen

    def as_json(seen: list[Any]) -> str:
        return json.dumps(seen, default=lambda value: value.tolist(), allow_nan=False)

    assert as_json(run(5)) == as_json(run(5)) != as_json(run(6))


def test_the_reward_is_the_utility_of_the_schedule_at_the_end() -> None:
    env = make(horizon=2, preference=0.3)
    evaluator = env.evaluator
    assert isinstance(evaluator, SyntheticEvaluator)
    first, second = np.array([1, 0, 0, 1, 0, 0, 0, 0], np.int8), np.array([0, 1, 1, 1, 0, 0, 0, 1], np.int8)
    observation, info = env.reset(seed=0)
    assert observation["progress"] == [0]
    assert not observation["chosen"].any()
    assert info == {}
    assert observation["preference"] == np.float32(0.3)

    observation, reward, terminated, truncated, info = env.step(first)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    assert observation["progress"] == [0.5]
    assert observation["chosen"].tolist() == [first.tolist(), [0] * 8]

    observation, reward, terminated, truncated, info = env.step(second)
    assert terminated
    assert not truncated
    assert observation["progress"] == [1]
    assert observation["chosen"].tolist() == [first.tolist(), second.tolist()]
    metrics = evaluator.evaluate(Schedule.from_key("10010000/01110001")).metrics
    axes = env.objective.axes(metrics)
    assert reward == env.objective.utility(axes, 0.3)
    assert info == {
        "schedule": "10010000/01110001",
        "quality": axes.quality,
        "privacy": axes.privacy,
        "utility": reward,
    }
    assert not env.reset()[0]["chosen"].any()
    assert env.observation()["progress"] == [0]


def test_synthetic_anchors_are_the_ends_of_its_axes() -> None:
    env = make(preference=0.5)
    ends = []
    for on in (0, 1):
        env.reset()
        ends.append(env.step(np.full(8, on, np.int8))[4])
    assert (ends[0]["quality"], ends[0]["privacy"]) == (0, 1)
    assert (ends[1]["quality"], ends[1]["privacy"]) == (1, 0)


def test_preference_is_fixed_or_drawn_anew_for_each_episode() -> None:
    assert {float(make(preference=0.75).reset()[0]["preference"][0]) for _ in range(3)} == {0.75}
    env = make()
    env.reset(seed=0)
    drawn = [float(env.reset()[0]["preference"][0]) for _ in range(200)]
    assert len(set(drawn)) > 190
    assert min(drawn) < 0.05
    assert max(drawn) > 0.95
    preference = float(env.reset()[0]["preference"][0])
    _, reward, _, _, info = env.step(np.array([1, 1, 0, 0, 0, 0, 0, 0], np.int8))
    assert reward == pytest.approx(env.objective.utility(Axes(info["quality"], info["privacy"]), preference))


@pytest.mark.parametrize("penalty", [-1.0, -0.25])
def test_a_failure_is_penalised_with_its_reason(penalty: float) -> None:
    failing = Schedule.from_key("11110000")
    evaluator = SyntheticEvaluator(make().evaluator.groups, failures={failing: "killed by SIGKILL"})
    env = make(**settings_of(make()) | {"evaluator": evaluator, "failure_penalty": penalty})
    env.reset()
    _, reward, terminated, _, info = env.step(np.array([1, 1, 1, 1, 0, 0, 0, 0], np.int8))
    assert terminated
    assert reward == penalty
    assert info == {"schedule": "11110000", "failure": "killed by SIGKILL"}


def test_a_missing_metric_is_a_failure() -> None:
    env = make()
    env.reset()
    schedule = Schedule.from_key("11110000")
    measured = env.evaluator.evaluate(schedule).metrics  # type: ignore[attr-defined]
    nothing = Measurement(None, 0.0, None, None, 0, False, "too few images")
    reward, info = env.finish(Evaluation(schedule, metrics={**measured, "kid": nothing}))
    assert reward == -1.0
    assert "too few images" in info["failure"]
    assert "utility" not in info


def test_stepping_needs_an_episode() -> None:
    env = make()
    action = np.zeros(8, np.int8)
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset()
    env.step(action)
    with pytest.raises(ResetNeeded):
        env.step(action)


def test_static_features_are_observed_as_given() -> None:
    settings = settings_of(make()) | {
        "group_features": np.linspace(-2, 3, 24).reshape(8, 3),
        "group_feature_names": ("a", "b", "c"),
        "task_features": [0.5, 7.0],
    }
    env = make(**settings)
    observation, _ = env.reset()
    assert np.array_equal(observation["groups"], np.linspace(-2, 3, 24).reshape(8, 3).astype(np.float32))
    assert np.array_equal(observation["task"], [0.5, 7.0])
    assert observation in env.observation_space
    assert env.group_feature_names == ("a", "b", "c")


def settings_of(env: ParameterSelectionEnv) -> dict[str, Any]:
    observation = env.observation()
    return {
        "evaluator": env.evaluator,
        "objective": env.objective,
        "group_features": observation["groups"],
        "group_feature_names": env.group_feature_names,
        "task_features": observation["task"],
    }


@pytest.mark.parametrize(
    "bad", [{"preference": -0.1}, {"preference": 1.1}, {"horizon": 0}, {"failure_penalty": math.nan}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(InputError, match=f"^{name}={value} "):
        make_env(**bad)


def test_arrays_that_do_not_fit_are_programming_errors() -> None:
    settings = settings_of(make())
    for wrong in ({"group_features": np.zeros((7, 2))}, {"group_feature_names": ("one",)}, {"task_features": 3.0}):
        with pytest.raises(ValueError, match="got arrays of shape"):
            make_env(**settings | wrong)
    env = make()
    env.reset()
    with pytest.raises(ValueError, match="an action has shape"):
        env.step(np.zeros(7, np.int8))


def test_importing_the_package_registers_the_environment() -> None:
    assert envs.__doc__
    assert gym.spec(ID).entry_point == "envs.selection:make_env"
