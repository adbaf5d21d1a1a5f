"""One run's dealings with evaluations: anchors, search, final table, all paid for through the store."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from agents.run_folder import RunFolder
from agents.search.base import Searcher, SearchProblem
from agents.search.ppo import environment_of
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.evaluators.base import Evaluation, Evaluator, evaluate_many
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from envs.evaluators.cached import CachedEvaluator, Served
from envs.store import EvaluationStore
from envs.task import Mask, Schedule, SelectionTask
from envs.vector import SelectionVecEnv
from rewards.errors import InputError
from rewards.objective import AnchoredObjective, Axes, NotMeasuredError

Show = Callable[[str, int], None]
"""Told what is being measured, and how many distinct evaluations of it are there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """The ``evaluations`` entry of ``result.json``; see `CachedEvaluator` for what they mean."""

    distinct: int
    cached: int
    failed: int
    seconds: float


class Scored(NamedTuple):
    """An evaluation of the search and where it stands at the run's preference."""

    evaluation: Evaluation
    axes: Axes
    utility: float


@dataclass(frozen=True)
class FinalTable:
    """The choice and both anchors, fine-tuned anew with another seed and measured on the test split.

    Attributes:
        selected: The chosen schedule's evaluation.
        base: The untouched base model's.
        full: Full fine-tuning's.
        objective: Anchored at ``base`` and ``full``; None if full fine-tuning is no better than the base model here, so
            that the axes mean nothing (``note`` says so).
        note: Why there are no axes.
    """

    selected: Evaluation
    base: Evaluation
    full: Evaluation
    objective: AnchoredObjective | None
    note: str = ""

    def axes(self, evaluation: Evaluation, preference: float) -> dict[str, float | None]:
        """``quality``, ``privacy`` and ``utility`` of an evaluation of the table; nulls without an objective."""
        return named_axes(self.objective, evaluation, preference)


