"""What a method against memorization is to a fine-tune: when it acts, on what, and with which others it goes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.course import Course, MakeHooks, Watcher, one_learner
from envs.datasets.base import ImageSet
from envs.finetune import Manner
from envs.generate import Steering
from envs.methods import Attachment
from envs.task import InnerBudget
from rewards.errors import InputError


class Stage(enum.IntEnum):
    """When a mitigation acts. Of several the earlier stage comes first, and within a stage the order of the registry.

    ``DATA``: before anything is trained on. ``BATCH``: on what a step sees. ``STEP``: on what is learned from it, and
    by whom. ``WEIGHTS``: on the trained model. ``SAMPLING``: while it generates.
    """

    DATA = 1
    BATCH = 2
    STEP = 3
    WEIGHTS = 4
    SAMPLING = 5


@dataclass(frozen=True)
class Situation:
    """What a mitigation has to work with; the denoiser is in its base state, with the method attached.

    Attributes:
        backbone: What is fine-tuned.
        attachment: Of the method.
        method: Its name.
        images: That are trained on, after what mitigations of earlier stages made of them.
        data: The same, encoded.
        heldout: Images of other patients.
        heldout_data: The same, encoded.
        budget: Of the fine-tune.
        seed: Of the task.
    """

    backbone: Backbone
    attachment: Attachment
    method: str
    images: ImageSet
    data: TrainingSet
    heldout: ImageSet
    heldout_data: TrainingSet
    budget: InnerBudget
    seed: int


Edit = Callable[[], AbstractContextManager[Mapping[str, float]]]
"""Inside, the trained model's weights are changed, whichever; entering it gives figures by name."""


@dataclass(frozen=True)
class Treatment:
    """What mitigations do in every fine-tune of a task.

    Attributes:
        hooks: See `Manner`.
        course: See `Manner`; None for plain training.
        watcher: See `Manner`.
        edits: Of the trained model, in this order.
        steerings: Of the sampler, in this order.
        figures: What became of it before any fine-tune, by name.
        records: What it found out that other runs can be told, JSON values by the name of a file.
    """

    hooks: tuple[MakeHooks, ...] = ()
    course: Course | None = None
    watcher: Callable[[], Watcher] | None = None
    edits: tuple[Edit, ...] = ()
    steerings: tuple[Steering, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def manner(self) -> Manner:
        """How to fine-tune."""
        return Manner(self.hooks, one_learner if self.course is None else self.course, self.watcher)


@dataclass(frozen=True)
class Mitigation:
    """A published method against memorization. Subclasses are frozen dataclasses whose fields are its settings.

    Attributes:
        name: In the registry.
        stage: When it acts.
        source: The paper.
        needs_text: Whether it means nothing to a backbone without captions.
        excludes: Names of mitigations that it cannot go with, and why.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    source: ClassVar[str]
    needs_text: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting, as JSON values."""
        return asdict(self)

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """Finds out whether it can act here, before anything is paid for.

        Raises:
            InputError: If it cannot.
        """
        if self.needs_text and not backbone.conditional:
            raise InputError(
                f"mitigation={self.name} works on captions, and {backbone.name} takes none",
                "choose another mitigation or a backbone with text",
            )

    def prepared(self, images: ImageSet, seed: int) -> ImageSet:
        """The images to train on instead of these."""
        return images

    def compared(self, before: ImageSet, after: ImageSet) -> Mapping[str, float]:
        """Figures, by name, of what `prepared` made of the images."""
        return {}

    def treatment(self, situation: Situation) -> Treatment:
        """What it does in the fine-tunes of a task; what it needs to know of the base model, it finds out here.

        Raises:
            InputError: If a setting does not fit the situation.
        """
        return Treatment()

    def refused(self, setting: str, remedy: str) -> InputError:
        """The error of a setting of its own."""
        return InputError(f"mitigation.{self.name}.{setting}={getattr(self, setting)}", remedy)


def combined(treatments: Sequence[Treatment]) -> Treatment:
    """What several do together."""
    whole = Treatment()
    for each in treatments:
        whole = replace(
            whole,
            hooks=whole.hooks + each.hooks,
            course=each.course or whole.course,
            watcher=each.watcher or whole.watcher,
            edits=whole.edits + each.edits,
            steerings=whole.steerings + each.steerings,
            figures={**whole.figures, **each.figures},
            records={**whole.records, **each.records},
        )
    return whole


def within(value: float, low: float, high: float) -> bool:
    """Whether a setting is a number in [low, high]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
