"""One search, evaluation by evaluation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agents.search.base import Searcher, SearchProblem
from agents.search.experience import measured_axes, problem_of
from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from envs.evaluators.table import EvaluationTable
from envs.evaluators.tabular import TabularEvaluator
from envs.task import Mask, Schedule
from rewards.objective import Axes, Objective, hypervolume

_DIGITS = 6


@dataclass(frozen=True)
class Trace:
    """What a searcher asked for in a table, one entry a distinct evaluation, in its order.

    Attributes:
        seed: Of the run; with the table's data source it decides the searcher's seed.
        preference: Weight of privacy; None if the whole front was looked for.
        masks: What was asked for, as keys of schedules.
        quality: None where the evaluation failed.
        privacy: The same.
        best: Best utility so far, or with no preference the hypervolume so far; 0 before anything succeeded.
        fine_tuning: Seconds of the fine-tunes so far, as they took when the table was made.
        searching: Seconds of the searcher itself so far, learning from other tasks included if this run paid for it.
        limit: The best utility of the table, or its whole hypervolume.
        anchor: The utility of the better anchor, or their hypervolume: what everybody knows without an evaluation.
        foreseeable: The utility of the mask that looks best to somebody who is told all others, see `follow`; None
            without a preference.
    """

    seed: int
    preference: float | None
    masks: tuple[str, ...]
    quality: tuple[float | None, ...]
    privacy: tuple[float | None, ...]
    best: tuple[float, ...]
    fine_tuning: tuple[float, ...]
    searching: tuple[float, ...]
    limit: float
    anchor: float
    foreseeable: float | None

    @property
    def key(self) -> tuple[int, float | None]:
        """Tells the runs of a searcher on a table apart."""
        return self.seed, self.preference

    def to_json(self) -> dict[str, Any]:
        """JSON values; see `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Trace:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
        return cls(**values)


def follow(
    searcher: Searcher,
    table: EvaluationTable,
    objective: Objective,
    preference: float | None,
    budget: int,
    *,
    seed: int,
    searcher_seed: int,
    foretold: Mapping[Mask, Axes],
) -> Trace:
    """Lets a searcher search in a table, and writes down what it asks for.

    Args:
        searcher: Sees what it asks for, and the features.
        table: The problem.
        objective: What is searched for.
        preference: Weight of privacy; None for the whole front.
        budget: Distinct evaluations.
        seed: Names the run.
        searcher_seed: What the searcher gets.
        foretold: Of each mask, what a model of the table's other masks expects: what can be known of a mask without
            its own measurement, and thus without that measurement's luck.
    """
    problem = problem_of(table, objective, preference, budget)
    watched = _Watched(TabularEvaluator(table))
    problem = dataclasses.replace(problem, evaluator=BudgetedEvaluator(watched, budget))
    watched.start()
    with suppress(BudgetSpent):
        searcher.search(problem, searcher_seed)
    axes = [problem.outcome(evaluation).axes for evaluation in watched.found.values()]
    everything = measured_axes(table, problem.objective)
    worth = _Worth(problem)
    seconds = 0.0
    fine_tuning = []
    for evaluation in watched.found.values():
        seconds += evaluation.seconds
        fine_tuning.append(round(seconds, 3))
    return Trace(
        seed,
        preference,
        tuple(schedule.key for schedule in watched.found),
        tuple(None if at is None else round(at.quality, _DIGITS) for at in axes),
        tuple(None if at is None else round(at.privacy, _DIGITS) for at in axes),
        tuple(round(worth.of([at for at in axes[: i + 1] if at is not None]), _DIGITS) for i in range(len(axes))),
        tuple(fine_tuning),
        tuple(round(at, 4) for at in watched.times),
        round(worth.of(list(everything.values())), _DIGITS),
        round(worth.of([Axes(0, 1), Axes(1, 0)]), _DIGITS),
        None if preference is None else round(_foreseeable(problem, everything, foretold), _DIGITS),
    )


def _foreseeable(problem: SearchProblem, measured: Mapping[Mask, Axes], foretold: Mapping[Mask, Axes]) -> float:
    chosen = max(measured, key=lambda mask: problem.utility(foretold[mask]))
    return problem.utility(measured[chosen])


class _Watched:
    """Remembers every distinct evaluation, and when it was asked for.

    Args:
        inner: What evaluates.
    """

    def __init__(self, inner: TabularEvaluator) -> None:
        self.inner = inner
        self.found: dict[Schedule, Evaluation] = {}
        self.times: list[float] = []
        self._started = 0.0

    def start(self) -> None:
        """From here on the searcher's time is counted."""
        self._started = time.perf_counter()

    @property
    def groups(self) -> tuple[str, ...]:
        return self.inner.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        asked = time.perf_counter() - self._started
        for index, evaluation in self.inner.evaluate_iter(schedules):
            if evaluation.schedule not in self.found:
                self.found[evaluation.schedule] = evaluation
                self.times.append(asked)
            yield index, evaluation

    def close(self) -> None:
        self.inner.close()


class _Worth:
    """What a set of evaluations is worth to a problem: its best utility, or its hypervolume.

    Args:
        problem: With a preference, or without.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def of(self, axes: Sequence[Axes]) -> float:
        if self._problem.preference is None:
            return hypervolume(axes)
        return max((self._problem.utility(each) for each in axes), default=0.0)
