"""What generated images are compared with, computed once a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rewards.neighbors import Neighbors


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images as the suite's metrics see them, and each metric's null. Build it with `Suite.reference`.

    Training images that are near-duplicates of one another count as one wherever neighbours are counted.

    Attributes:
        train_images: uint8 ``(n, 3, h, w)``: the private training set.
        judge_size: m, real images of other patients that quality is measured against and nulls are measured on.
        labels: int64 ``(n,)``: equal for training images that are near-duplicates.
        train: Float ``(n, d)``, by embedding.
        flipped_train: The same of the images flipped left to right.
        judge: Float ``(m, d)``, by embedding.
        judge_neighbors: Of the judge's images in the training set ``(m, k)``, by distance.
        train_neighbors: Of each training image among the others ``(n, 1)``, by distance; only of distances of which
            some metric asks for it, and only if there are two distinct training images.
        nulls: Each metric's value with real images in place of generated ones, by metric; None where there is none.
    """

    train_images: Tensor
    judge_size: int
    labels: Tensor
    train: Mapping[str, Tensor]
    flipped_train: Mapping[str, Tensor]
    judge: Mapping[str, Tensor]
    judge_neighbors: Mapping[str, Neighbors]
    train_neighbors: Mapping[str, Neighbors]
    nulls: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def train_size(self) -> int:
        """Training images, near-duplicates included."""
        return len(self.train_images)

    @property
    def distinct(self) -> int:
        """Training images when near-duplicates count as one."""
        return int(self.labels.max()) + 1

    def null_distances(self, distance: str) -> Tensor:
        """float64 ``(m,)``: from each of the judge's images to its nearest training image."""
        return self.judge_neighbors[distance].distances[:, 0]
