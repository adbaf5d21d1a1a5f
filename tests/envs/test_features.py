from __future__ import annotations

import numpy as np
import pytest

from envs.features import TASK_FEATURES, task_vector
from envs.task import InnerBudget


def features(train: int, steps: int, batch_size: int, learning_rate: float) -> dict[str, float]:
    inner = InnerBudget(steps, batch_size, learning_rate, images=1, sampling_steps=1)
    vector = task_vector(train, inner)
    assert vector.dtype == np.float32
    return dict(zip(TASK_FEATURES, vector.tolist(), strict=True))


def test_features_are_scaled_logarithms() -> None:
    assert features(100, 1000, 10, 1e-3) == pytest.approx(
        {
            "log_train_images": 2 / 5,
            "log_steps": 3 / 5,
            "log_batch_size": 1 / 3,
            "log_learning_rate": 3 / 5,
            "log_epochs": 3 / 5,
        }
    )


@pytest.mark.parametrize("budget", [(16, 60, 8, 3e-3), (32, 100, 16, 1e-4), (100_000, 50_000, 256, 1e-5)])
def test_usual_tasks_lie_in_the_unit_interval(budget: tuple[int, int, int, float]) -> None:
    assert all(0 <= value <= 1 for value in features(*budget).values())
