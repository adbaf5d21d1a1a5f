"""The choice of what may learn as a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from envs.evaluators.base import Evaluation, Evaluator, evaluate_many
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.task import Schedule
from rewards.errors import InputError
from rewards.objective import AnchoredObjective, NotMeasuredError, Objective

Observation = dict[str, NDArray[Any]]


class ParameterSelectionEnv(gym.Env[Observation, NDArray[np.int8]]):
    """An episode chooses one mask of layer groups for each phase of an inner fine-tune, which its last step then runs.

    Action: ``MultiBinary(G)``, 1 where the group may learn in this phase. Reward: 0 until the last phase is chosen,
    then the utility of what the schedule led to. Observation, all float32 but ``chosen``:

    - ``groups`` (G, F): the groups' features, the same in every step.
    - ``task`` (T,): the task's features, the same in every step.
    - ``preference`` (1,): the weight of privacy in this episode's utility, in [0, 1].
    - ``progress`` (1,): phases chosen / phases in all.
    - ``chosen`` (horizon, G), int8: the masks chosen so far, zeros after.

    A group that the user froze is off in every phase, whatever an action says; `action_masks` tells algorithms that can
    leave such actions out (sb3-contrib's MaskablePPO).

    ``info`` is empty until the last step, then holds ``schedule`` (its key) and either ``quality``, ``privacy`` and
    ``utility`` or, if the evaluation failed, ``failure`` (the reason). It has no wall times: equal seeds and actions
    give equal infos.

    Args:
        evaluator: Turns the schedule into an evaluation. The caller owns it and closes it.
        objective: Turns metrics into the reward.
        group_features: (G, F), one row for each of the evaluator's groups.
        group_feature_names: F names, for whoever reads a policy that was trained on them.
        task_features: (T,).
        preference: The weight of privacy in [0, 1], or None to draw one uniformly for each episode.
        horizon: Phases, at least 1.
        failure_penalty: The reward where an evaluation failed; finite.
        frozen: One entry a group, True where it stays off; empty if none does.

    Raises:
        InputError: If ``preference``, ``horizon`` or ``failure_penalty`` is outside its range.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        objective: AnchoredObjective,
        group_features: ArrayLike,
        group_feature_names: tuple[str, ...],
        task_features: ArrayLike,
        preference: float | None = None,
        horizon: int = 1,
        failure_penalty: float = -1.0,
        frozen: Sequence[bool] = (),
    ) -> None:
        if preference is not None and not 0 <= preference <= 1:
            raise InputError(f"preference={preference}", "set it to the weight of privacy, 0 to 1")
        if horizon < 1:
            raise InputError(f"horizon={horizon}", "set it to the number of phases, 1 or more")
        if not math.isfinite(failure_penalty):
            raise InputError(f"failure_penalty={failure_penalty}", "set it to a finite reward")
        self.evaluator, self.objective = evaluator, objective
        self.group_feature_names = tuple(group_feature_names)
        self.horizon, self.failure_penalty = horizon, float(failure_penalty)
        self._groups = np.asarray(group_features, dtype=np.float32)
        self._task = np.asarray(task_features, dtype=np.float32)
        size = len(evaluator.groups)
        if self._groups.shape != (size, len(self.group_feature_names)) or self._task.ndim != 1:
            raise ValueError(
                f"{size} groups with features {self.group_feature_names} and a task vector, "
                f"got arrays of shape {self._groups.shape} and {self._task.shape}"
            )
        if len(frozen) not in (0, size):
            raise ValueError(f"frozen has {len(frozen)} entries, for {size} groups")
        self.frozen = np.asarray(frozen if len(frozen) else [False] * size, dtype=bool)
        self.action_space = spaces.MultiBinary(size)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # Gymnasium calls it a space of spaces
            {
                "groups": _box_around(self._groups),
                "task": _box_around(self._task),
                "preference": spaces.Box(0, 1, (1,), np.float32),
                "progress": spaces.Box(0, 1, (1,), np.float32),
                "chosen": spaces.MultiBinary([horizon, size]),
            }
        )
        self._fixed_preference = preference
        self._chosen = np.zeros((horizon, size), dtype=np.int8)
        self._phase = horizon
        self._preference = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; see `gymnasium.Env.reset`. There are no options."""
        super().reset(seed=seed)
        self.begin()
        return self.observation(), {}

    def step(self, action: NDArray[np.int8]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Chooses the mask of one phase; the last step evaluates the schedule; see `gymnasium.Env.step`."""
        schedule = self.choose(action)
        if schedule is None:
            return self.observation(), 0.0, False, False, {}
        reward, info = self.finish(evaluate_many(self.evaluator, [schedule])[0])
        return self.observation(), reward, True, False, info

    def begin(self) -> None:
        """Starts an episode without looking at it; for a vector environment."""
        self._chosen[:] = 0
        self._phase = 0
        fixed = self._fixed_preference
        self._preference = float(self.np_random.random()) if fixed is None else fixed

    def choose(self, action: NDArray[np.int8]) -> Schedule | None:
        """Sets the next phase's mask. Returns the schedule, to be evaluated for `finish`, once it is complete."""
        if self._phase == self.horizon:
            raise ResetNeeded("the episode is over: call reset()")
        mask = np.asarray(action)
        if mask.shape != self._chosen.shape[1:]:
            raise ValueError(f"an action has shape {self._chosen.shape[1:]}, got {mask.shape}")
        self._chosen[self._phase] = (mask != 0) & ~self.frozen
        self._phase += 1
        if self._phase < self.horizon:
            return None
        return Schedule(tuple(tuple(row) for row in self._chosen.astype(bool).tolist()))

    def finish(self, evaluation: Evaluation) -> tuple[float, dict[str, Any]]:
        """The last step's reward and info, from the evaluation of the schedule that `choose` gave out."""
        key, failure = evaluation.schedule.key, evaluation.failure
        if not failure:
            try:
                axes = self.objective.axes(evaluation.metrics)
            except NotMeasuredError as error:
                failure = str(error)
        if failure:
            return self.failure_penalty, {"schedule": key, "failure": failure}
        utility = self.objective.utility(axes, self._preference)
        return utility, {"schedule": key, "quality": axes.quality, "privacy": axes.privacy, "utility": utility}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which values an action's entries may have, ``(2 G,)``: off and on of the first group, of the second, ..."""
        return np.stack([np.ones_like(self.frozen), ~self.frozen], axis=1).reshape(-1)

    def observation(self) -> Observation:
        """The current observation, in arrays of its own."""
        observation: Observation = {
            "groups": self._groups.copy(),
            "task": self._task.copy(),
            "preference": np.empty(1, np.float32),
            "progress": np.empty(1, np.float32),
            "chosen": np.empty_like(self._chosen),
        }
        self.observe(observation)
        return observation

    def observe(self, into: Observation) -> None:
        """Writes what changes from step to step into existing arrays."""
        into["preference"][0] = self._preference
        into["progress"][0] = self._phase / self.horizon
        into["chosen"][:] = self._chosen


def make_env(**settings: Any) -> ParameterSelectionEnv:
    """What ``gym.make("memcontrol/ParameterSelection-v0", ...)`` calls; the synthetic task unless given an evaluator.

    Args:
        settings: Of `ParameterSelectionEnv`.
    """
    return ParameterSelectionEnv(**(settings if "evaluator" in settings else _synthetic() | settings))


def _synthetic() -> dict[str, Any]:
    """Eight invented groups, with the objective anchored at their own untouched and fully trained models."""
    evaluator = SyntheticEvaluator([f"group {i}" for i in range(8)], seed=0)
    base, full = (evaluator.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
    share = np.asarray(evaluator.parameters) / sum(evaluator.parameters)
    return {
        "evaluator": evaluator,
        "objective": Objective().anchor(base.metrics, full.metrics),
        "group_features": np.column_stack([np.linspace(0, 1, 8), share]),
        "group_feature_names": ("depth", "share"),
        "task_features": np.ones(1),
    }


def _box_around(features: NDArray[np.float32]) -> spaces.Box:
    """[0, 1], or wider where the features are."""
    return spaces.Box(min(0.0, features.min()), max(1.0, features.max()), features.shape, np.float32)