class Session:
    """Evaluates on behalf of one run and keeps the books.

    Args:
        settings: Of the run.
        bench: Its task.
        store: Where evaluations are kept; belongs to the caller.
        folder: Where they are listed.
        show: Told about progress.
    """

    def __init__(
        self, settings: TrainSettings, bench: Workbench, store: EvaluationStore, folder: RunFolder, show: Show
    ) -> None:
        self.settings, self.bench, self.store, self.folder, self.show = settings, bench, store, folder, show
        self.evaluations: dict[Schedule, Evaluation] = {}
        self.evaluator = self._evaluator_of(bench.search, "search")
        self.budgeted = BudgetedEvaluator(self.evaluator, settings.budget.evaluations)
        self._evaluators = [self.evaluator]
        try:
            base, full = self._measure(self.evaluator, self._anchors())
            self.objective = self.bench.objective.anchor(base.metrics, full.metrics)
        except BaseException:
            self.close()
            raise
        for name in self.objective.uncertain:
            _log.warning("%s: full fine-tuning's 95 %% interval covers the other anchor; the axis may be noise", name)
        # Anchors are no finds of the search, unless the search asks for them itself.
        self.evaluations.clear()

    def environment(self, rollout: int) -> SelectionVecEnv:
        """``rollout`` sub-environments that share the budget."""
        settings = self.settings
        return environment_of(
            self.problem(),
            rollout,
            seed=settings.seed,
            horizon=settings.horizon,
            failure_penalty=settings.reward.failure_penalty,
        )

    def problem(self) -> SearchProblem:
        """The search as a `Searcher` sees it, on the run's own budget."""
        return self._problem(self.budgeted)

    def rival(self, searcher: Searcher, seed: int) -> list[tuple[int, float]]:
        """What another searcher finds in as many distinct evaluations; this run pays for them.

        Returns:
            The distinct evaluations made and the best utility so far, once for each that was no failure.
        """
        answers: dict[Schedule, Evaluation] = {}

        def record(served: Served) -> None:
            self.folder.record(served)
            answers.setdefault(served.evaluation.schedule, served.evaluation)
            self.show(searcher.name, len(answers))

        shared = self.evaluator.inner
        paid = self.evaluator.paid
        evaluator = CachedEvaluator(shared, self.store, self.bench.search, self.folder.id, record, paid)
        self._evaluators.append(evaluator)
        budgeted = BudgetedEvaluator(evaluator, self.settings.budget.evaluations)
        with suppress(BudgetSpent):
            searcher.search(self._problem(budgeted), seed)
        return self._curve(_as_asked(budgeted, answers))

    def zero_shot_utility(self) -> float | None:
        """Of the first mask that the search asked for; None if its evaluation failed."""
        first = self._answered()[0]
        return named_axes(self.objective, first, self.settings.preference)["utility"]

    def best_of_table(self) -> float | None:
        """The best utility of any mask, where every mask was measured before."""
        table = self.bench.table
        if table is None:
            return None
        return max(utility for _, utility in self._curve(table.evaluations[table.task.seed].values()))

    def curve(self) -> list[tuple[int, float]]:
        """The same of the run's own search."""
        return self._curve(self._answered())

    def axes(self, evaluation: Evaluation) -> dict[str, float | None]:
        """``quality``, ``privacy`` and ``utility`` of an evaluation of the search, at the run's preference."""
        return named_axes(self.objective, evaluation, self.settings.preference)

    def scored(self) -> list[Scored]:
        """What the search has measured so far, in the order in which it asked, without the failures."""
        scored = []
        for evaluation in self._answered():
            with suppress(NotMeasuredError):
                axes = self.objective.axes(evaluation.metrics)
                scored.append(Scored(evaluation, axes, self.objective.utility(axes, self.settings.preference)))
        return scored

    def best(self) -> Evaluation:
        """The measured schedule of highest utility at the run's preference; of equals, the one that trains least.

        Raises:
            InputError: If every evaluation failed.
        """
        scored = self.scored()
        if not scored:
            failures = sorted({e.failure for e in self.evaluations.values()})
            raise InputError(
                f"all {len(self.evaluations)} evaluations failed: {failures}", "mend the reason and resume"
            )
        first = min(scored, key=lambda s: (-s.utility, s.evaluation.trainable_parameters, s.evaluation.schedule))
        return first.evaluation

    def final_table(self, chosen: Schedule) -> FinalTable:
        """Measures the choice and both anchors on the test split.

        Raises:
            InputError: If one of the three fails.
        """
        evaluator = self._evaluator_of(self.bench.final, "final table")
        self._evaluators.append(evaluator)
        try:
            base, full, selected = self._measure(evaluator, [*self._anchors(), chosen])
        finally:
            evaluator.close()
        try:
            return FinalTable(selected, base, full, self.bench.objective.anchor(base.metrics, full.metrics))
        except InputError as error:
            _log.warning("the test split gives no axes: %s", error.what)
            return FinalTable(selected, base, full, None, error.what)

    def counts(self) -> Counts:
        """Over the search, its anchors and the final table."""
        each = self._evaluators
        return Counts(
            distinct=sum(e.distinct for e in each),
            cached=sum(e.cached for e in each),
            failed=sum(e.failed for e in each),
            seconds=sum(e.seconds for e in each),
        )

    def close(self) -> None:
        """Ends worker processes."""
        self.evaluator.close()

    def _answered(self) -> list[Evaluation]:
        return _as_asked(self.budgeted, self.evaluations)

    def _problem(self, evaluator: Evaluator) -> SearchProblem:
        bench = self.bench
        return SearchProblem(
            evaluator=evaluator,
            objective=self.objective,
            group_features=bench.group_features,
            group_feature_names=bench.group_feature_names,
            task_features=bench.task_features,
            task_feature_names=bench.task_feature_names,
            preference=self.settings.preference,
            frozen=frozen_mask(self.settings.frozen, bench.search.groups),
            parallel=bench.parallel,
        )

    def _curve(self, answers: Iterable[Evaluation]) -> list[tuple[int, float]]:
        curve, best = [], -math.inf
        for number, evaluation in enumerate(answers, start=1):
            with suppress(NotMeasuredError):
                axes = self.objective.axes(evaluation.metrics)
                best = max(best, self.objective.utility(axes, self.settings.preference))
                curve.append((number, best))
        return curve

    def _anchors(self) -> list[Schedule]:
        groups = len(self.bench.search.groups)
        return [Schedule.constant([on] * groups) for on in (False, True)]

    def _measure(self, evaluator: CachedEvaluator, schedules: Sequence[Schedule]) -> list[Evaluation]:
        evaluations = evaluate_many(evaluator, schedules)
        for evaluation in evaluations:
            if evaluation.failure:
                raise InputError(
                    f"mask {evaluation.schedule.key} failed: {evaluation.failure}",
                    "it is needed as a yardstick: lower inner.learning_rate or inner.batch_size",
                )
        return evaluations

    def _evaluator_of(self, task: SelectionTask, what: str) -> CachedEvaluator:
        def record(served: Served) -> None:
            self.folder.record(served)
            if task is self.bench.search:
                self.evaluations.setdefault(served.evaluation.schedule, served.evaluation)
            _log.info("%s: %s%s", what, _line(served.evaluation), " (stored)" if served.hit else "")
            self.show(what, evaluator.distinct)

        evaluator = CachedEvaluator(self.bench.make_evaluator(task), self.store, task, self.folder.id, record)
        return evaluator


def frozen_mask(names: Sequence[str], groups: Sequence[str]) -> Mask:
    """True where a toggle stays off.

    Raises:
        InputError: If a name is no toggle's, or every toggle is frozen.
    """
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise InputError(f"frozen={unknown}: no such group", f"choose among {', '.join(groups)}")
    if set(names) >= set(groups):
        raise InputError("every group is frozen", "leave at least one out of frozen")
    return tuple(group in names for group in groups)


def _as_asked(budgeted: BudgetedEvaluator, answers: Mapping[Schedule, Evaluation]) -> list[Evaluation]:
    """Workers answer as they get done; in this order a run is the same however many there are, or from the store."""
    return [answers[schedule] for schedule in budgeted.granted if schedule in answers]


def _line(evaluation: Evaluation) -> str:
    metrics = ", ".join(f"{name} {m.value:.4g}" for name, m in evaluation.metrics.items() if m.value is not None)
    return f"{evaluation.schedule.key}: {evaluation.failure or metrics}, {evaluation.seconds:.1f} s"


def named_axes(
    objective: AnchoredObjective | None, evaluation: Evaluation, preference: float
) -> dict[str, float | None]:
    """``quality``, ``privacy`` and ``utility``; nulls without an objective or a metric that it needs."""
    try:
        if objective is not None:
            axes = objective.axes(evaluation.metrics)
            return {**axes._asdict(), "utility": objective.utility(axes, preference)}
    except NotMeasuredError:
        pass
    return {"quality": None, "privacy": None, "utility": None}
