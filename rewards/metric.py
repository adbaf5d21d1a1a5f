"""What every metric of the suite is: a torchmetrics metric that also knows how to be measured, and when not to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torchmetrics
from torch import Tensor

from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.measurement import Measurement
from rewards.reference import Reference
from rewards.sample import Sample

Need = Literal["images", "losses", "prompts", "noise_magnitudes", "inversions"]

_WORDS: Mapping[str, str] = {
    "losses": "denoising losses",
    "prompts": "prompts",
    "noise_magnitudes": "noise magnitudes",
    "inversions": "inversions",
}


class RewardMetric(torchmetrics.Metric, ABC):
    """Stands in a file of its own beside the pure function that holds its mathematics.

    ``update``, ``compute``, ``reset`` and ``plot`` are torchmetrics' and take the function's arguments piece by piece;
    `Suite` calls `measure`, with what its metrics share. Settings are arguments of the constructor.

    Attributes:
        name: What configurations and results call it.
        higher_is_better: True if a larger value means better images, or less of the training set given away.
        needs: What it looks at: ``images``, and fields of `Evidence`.
        embeddings: Names of the embeddings in which it needs all images' features.
        distances: Names of the distances in which it needs the nearest training images.
        wants_train_neighbors: True if it also needs the training images' own nearest ones, in all its distances.
    """

    name: ClassVar[str]
    higher_is_better: bool
    needs: ClassVar[frozenset[Need]] = frozenset({"images"})
    wants_train_neighbors: ClassVar[bool] = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, embeddings: Sequence[str] = (), distances: Sequence[str] = ()) -> None:
        super().__init__()
        self.embeddings = tuple(embeddings)
        self.distances = tuple(distances)

    def neighbors(self, distinct: int) -> int:
        """How many nearest of that many distinct training images it looks at; where there are fewer, it gets fewer."""
        return 1

    @abstractmethod
    def shortfall(self, sample: Sample) -> str:
        """Why a sample that has all it `needs` is too small, with the sizes; empty if it can be measured."""

    @abstractmethod
    def estimate(self, sample: Sample) -> Estimate:
        """The value for a sample without shortfall."""

    @abstractmethod
    def null(self, reference: Reference) -> float | None:
        """The same formula with real images in place of generated ones; None if there is none or they are too few."""

    def measure(self, sample: Sample) -> Measurement:
        """The value beside its null; without a value, and with the reason as note, where there is a shortfall."""
        null = sample.reference.nulls[self.name]
        note = self._lacks(sample) or self.shortfall(sample)
        if note:
            return Measurement(None, null, None, None, 0, self.higher_is_better, note)
        value, low, high, n = self.estimate(sample)
        return Measurement(value, null, low, high, n, self.higher_is_better)

    def _lacks(self, sample: Sample) -> str:
        if "images" in self.needs and not sample.size:
            return "no image was generated"
        missing = [_WORDS[need] for need in sorted(self.needs) if need != "images" and not _there(sample, need)]
        return f"there are no {' and no '.join(missing)}" if missing else ""

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """A figure and its axes: one value as a point, several as a curve. See torchmetrics."""
        return self._plot(val, ax)


def _there(sample: Sample, need: str) -> bool:
    return getattr(sample.evidence, need) is not None


def check_setting(name: str, value: float, low: float, high: float) -> None:
    """Raises InputError unless ``low < value < high``."""
    if not low < value < high:
        raise InputError(f"{name}={value}", f"set it above {low} and below {high}")
