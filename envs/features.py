"""What a policy may know about a task as a whole."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.task import InnerBudget

TASK_FEATURES = ("log_train_images", "log_steps", "log_batch_size", "log_learning_rate", "log_epochs")
"""Names of the entries of `task_vector`."""


def task_vector(train_images: int, inner: InnerBudget) -> NDArray[np.float32]:
    """`TASK_FEATURES`: decimal logarithms, scaled to lie within about [0, 1]."""
    epochs = inner.steps * inner.batch_size / train_images
    return np.asarray(
        [
            math.log10(train_images) / 5,
            math.log10(inner.steps) / 5,
            math.log10(inner.batch_size) / 3,
            (math.log10(inner.learning_rate) + 6) / 5,
            (math.log10(epochs) + 1) / 5,
        ],
        dtype=np.float32,
    )
