"""How a fine-tune comes to its last step: by one learner, or by several that share what they learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.batches import TrainingSet, endless_batches
from envs.hooks import Hooks
from envs.learner import DivergedError, Learner
from envs.seeding import derive_seed
from envs.task import InnerBudget

MakeHooks = Callable[[int], Hooks]
"""Makes the hooks of a learner from its number."""


class Watcher(Protocol):
    """Looks at the model on the way, and may choose another state than the last.

    Attributes:
        every: Steps between two looks.
    """

    @property
    def every(self) -> int:
        """Steps between two looks."""
        ...

    def look(self, step: int) -> bool:
        """Called with the model as the fine-tune would end with it now; True ends the fine-tune."""
        ...

    def choice(self) -> int:
        """Number of the look, from 0, whose model is the result."""
        ...

    def figures(self) -> dict[str, float]:
        """What became of it, by name."""
        ...


@dataclass
class Training:
    """One phase of a fine-tune under way; of what is not plain training, there is one phase only.

    Attributes:
        backbone: What learns, in place.
        parameters: Those that may move; the others require no gradient.
        data: The training images.
        budget: Of the whole fine-tune.
        seed: Of batches, noise and timesteps.
        first: Number of the phase's first step.
        stop: Number of the first step after it.
        hooks: Of each learner.
        watcher: If there is one.
        learners: Made so far.
    """

    backbone: Backbone
    parameters: Sequence[nn.Parameter]
    data: TrainingSet
    budget: InnerBudget
    seed: int
    first: int
    stop: int
    hooks: Sequence[MakeHooks] = ()
    watcher: Watcher | None = None
    learners: list[Learner] = field(default_factory=list)
    _kept: list[list[Tensor]] = field(default_factory=list)

    def learner(self, rows: Tensor | None = None, budget: InnerBudget | None = None) -> Learner:
        """A new one.

        Args:
            rows: The images it learns from, ``(n,)``; None for all of them, in the batches that plain training sees.
            budget: Its own; None for that of the whole fine-tune.
        """
        number = len(self.learners)
        hooks = [make(number) for make in self.hooks]
        own = self.budget if budget is None else budget
        draws = endless_batches(
            self.data,
            own,
            self.backbone.timesteps,
            self.seed if rows is None else derive_seed(self.seed, "learner", number),
            rows=rows,
            hooks=hooks,
        )
        first = self.first if budget is None else 0
        draws = itertools.islice(draws, first, None)  # batches do not depend on what was on in the phases before
        self.learners.append(Learner(self.backbone, self.parameters, draws, own, hooks, first=first))
        return self.learners[-1]

    def look(self, learner: Learner, step: int) -> bool:
        """Shows the watcher what this learner would deliver; True if it ends the fine-tune."""
        if self.watcher is None:
            return False
        with learner.delivered(), self.backbone.eager():
            ended = self.watcher.look(step)
            self._kept.append(values(self.parameters))
        chosen = self.watcher.choice()
        # Of the looks only the chosen one is needed again.
        self._kept = [kept if i == chosen else [] for i, kept in enumerate(self._kept)]
        return ended

    def deliver(self, learner: Learner) -> None:
        """Leaves the parameters as the fine-tune ends with them."""
        if self.watcher is not None:
            set_values(self.parameters, self._kept[self.watcher.choice()])
        elif learner.hooks:
            with learner.delivered():
                final = values(self.parameters)
            set_values(self.parameters, final)

    @property
    def steps(self) -> int:
        """Steps taken by all learners.

        Raises:
            DivergedError: If in fp16 no step's gradients were finite.
        """
        taken, overflown = (sum(getattr(each, name) for each in self.learners) for name in ("taken", "overflown"))
        if overflown and not taken:
            raise DivergedError(f"the gradients of all {overflown} steps overflow in fp16")
        return int(taken)

    def figures(self) -> Mapping[str, float]:
        """Of the hooks, each the mean over learners, and of the watcher."""
        of_learners = [{n: v for hook in each.hooks for n, v in hook.figures().items()} for each in self.learners]
        names = of_learners[0] if of_learners else {}
        means = {name: sum(each[name] for each in of_learners) / len(of_learners) for name in names}
        return means | ({} if self.watcher is None else self.watcher.figures())


Course = Callable[[Training], Mapping[str, float]]
"""Takes a fine-tune to its end and returns figures of its own, by name."""


def one_learner(training: Training) -> Mapping[str, float]:
    """Plain training: every step by the same learner."""
    learner, watcher = training.learner(), training.watcher
    pauses = () if watcher is None else range(training.first + watcher.every, training.stop, watcher.every)
    for step in (*pauses, training.stop):
        learner.learn(step - learner.step)
        if training.look(learner, step):
            break
    training.deliver(learner)
    return {}


def values(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A copy of what they are."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def set_values(parameters: Sequence[nn.Parameter], new: Sequence[Tensor]) -> None:
    """Changes them in place."""
    for parameter, value in zip(parameters, new, strict=True):
        parameter.copy_(value)
