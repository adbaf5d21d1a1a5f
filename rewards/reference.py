"""What generated images are compared with, computed once a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as the suite's embeddings see them, and each metric's null. Build it with `Suite.reference`.

    Attributes:
        train_size: Images of the private training set.
        judge_size: Real images of other patients that quality is measured against and nulls are measured on.
        train: Float ``(train_size, d)``, by embedding.
        flipped_train: The same of the images flipped left to right.
        judge: Float ``(judge_size, d)``, by embedding.
        null_distances: float64 ``(judge_size,)``, by embedding: from each judge image to its nearest training image.
        nulls: Each metric's value with real images in place of generated ones, by metric; None where there is none.
    """

    train_size: int
    judge_size: int
    train: Mapping[str, Tensor]
    flipped_train: Mapping[str, Tensor]
    judge: Mapping[str, Tensor]
    null_distances: Mapping[str, Tensor]
    nulls: Mapping[str, float | None] = field(default_factory=dict)
