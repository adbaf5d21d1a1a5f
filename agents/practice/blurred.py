"""An environment whose features are seen as through a fog that moves."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.selection import Observation, ParameterSelectionEnv

Floats = NDArray[np.float32]


class BlurredSelectionEnv(ParameterSelectionEnv):
    """Noise on the features of groups and task, drawn anew for every episode.

    A policy that has seen few data sets would otherwise know each by its features, learn by heart what is best there,
    and guess elsewhere. Noise that stays the same for an environment is no help: it can be learned by heart as well.

    Args:
        group_noise: Standard deviation for each column of the group features, ``(F,)``.
        task_noise: For each task feature, ``(T,)``.
        settings: Of `ParameterSelectionEnv`.
    """

    def __init__(self, group_noise: Floats, task_noise: Floats, **settings: Any) -> None:
        super().__init__(**settings)
        self._clear = self._groups, self._task
        self._noise = group_noise, task_noise
        seen = cast("spaces.Dict", self.observation_space)
        for key, array in (("groups", self._groups), ("task", self._task)):
            seen[key] = spaces.Box(-np.inf, np.inf, array.shape, np.float32)

    def begin(self) -> None:
        """See `ParameterSelectionEnv.begin`."""
        super().begin()
        self._groups, self._task = (
            (clear + noise * self.np_random.standard_normal(clear.shape)).astype(np.float32)
            for clear, noise in zip(self._clear, self._noise, strict=True)
        )

    def observe(self, into: Observation) -> None:
        """See `ParameterSelectionEnv.observe`; features change from episode to episode."""
        super().observe(into)
        into["groups"][:], into["task"][:] = self._groups, self._task
