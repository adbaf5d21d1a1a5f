"""Which mask the comparison of mitigations is about: given, or searched for by a policy that learned elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.lookup import known_tables, read_table
from agents.mitigating.plan import ALL, CHOSEN, NONE, cell_of
from agents.mitigating.settings import FULL, MitigationsSettings
from agents.probing import seen_by_policy, trainable_counts
from agents.search.base import Experience, SearchProblem
from agents.search.dyna_ppo import DynaPPO
from agents.search.experience import experience_of
from agents.source_policy import SourcePolicy
from agents.study.laboratory import Laboratory, Show
from envs.evaluators.base import Evaluation, evaluate_many
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from envs.evaluators.cached import Served
from envs.features import GROUP_FEATURES, TASK_FEATURES
from envs.groups import find_groups
from envs.methods import find_method
from envs.store import EvaluationStore
from envs.task import Mask, Schedule, SelectionTask
from rewards.errors import InputError
from rewards.objective import Axes, Objective

_AT_ONCE = 2
"""Fine-tunes that the search asks for together: a constant, for what is found depends on it, and not on the machine."""


@dataclass(frozen=True)
class Found:
    """A mask of the search.

    Attributes:
        groups: Names of the groups that learn.
        quality: By held-out images.
        privacy: The same.
        utility: At the comparison's preference.
    """

    groups: Sequence[str]
    quality: float
    privacy: float
    utility: float


@dataclass(frozen=True)
class Choice:
    """The mask of one data set.

    Attributes:
        groups: Names of the groups that learn.
        source: Where it comes from, in words.
        first: What the policy asked for first, with nothing measured; None where nothing was searched, or its fine-tune
            failed.
        best: What was found; None where nothing was searched.
    """

    groups: tuple[str, ...]
    source: str
    first: Found | None = None
    best: Found | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Choice:
        """The inverse of ``dataclasses.asdict``."""
        first, best = (None if fields[name] is None else Found(**fields[name]) for name in ("first", "best"))
        return cls(tuple(fields["groups"]), fields["source"], first, best)


def check_given(laboratory: Laboratory) -> None:
    """Refuses a mask that was given in the call and trains nothing.

    Raises:
        InputError: If it does.
    """
    if not any(laboratory.masks.get(CHOSEN, (True,))):
        raise InputError(f"{laboratory.env}: the mask given in the call trains nothing", _remedy(laboratory))


def choose(settings: MitigationsSettings, laboratory: Laboratory, what: str, show: Show) -> Choice:
    """The mask that was given for a data set, or the best that a policy finds that learned on tables of the others.

    The policy learns on as in a transfer: of ``settings.choice_evaluations`` fine-tunes in full with the comparison's
    own budget, each judged by held-out images, the best at ``settings.preference`` is chosen. Their seed is no other
    fine-tune's of the comparison, so that no row of it is the one that was lucky here.

    Args:
        settings: Of the comparison.
        laboratory: Of the data set, with the masks `ALL` and `NONE`, and `CHOSEN` if it was given.
        what: Names the search in ``show``.
        show: Told about progress.

    Raises:
        InputError: If there is no table of another data set, an anchor or every fine-tune fails, or nothing would
            learn.
    """
    if CHOSEN in laboratory.masks:
        return Choice(_named(laboratory, laboratory.masks[CHOSEN]), "given in the call")
    choice = _searched(settings, laboratory, what, show)
    if not choice.groups:
        raise InputError(f"{laboratory.env}: the mask {choice.source} trains nothing", _remedy(laboratory))
    return choice


def _remedy(laboratory: Laboratory) -> str:
    return f"set +masks.{laboratory.env}=<mask>"


def _searched(settings: MitigationsSettings, laboratory: Laboratory, what: str, show: Show) -> Choice:
    reward = settings.reward
    objective = Objective(tuple(reward.quality), tuple(reward.privacy), reward.scalarization, reward.rho)
    task = laboratory.task(cell_of(settings, FULL, ALL, "", settings.choice_seed), "heldout")
    sources = _sources(settings, task, objective)
    answers: dict[Schedule, Evaluation] = {}

    def record(served: Served) -> None:
        answers.setdefault(served.evaluation.schedule, served.evaluation)
        show(what, len(answers))

    with (
        closing(EvaluationStore(Path(settings.store.path))) as store,
        closing(laboratory.evaluator(task, store, record)) as evaluator,
    ):
        base, full = evaluate_many(evaluator, [Schedule.constant(laboratory.masks[name]) for name in (NONE, ALL)])
        if failure := base.failure or full.failure:
            raise InputError(f"{task.env}: an anchor of the search failed: {failure}", "lower learning_rates.full")
        group_features, task_features = _features(laboratory, task, settings.threads)
        problem = SearchProblem(
            evaluator=(budgeted := BudgetedEvaluator(evaluator, settings.choice_evaluations)),
            objective=objective.anchor(base.metrics, full.metrics),
            group_features=group_features,
            group_feature_names=GROUP_FEATURES,
            task_features=task_features,
            task_feature_names=TASK_FEATURES,
            preference=settings.preference,
            parallel=_AT_ONCE,
        )
        with suppress(BudgetSpent):
            DynaPPO(SourcePolicy(sources), name="policy").search(problem, seed=0)
    show(what, 2 + len(budgeted.granted))  # an anchor that was asked for again is one answer, and counted as two
    asked = [answers[schedule] for schedule in budgeted.granted if schedule in answers]
    found = [(each, axes) for each in asked if (axes := problem.outcome(each).axes) is not None]
    if not found:
        raise InputError(f"{task.env}: every fine-tune of the search failed", f"set +masks.{task.env}=<mask>")
    best = min(found, key=lambda pair: (-problem.utility(pair[1]), pair[0].trainable_parameters, pair[0].schedule))
    first = found[0] if found[0][0] is asked[0] else None
    learned = ", ".join(dict.fromkeys(source.env for source in sources))
    return Choice(
        groups=_named(laboratory, best[0].schedule.phases[0]),
        source=f"found by a policy at preference {settings.preference:g} that learned on tables of {learned}",
        first=None if first is None else _found(laboratory, problem, *first),
        best=_found(laboratory, problem, *best),
    )


def _sources(settings: MitigationsSettings, task: SelectionTask, objective: Objective) -> tuple[Experience, ...]:
    tables = [
        table
        for table in map(read_table, known_tables(settings.run_dir))
        if table.task.env != task.env
        and table.task.backbone_sha256 == task.backbone_sha256
        and table.task.groups == task.groups
    ]
    if not tables:
        raise InputError(
            f"masks has none of {task.env}, and there is no table of another data set to learn from",
            f"set +masks.{task.env}=<mask>, or measure one with python -m agents.tabulate",
        )
    return tuple(experience_of(table, objective) for table in tables)


def _features(laboratory: Laboratory, task: SelectionTask, threads: int) -> tuple[NDArray[np.float32], ...]:
    """What the policy sees of the groups and of the task before anything is measured."""
    backbone, method = laboratory.backbone, find_method(FULL)
    groups = find_groups(backbone.denoiser, task.scheme)
    attached = method(copy.deepcopy(backbone.denoiser), groups, calibration=lambda: ())
    return seen_by_policy(
        backbone,
        laboratory.dataset,
        method.toggles(groups),
        trainable_counts(attached),
        task.inner,
        threads=threads,
        seed=0,
    )


def _found(laboratory: Laboratory, problem: SearchProblem, evaluation: Evaluation, axes: Axes) -> Found:
    return Found(_named(laboratory, evaluation.schedule.phases[0]), *axes, problem.utility(axes))


def _named(laboratory: Laboratory, mask: Mask) -> tuple[str, ...]:
    return tuple(name for name, on in zip(laboratory.groups, mask, strict=True) if on)
