"""Many selections at once for Stable-Baselines3: one call to an evaluator for all that it has to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium import Wrapper, spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.selection import Observation, ParameterSelectionEnv


class SelectionVecEnv(VecEnv):
    """Sub-environments whose finished schedules go into one `Evaluator.evaluate_iter` for each of their evaluators.

    They may belong to several tasks, as long as these have equally many groups, phases and features: so a policy learns
    on many tasks at once. The observation space is the smallest that has room for all.

    Behaves as SB3's ``DummyVecEnv`` over the same environments, each in a ``Monitor``: a finished one is reset, with
    ``terminal_observation`` and ``episode`` (return ``r`` and length ``l``, but no time) in its info. `BudgetSpent`,
    raised by the evaluator, comes out of ``step_wait``: the search is over, and all environments need a reset.

    Args:
        envs: At least one; all of one shape. They may differ in preference, and in everything that is a task's.
    """

    def __init__(self, envs: Sequence[ParameterSelectionEnv]) -> None:
        self.envs = list(envs)
        first = self.envs[0]
        if len({id(env) for env in self.envs}) < len(self.envs):
            raise ValueError("the sub-environments must be distinct objects")
        self._tasks: dict[int, list[int]] = {}
        for i, env in enumerate(self.envs):
            self._tasks.setdefault(id(env.evaluator), []).append(i)
        super().__init__(len(self.envs), _room_for_all(self.envs), first.action_space)
        observations = [env.observation() for env in self.envs]
        self._batch = {key: np.stack([each[key] for each in observations]) for key in observations[0]}
        self._rows = [{key: array[i] for key, array in self._batch.items()} for i in range(self.num_envs)]
        self._actions: NDArray[Any] = np.empty(0)

    def reset(self) -> VecEnvObs:
        """Starts an episode in every sub-environment."""
        for env, row, seed in zip(self.envs, self._rows, self._seeds, strict=True):
            env.reset(seed=seed)
            env.observe(row)
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes one action a sub-environment, ``(num_envs, G)``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Evaluates the schedules that are complete, together, and steps every sub-environment."""
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        dones = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in self.envs]
        chosen = [env.choose(action) for env, action in zip(self.envs, self._actions, strict=True)]
        for members in self._tasks.values():
            complete = [(i, schedule) for i in members if (schedule := chosen[i]) is not None]
            if not complete:
                continue
            evaluator = self.envs[members[0]].evaluator
            for position, evaluation in evaluator.evaluate_iter([schedule for _, schedule in complete]):
                i = complete[position][0]
                env = self.envs[i]
                reward, info = env.finish(evaluation)
                rewards[i], dones[i] = reward, True
                infos[i] |= info
                infos[i]["episode"] = {"r": reward, "l": env.horizon}
                infos[i]["terminal_observation"] = env.observation()
                env.begin()
        for env, row in zip(self.envs, self._rows, strict=True):
            env.observe(row)
        return self._observations(), rewards, dones, infos

    def close(self) -> None:
        """Closes the sub-environments; the evaluator belongs to the caller."""
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See `VecEnv.get_attr`."""
        return [getattr(self.envs[i], attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See `VecEnv.set_attr`."""
        for i in self._get_indices(indices):
            setattr(self.envs[i], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """See `VecEnv.env_method`."""
        return [getattr(self.envs[i], method_name)(*method_args, **method_kwargs) for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """They never are; see `VecEnv.env_is_wrapped`."""
        return [False for _ in self._get_indices(indices)]

    def _observations(self) -> Observation:
        return {key: array.copy() for key, array in self._batch.items()}


def _room_for_all(envs: Sequence[ParameterSelectionEnv]) -> spaces.Dict:
    """The smallest space that holds every observation of all of them."""
    every = [cast("spaces.Dict", env.observation_space) for env in envs]
    if any({k: s.shape for k, s in each.items()} != {k: s.shape for k, s in every[0].items()} for each in every):
        raise ValueError("the sub-environments must have observations of one shape")
    joint = dict(every[0].items())
    for key in ("groups", "task"):
        boxes = [cast("spaces.Box", each[key]) for each in every]
        low = np.minimum.reduce([box.low for box in boxes])
        joint[key] = spaces.Box(low, np.maximum.reduce([box.high for box in boxes]), dtype=np.float32)
    return spaces.Dict(joint)
