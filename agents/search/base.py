"""The one seam of every search: what a `Searcher` knows, what it may ask, and how its requests are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.evaluators.base import Evaluation, Evaluator, evaluate_many
from envs.task import Mask, Schedule
from rewards.objective import AnchoredObjective, Axes, NotMeasuredError


class Outcome(NamedTuple):
    """The answer to one mask.

    Attributes:
        mask: What was asked for.
        axes: Where it stands; None if the evaluation failed.
        failure: Why it failed; empty if it did not.
    """

    mask: Mask
    axes: Axes | None
    failure: str = ""


@dataclass(frozen=True)
class SearchProblem:
    """One task, as every searcher sees it: what may be known before anything is measured, and a way to measure.

    Attributes:
        evaluator: Answers schedules, and raises `BudgetSpent` beyond its allowance of distinct ones; repeats are free.
        objective: Anchored at the task's base model and full fine-tuning. So the axes of the all-off and the all-on
            mask are known, (0, 1) and (1, 0), to every searcher.
        group_features: ``(g, f)``, one row a toggle.
        group_feature_names: Its columns.
        task_features: ``(t,)``.
        task_feature_names: Its entries.
        preference: The weight of privacy in the utility to maximise; None to look for the whole Pareto front.
        frozen: Toggles that the user keeps off; they are on in no mask that a searcher asks for.
        parallel: How many schedules the evaluator works on side by side; asking for as many at once costs no more time.
    """

    evaluator: Evaluator
    objective: AnchoredObjective
    group_features: NDArray[np.float32]
    group_feature_names: tuple[str, ...]
    task_features: NDArray[np.float32]
    task_feature_names: tuple[str, ...]
    preference: float | None = None
    frozen: Mask = ()
    parallel: int = 1

    @property
    def toggles(self) -> int:
        """How many toggles a mask has."""
        return len(self.evaluator.groups)

    @property
    def free(self) -> tuple[int, ...]:
        """Indices of the toggles that may be on, in order."""
        frozen = self.frozen or (False,) * self.toggles
        return tuple(i for i, off in enumerate(frozen) if not off)

    def mask(self, on: Sequence[int]) -> Mask:
        """The mask in which exactly the toggles with these indices are on."""
        return tuple(i in set(on) for i in range(self.toggles))

    def ask(self, masks: Sequence[Mask]) -> list[Outcome]:
        """Measures masks, in their order.

        Raises:
            BudgetSpent: If the budget has no room for one of them. Those that it had room for were measured.
        """
        return [self.outcome(e) for e in evaluate_many(self.evaluator, [Schedule.constant(mask) for mask in masks])]

    def outcome(self, evaluation: Evaluation) -> Outcome:
        """Where an evaluation of a schedule with one phase stands."""
        (mask,) = evaluation.schedule.phases
        if evaluation.failure:
            return Outcome(mask, None, evaluation.failure)
        try:
            return Outcome(mask, self.objective.axes(evaluation.metrics))
        except NotMeasuredError as error:
            return Outcome(mask, None, str(error))

    def utility(self, axes: Axes, preference: float | None = None) -> float:
        """At ``preference``, by default the problem's, which must then have one."""
        weight = self.preference if preference is None else preference
        assert weight is not None, "a search for the whole front has no single utility"
        return self.objective.utility(axes, weight)


@dataclass(frozen=True)
class Experience:
    """What is known of another task: everything that a policy may see there, and what was measured.

    Attributes:
        env: Its data set.
        task: Its id.
        objective: Anchored there.
        group_features: ``(g, f)``.
        group_feature_names: Its columns.
        task_features: ``(t,)``.
        task_feature_names: Its entries.
        outcomes: Measured masks, each once, without failures; both anchors are among them.
        noise: Standard deviation of one measurement on both axes between seeds; None if it is not known.
    """

    env: str
    task: str
    objective: AnchoredObjective
    group_features: NDArray[np.float32]
    group_feature_names: tuple[str, ...]
    task_features: NDArray[np.float32]
    task_feature_names: tuple[str, ...]
    outcomes: Mapping[Mask, Axes]
    noise: Axes | None = None

    def utilities(self, preference: float) -> dict[Mask, float]:
        """Of every measured mask, at a weight of privacy."""
        return {mask: self.objective.utility(axes, preference) for mask, axes in self.outcomes.items()}

    def best(self, preference: float) -> Mask:
        """The measured mask of highest utility; of equals, the first."""
        utilities = self.utilities(preference)
        return max(utilities, key=lambda mask: utilities[mask])


class Searcher(Protocol):
    """Looks for good masks.

    A searcher is a pure function of the problem, its own settings and the seed. It may be used several times, one after
    another, and keeps nothing between two searches.
    """

    @property
    def name(self) -> str:
        """The field's name of the method, as users write it."""
        ...

    def search(self, problem: SearchProblem, seed: int) -> None:
        """Asks until it has nothing more to ask, or `BudgetSpent` comes out of `SearchProblem.ask`.

        Whoever calls it records the answers behind ``problem.evaluator``, lets `BudgetSpent` end the search, and judges
        the searcher by the best of them.
        """
        ...
