"""What a table of evaluations is to searches: a problem to solve, or experience from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.search.base import Experience, SearchProblem
from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetedEvaluator
from envs.evaluators.table import EvaluationTable
from envs.evaluators.tabular import TabularEvaluator
from envs.task import Mask, Schedule
from rewards.calibration import noise_floor
from rewards.errors import InputError
from rewards.objective import AnchoredObjective, Axes, NotMeasuredError, Objective


def experience_of(table: EvaluationTable, objective: Objective) -> Experience:
    """Everything that is known of a table's task.

    Args:
        table: Its masks are taken as measured with the task's own seed; repeats with further seeds are left out.
        objective: Anchored at the table's own base model and full fine-tuning.

    Raises:
        InputError: If there are no axes between these.
    """
    anchored = anchored_at(table, objective)
    return Experience(
        env=table.task.env,
        task=table.task.id,
        objective=anchored,
        group_features=table.group_features,
        group_feature_names=table.group_feature_names,
        task_features=table.task_features,
        task_feature_names=table.task_feature_names,
        outcomes=measured_axes(table, anchored),
        noise=axes_noise(repeats_of(table, objective)),
    )


@dataclass(frozen=True)
class Repeats:
    """Masks that were measured with several seeds, without the anchors, whose axes are what they are by definition.

    Attributes:
        masks: In the order of binary numbers.
        axes: ``(r, s, 2)``, with each seed, the table's own first, each between its own seed's anchors.
        unusable: Seeds whose anchors leave no axes.
    """

    masks: tuple[Mask, ...]
    axes: NDArray[np.float64]
    unusable: tuple[int, ...]


def repeats_of(table: EvaluationTable, objective: Objective) -> Repeats:
    """What was measured again; see `repeats_among`."""
    with _table_named(table):
        return repeats_among(table.evaluations, table.task.seed, objective)


def repeats_among(evaluations: Mapping[int, Mapping[Schedule, Evaluation]], seed: int, objective: Objective) -> Repeats:
    """What was measured again, among evaluations by seed.

    Args:
        evaluations: By seed and schedule, both anchors with each seed.
        seed: That of the table.
        objective: What is rewarded.

    Raises:
        InputError: If this seed leaves no axes between its anchors.
    """
    by_seed, unusable = [_all_axes(evaluations[seed], _anchored(evaluations[seed], objective))], []
    for other in sorted(set(evaluations) - {seed}):
        try:
            by_seed.append(_all_axes(evaluations[other], _anchored(evaluations[other], objective)))
        except InputError:
            unusable.append(other)
    everywhere = set.intersection(*map(set, by_seed)) if len(by_seed) > 1 else set()
    masks = tuple(mask for mask in by_seed[0] if mask in everywhere and any(mask) and not all(mask))
    axes = np.asarray([[of_seed[mask] for of_seed in by_seed] for mask in masks]).reshape(len(masks), len(by_seed), 2)
    return Repeats(masks, axes, tuple(unusable))


def axes_noise(repeats: Repeats) -> Axes | None:
    """How far each axis differs between seeds of one mask, a standard deviation; None without repeats."""
    if not repeats.axes.size or repeats.axes.shape[1] < 2:
        return None
    return Axes(*(noise_floor(list(torch.from_numpy(repeats.axes[..., i]))).value for i in range(2)))


def problem_of(
    table: EvaluationTable, objective: Objective, preference: float | None, budget: int, frozen: Mask = ()
) -> SearchProblem:
    """A table's task as a problem: its masks are there for the asking, ``budget`` distinct ones of them.

    Args:
        table: Of which a searcher sees what it asks for, and the features.
        objective: Anchored at the table's own base model and full fine-tuning.
        preference: The weight of privacy; None to look for the whole Pareto front.
        budget: Distinct masks, at least 1; the anchors cost nothing unless they are asked for.
        frozen: Toggles that stay off.

    Raises:
        InputError: If there are no axes between the anchors, or ``budget`` is below 1.
    """
    return SearchProblem(
        evaluator=BudgetedEvaluator(TabularEvaluator(table), budget),
        objective=anchored_at(table, objective),
        group_features=table.group_features,
        group_feature_names=table.group_feature_names,
        task_features=table.task_features,
        task_feature_names=table.task_feature_names,
        preference=preference,
        frozen=frozen,
    )


def anchored_at(table: EvaluationTable, objective: Objective, seed: int | None = None) -> AnchoredObjective:
    """The objective between a table's base model and its full fine-tuning.

    Args:
        table: With both anchors.
        objective: What is rewarded.
        seed: Of the anchors; None for the one that every mask has.

    Raises:
        InputError: If there are no axes between the two; the line names the table's task.
    """
    with _table_named(table):
        return _anchored(table.evaluations[table.task.seed if seed is None else seed], objective)


def measured_axes(table: EvaluationTable, objective: AnchoredObjective, seed: int | None = None) -> Mapping[Mask, Axes]:
    """Where the masks of a seed stand, in the order of binary numbers, without those that failed.

    Args:
        table: Where they were measured.
        objective: See `anchored_at`.
        seed: Of the fine-tunes; None for the one that every mask has.
    """
    return _all_axes(table.evaluations[table.task.seed if seed is None else seed], objective)


@contextmanager
def _table_named(table: EvaluationTable) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"table of {table.task.env}, task {table.task.id}: {error.what}", error.remedy) from error


def _anchored(of_seed: Mapping[Schedule, Evaluation], objective: Objective) -> AnchoredObjective:
    toggles = len(next(iter(of_seed)).phases[0])
    base, full = (of_seed[Schedule.constant([on] * toggles)] for on in (False, True))
    return objective.anchor(base.metrics, full.metrics)


def _all_axes(of_seed: Mapping[Schedule, Evaluation], objective: AnchoredObjective) -> dict[Mask, Axes]:
    found = {schedule.phases[0]: _axes(evaluation, objective) for schedule, evaluation in sorted(of_seed.items())}
    return {mask: axes for mask, axes in found.items() if axes is not None}


def _axes(evaluation: Evaluation, objective: AnchoredObjective) -> Axes | None:
    if evaluation.failure:
        return None
    try:
        return objective.axes(evaluation.metrics)
    except NotMeasuredError:
        return None
