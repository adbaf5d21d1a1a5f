"""What mitigations do in a long fine-tune; those that cannot act there are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.datasets.base import SplitDataset
from envs.generate import Steering
from envs.hooks import Hooks
from envs.methods import Attachment
from envs.mitigations import Mitigation, Regimen, Treatment, prepare_regimen
from envs.mitigations.base import Edit
from envs.task import InnerBudget, Schedule
from rewards.errors import InputError

_ACTING = frozenset({"states", "admitted", "kept", "learning", "stepped", "shared", "figures", "state", "load"})
"""Parts of hooks that the trainer calls, and one that means nothing to a single learner."""
_INNER_ONLY = "leave it out: it acts in the inner fine-tunes of a search only"

Treat = Callable[[Sequence[Mitigation]], Regimen]
"""Lets mitigations prepare what they do."""


@dataclass(frozen=True)
class LongTreatment:
    """What mitigations do in the one fine-tune that is saved.

    Attributes:
        mitigations: In the order in which they act.
        training_set: The images to train on, encoded.
        hooks: Around the steps.
        edits: Of the trained model, folded, before it is measured and saved.
        steerings: Of the sampler wherever the model is looked at; what is saved does not carry them.
        figures: What became of it before the fine-tune, by name.
        records: See `Treatment`.
    """

    mitigations: tuple[Mitigation, ...]
    training_set: TrainingSet
    hooks: tuple[Hooks, ...] = ()
    edits: tuple[Edit, ...] = ()
    steerings: tuple[Steering, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def prepare_treatment(
    mitigations: Sequence[Mitigation],
    backbone: Backbone,
    attachment: Attachment,
    method: str,
    dataset: SplitDataset,
    training_set: TrainingSet,
    budget: InnerBudget,
    seed: int,
    *,
    processes: int,
    foldable: bool,
) -> LongTreatment:
    """Lets each look at what it needs, and finds out whether all can act here.

    Args:
        mitigations: In the order in which they act.
        backbone: With its denoiser in the base state.
        attachment: Of the method.
        method: Its name.
        dataset: The images.
        training_set: Those that are private, encoded.
        budget: Of the fine-tune.
        seed: Of the task.
        processes: That train.
        foldable: Whether a pipeline is saved; if not, it is an adapter alone.

    Raises:
        InputError: If one cannot act here.
    """
    if not mitigations:
        return LongTreatment((), training_set)

    def treat(some: Sequence[Mitigation]) -> Regimen:
        return prepare_regimen(some, backbone, attachment, method, dataset.train, dataset.heldout, budget, seed)

    regimen = treat(mitigations)
    treatment = regimen.treatment
    for obstacle in _obstacles(processes, foldable):
        if obstacle.stands_in(treatment):
            name = _first_with(obstacle, mitigations, treat)
            raise InputError(f"mitigation={name} {obstacle.what}", obstacle.remedy)
    return LongTreatment(
        tuple(mitigations),
        regimen.training_set,
        hooks_of(treatment),
        treatment.edits,
        treatment.steerings,
        treatment.figures,
        treatment.records,
    )


def check_schedule(mitigations: Sequence[Mitigation], schedule: Schedule) -> None:
    """Raises InputError if there are mitigations and the schedule has several phases."""
    if mitigations and len(schedule.phases) > 1:
        raise InputError(
            f"mitigation={','.join(each.name for each in mitigations)} with the {len(schedule.phases)} phases of "
            f"{schedule.key}",
            "mitigations act on a fine-tune of one phase: give one mask, or set mitigation=none",
        )


def hooks_of(treatment: Treatment) -> tuple[Hooks, ...]:
    """New ones, of a single learner."""
    return tuple(make(0) for make in treatment.hooks)


@dataclass(frozen=True)
class _Obstacle:
    """Why a treatment cannot be given.

    Attributes:
        stands_in: Whether it is there.
        what: Follows the mitigation's name.
        remedy: For the user.
    """

    stands_in: Callable[[Treatment], bool]
    what: str
    remedy: str


def _obstacles(processes: int, foldable: bool) -> list[_Obstacle]:
    return [
        _Obstacle(
            lambda treatment: treatment.course is not None,
            "trains in a course of its own, and this fine-tune is one learner's from its first step to its last",
            _INNER_ONLY,
        ),
        _Obstacle(
            lambda treatment: treatment.watcher is not None,
            "looks at the model on the way and chooses a state",
            "leave it out, and set stop.metric: this fine-tune ends by a measured metric",
        ),
        _Obstacle(
            lambda treatment: "delivered" in _overridden(treatment),
            "ends with other weights than those of the last step",
            "leave it out, and set ema.decay: this fine-tune has an average of its own",
        ),
        _Obstacle(
            lambda treatment: "optimizer" in _overridden(treatment),
            "brings its own optimizer",
            _INNER_ONLY,
        ),
        _Obstacle(  # a part that this trainer does not know would be left out without a word
            lambda treatment: not _overridden(treatment) <= _ACTING,
            "acts where only inner fine-tunes let it",
            _INNER_ONLY,
        ),
        _Obstacle(
            lambda treatment: bool(treatment.hooks) and processes > 1,
            f"acts in the steps, and {processes} processes do not share what it sees",
            "launch one process, or leave it out",
        ),
        _Obstacle(
            lambda treatment: bool(treatment.edits) and not foldable,
            "changes the trained model's own weights, and with this method only what it added is saved",
            "choose a method of which a pipeline is saved, such as lora, or leave it out",
        ),
    ]


def _overridden(treatment: Treatment) -> frozenset[str]:
    """Names of the parts of `Hooks` that a treatment's hooks fill with something."""
    parts = [name for name, value in vars(Hooks).items() if callable(value) and not name.startswith("_")]
    return frozenset(
        name for hook in hooks_of(treatment) for name in parts if getattr(type(hook), name) is not getattr(Hooks, name)
    )


def _first_with(obstacle: _Obstacle, mitigations: Sequence[Mitigation], treat: Treat) -> str:
    """The name of the mitigation that an obstacle comes from, found by preparing one after another."""
    for each in mitigations[:-1]:
        if obstacle.stands_in(treat([each]).treatment):
            return each.name
    return mitigations[-1].name
