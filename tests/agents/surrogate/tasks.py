"""Invented tasks whose axes are a sum over tokens, so that a model of several can know the next one."""

from __future__ import annotations

import itertools

import numpy as np

from agents.search.base import Experience
from rewards.objective import AnchoredObjective, Axes, Objective, Scale

OBJECTIVE = AnchoredObjective(
    Objective(("quality",), ("privacy",)), {"quality": Scale(0, 1)}, {"privacy": Scale(0, 1)}, ()
)


def task(seed: int, *, toggles: int = 5, env: str | None = None, luck: float = 0.0) -> Experience:
    """Quality is the share of all gains that is on, privacy one minus that of all leaks.

    Args:
        seed: Of the features.
        toggles: How many.
        env: Its data set; by default one of its own.
        luck: Standard deviation of the noise on every axis of every mask but the anchors.
    """
    rng = np.random.default_rng(seed)
    features = rng.uniform(size=(toggles, 3)).astype(np.float32)
    gains, leaks = 0.2 + features[:, 0], 0.2 + features[:, 1]
    outcomes = {}
    for mask in itertools.product((False, True), repeat=toggles):
        on = np.asarray(mask)
        axes = np.asarray([gains[on].sum() / gains.sum(), 1 - leaks[on].sum() / leaks.sum()])
        if 0 < on.sum() < toggles:
            axes = np.clip(axes + luck * rng.standard_normal(2), 0, 1)
        outcomes[mask] = Axes(*axes.tolist())
    return Experience(
        env=env or f"env {seed}",
        task=f"task {seed}",
        objective=OBJECTIVE,
        group_features=features,
        group_feature_names=("gain", "leak", "nothing"),
        task_features=rng.uniform(size=2).astype(np.float32),
        task_feature_names=("a", "b"),
        outcomes=outcomes,
    )
