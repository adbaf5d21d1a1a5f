"""A task to practise on, whose every mask costs microseconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.search.base import Experience
from envs.evaluators.base import Evaluation
from envs.task import Mask, Schedule
from rewards.errors import InputError
from rewards.measurement import Measurement
from rewards.objective import AnchoredObjective, Axes, Objective, Scale

Bits = NDArray[np.bool_]
AxesOf = Callable[[Bits], NDArray[np.float64]]
"""Of masks ``(n, g)``: quality and privacy ``(n, 2)``, in [0, 1]."""

_MOST_ENUMERATED = 10
_SAMPLED = 512
_GRID = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class Landscape:
    """What a policy sees of a task, and where each of its masks stands.

    Attributes:
        group_features: ``(g, f)``.
        task_features: ``(t,)``.
        axes: Of masks.
        objective: How axes become a utility.
    """

    group_features: NDArray[np.float32]
    task_features: NDArray[np.float32]
    axes: AxesOf
    objective: Objective

    @property
    def toggles(self) -> int:
        """How many."""
        return len(self.group_features)

    @property
    def enumerated(self) -> bool:
        """Whether `masks` are all that there are."""
        return self.toggles <= _MOST_ENUMERATED

    @cached_property
    def masks(self) -> Bits:
        """Every mask, or a fixed sample of 512 if there are more than 1024, ``(n, g)``."""
        return some_masks(self.toggles)

    @cached_property
    def regret(self) -> RegretObjective:
        """What is missing to its best, as a share of that, at every preference."""
        quality, privacy = self.axes(self.masks).T
        unit = unit_objective(self.objective)
        best = [max(float(utilities_at(unit, quality, privacy, w).max()), 1e-6) for w in _GRID]
        return RegretObjective(unit.objective, unit.quality, unit.privacy, (), tuple(best))

    def best(self, preference: float, frozen: Sequence[bool] = ()) -> Mask:
        """The mask of highest utility among those of `masks` in which what is ``frozen`` is off."""
        allowed = self.masks
        if any(frozen):
            allowed = np.unique(allowed & ~np.asarray(frozen, dtype=bool), axis=0)
        quality, privacy = self.axes(allowed).T
        best = int(np.argmax(utilities_at(unit_objective(self.objective), quality, privacy, preference)))
        return tuple(allowed[best].tolist())

    @classmethod
    def of_table(cls, experience: Experience) -> Landscape:
        """Of a task all of whose masks were measured.

        Raises:
            InputError: If some were not.
        """
        toggles = len(experience.group_features)
        known = np.full((2**toggles, 2), np.nan)
        for mask, axes in experience.outcomes.items():
            known[_numbers(np.asarray([mask]))[0]] = axes
        if np.isnan(known).any():
            raise InputError(f"of {experience.env} not every mask was measured", "learn a model of it first")
        return cls(
            experience.group_features,
            experience.task_features,
            lambda masks: known[_numbers(masks)],
            experience.objective.objective,
        )


@dataclass(frozen=True)
class RegretObjective(AnchoredObjective):
    """Minus the relative regret: 0 for the best of every task at every preference, -1 for a utility of nothing.

    Tasks differ in what can be had in them, and so do preferences. Shares of the best are what searchers are compared
    by, and a choice that costs a tenth of what there is to have costs the same in all tasks. In standard deviations
    instead, a policy learns most from tasks in which hardly anything depends on the mask. Measured from the best, good
    policies are paid about 0, which is what a value head says before it has learned anything.

    Attributes:
        best: Utilities at 21 preferences from 0 to 1, linear in between.
    """

    best: tuple[float, ...]

    def utility(self, axes: Axes, preference: float) -> float:
        """See `AnchoredObjective.utility`; 0 or less."""
        return super().utility(axes, preference) / float(np.interp(preference, _GRID, self.best)) - 1


class LandscapeEvaluator:
    """A landscape behind the seam of all evaluators; its metrics are the axes themselves.

    Args:
        landscape: What is looked up.
    """

    def __init__(self, landscape: Landscape) -> None:
        self._axes, self.groups = landscape.axes, tuple(map(str, range(landscape.toggles)))
        self._known: dict[Schedule, Evaluation] = {}

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`."""
        new = list(dict.fromkeys(schedule for schedule in schedules if schedule not in self._known))
        if new:
            found = self._axes(np.asarray([schedule.phases[0] for schedule in new]))
            for schedule, axes in zip(new, found.tolist(), strict=True):
                metrics = {
                    name: Measurement(value, None, None, None, 1, higher_is_better=True)
                    for name, value in zip(Axes._fields, axes, strict=True)
                }
                self._known[schedule] = Evaluation(schedule, metrics)
        for index, schedule in enumerate(schedules):
            yield index, self._known[schedule]

    def close(self) -> None:
        """Holds nothing."""


def unit_objective(objective: Objective) -> AnchoredObjective:
    """The same scalarisation of metrics that are called ``quality`` and ``privacy`` and lie in [0, 1] already."""
    unit = Scale(0.0, 1.0)
    same = Objective(("quality",), ("privacy",), objective.scalarization, objective.rho)
    return AnchoredObjective(same, {"quality": unit}, {"privacy": unit}, ())


def utilities_at(
    objective: AnchoredObjective, quality: NDArray[np.float64], privacy: NDArray[np.float64], preference: float
) -> NDArray[np.float64]:
    """`AnchoredObjective.utility` of many axes of any shape at once."""
    losses = (1 - preference) * (1 - quality), preference * (1 - privacy)
    total = losses[0] + losses[1]
    if objective.objective.scalarization == "weighted_sum":
        return 1 - total
    rho = objective.objective.rho
    most = max(preference, 1 - preference) + rho
    return np.asarray(1 - (np.maximum(*losses) + rho * total) / most)


def some_masks(toggles: int) -> Bits:
    """Every mask in the order of binary numbers, or of more than 1024 a fixed sample with none and all among them."""
    if toggles <= _MOST_ENUMERATED:
        return np.asarray(list(itertools.product((False, True), repeat=toggles)))
    rng = np.random.default_rng(0)
    # Of every size alike: fair coins would give masks of half the toggles only.
    shares = rng.uniform(size=(_SAMPLED, 1))
    masks = rng.uniform(size=(_SAMPLED, toggles)) < shares
    masks[0], masks[-1] = False, True
    return masks


def _numbers(masks: Bits) -> NDArray[np.intp]:
    """Masks read as binary numbers, ``(n,)``."""
    return np.asarray(masks, dtype=np.intp) @ (1 << np.arange(masks.shape[1] - 1, -1, -1))
