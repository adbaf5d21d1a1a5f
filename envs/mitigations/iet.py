"""Iterative Ensemble Training: several models on shards of the data, averaged again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.base import Backbone
from envs.course import Training, set_values, values
from envs.datasets.base import ImageSet
from envs.learner import Learner
from envs.mitigations.augment import origins_of
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment
from envs.seeding import torch_generator
from envs.task import InnerBudget
from rewards.errors import InputError


@dataclass(frozen=True)
class IterativeEnsembleTraining(Mitigation):
    """Shards that share no image, equal in classes; a learner trains on each, and their weights are averaged in rounds.

    Liu et al., ECCV 2024, arXiv 2407.15328. Every learner is made once: its optimizer's moments, its warm-up, and what
    other mitigations remember are its own and stay. After each round all of them go on from the mean of the weights,
    weighted by the shards' sizes. What is equal to plain training is the number of gradient steps of all learners
    together, so that the costs are equal; the steps that any one weight went through in a row are ``shards`` times
    fewer, which the figure ``iet.sequential_steps`` reports.

    Attributes:
        shards: How many; the paper has 10 for CIFAR-10 and 4 for Stable Diffusion.
        rounds: After each the weights are averaged; the paper has 10.
    """

    shards: int = 4
    rounds: int = 5
    name: ClassVar[str] = "iet"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Liu et al., ECCV 2024, arXiv 2407.15328"

    def __post_init__(self) -> None:
        for setting in ("shards", "rounds"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self.refused(setting, "set it to a whole number of 1 or more")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        first = first_versions(images)
        labels, counts = np.unique(images.labels[first], return_counts=True)
        if len(first) < self.shards or counts.min() < self.shards:
            one = f"class {labels[counts.argmin()]} has {counts.min()}"
            few = one if len(labels) > 1 else f"there are {len(first)}"
            raise InputError(
                f"mitigation.iet.shards={self.shards}: {few} training images",
                f"set it to {counts.min()} or less, so that every shard has images of every class",
            )

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        budget = situation.budget
        if budget.steps < self.shards * self.rounds:
            raise InputError(
                f"inner.steps={budget.steps} for {self.shards} shards in each of {self.rounds} rounds",
                f"set it to {self.shards * self.rounds} or more, or lower mitigation.iet.rounds",
            )
        images = situation.images
        dealt = shards_of(images.labels[first_versions(images)], self.shards, situation.seed)
        # Versions of one image stay together: else every learner would know every image.
        origins = torch.from_numpy(origins_of(images))
        shards = [torch.isin(origins, shard).nonzero().flatten() for shard in dealt]

        def course(training: Training) -> Mapping[str, float]:
            return in_rounds(training, shards, self.rounds)

        return Treatment(course=course)


def first_versions(images: ImageSet) -> NDArray[np.int64]:
    """Rows of the first version of each image; of all rows, unless images were augmented."""
    _, first = np.unique(origins_of(images), return_index=True)
    return np.asarray(first, dtype=np.int64)


def shards_of(labels: NDArray[np.int64], count: int, seed: int) -> list[Tensor]:
    """Rows of ``count`` shards: every class is dealt out in turn, so that shards differ by one image of it at most.

    Args:
        labels: Of the images, ``(n,)``.
        count: Of shards.
        seed: Of the order within a class.
    """
    generator, dealt = torch_generator(seed, "shards"), list[int]()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        dealt.extend(rows[torch.randperm(len(rows), generator=generator).numpy()].tolist())
    return [torch.tensor(sorted(dealt[i::count]), dtype=torch.long) for i in range(count)]


def in_rounds(training: Training, shards: Sequence[Tensor], rounds: int) -> Mapping[str, float]:
    """Trains a learner a shard, all steps of all learners together being the budget's."""
    # One shard is plain training, batch by batch.
    learners = [
        training.learner(rows if len(shards) > 1 else None, budget)
        for rows, budget in zip(shards, budgets_of(training.budget, len(shards)), strict=True)
    ]
    sizes = torch.tensor([len(rows) for rows in shards], dtype=torch.float64)
    weights = (sizes / sizes.sum()).tolist()
    for number in range(1, rounds + 1):
        start, found = values(training.parameters), []
        for learner in learners:
            set_values(training.parameters, start)
            learner.learn(round(number * learner.budget.steps / rounds) - learner.step)
            found.append(values(training.parameters))
        set_values(training.parameters, averaged(found, weights))
        share(learners, weights)
        if training.look(learners[0], sum(learner.step for learner in learners)):
            break
    training.deliver(learners[0])
    return {"iet.sequential_steps": float(learners[0].step)}


def budgets_of(whole: InnerBudget, count: int) -> list[InnerBudget]:
    """Of ``count`` learners, whose steps add up to the whole's; each has the whole's warm-up, if it is long enough."""
    least, more = divmod(whole.steps, count)
    steps = [least + (i < more) for i in range(count)]
    return [replace(whole, steps=own, warmup=min(whole.warmup, own - 1)) for own in steps]


def averaged(each: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> list[Tensor]:
    """The weighted mean of several lists of tensors."""
    if len(each) == 1:
        return list(each[0])
    return [
        sum((w * tensor.double() for w, tensor in zip(weights, same, strict=True)), torch.zeros(())).to(same[0].dtype)
        for same in zip(*each, strict=True)
    ]


@torch.no_grad()
def share(learners: Sequence[Learner], weights: Sequence[float]) -> None:
    """Averages what their hooks share."""
    each = [[tensor for hook in learner.hooks for tensor in hook.shared()] for learner in learners]
    for mean, same in zip(averaged(each, weights), zip(*each, strict=True), strict=True):
        for tensor in same:
            tensor.copy_(mean)
