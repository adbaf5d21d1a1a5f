"""What ``python -m agents.finetune`` is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from agents.ranges import Count, Rate, Weight
from agents.settings import (
    BackboneSettings,
    DataSettings,
    EnvSettings,
    FinalSettings,
    MethodSettings,
    NamedSettings,
    RewardSettings,
)
from envs.task import InnerBudget
from rewards.errors import InputError
from rewards.suite import METRICS

_CHECKPOINTS, _VALIDATIONS = 10, 5


@dataclass(frozen=True)
class TrainingSettings:
    """The long fine-tune.

    Attributes:
        steps: Optimizer steps.
        batch_size: Images of one optimizer step, over all passes and processes.
        learning_rate: AdamW's peak.
        warmup: Steps of linear warm-up.
        decay: ``linear`` to 0 after the last step, or ``none``.
        weight_decay: AdamW's.
        caption_dropout: Probability that a caption is replaced by the empty one.
        clip: Most that the norm of a step's gradient may be; None for no limit.
        accumulation: Passes that a process takes a step in: less memory, more time.
        checkpoint_every: Steps; None for a tenth of them.
        validate_every: Steps; None for a fifth of them.
        keep: Checkpoints kept, the last ones.
    """

    steps: Count
    batch_size: Count
    learning_rate: Rate
    warmup: Annotated[int, Field(ge=0)]
    decay: Literal["linear", "none"]
    weight_decay: Weight
    caption_dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    clip: Rate | None
    accumulation: Count
    checkpoint_every: Count | None
    validate_every: Count | None
    keep: Count

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise InputError(f"training.warmup={self.warmup}", f"set it below training.steps={self.steps}")
        for name in ("checkpoint_every", "validate_every"):
            every = getattr(self, name)
            if every is not None and every > self.steps:
                raise InputError(f"training.{name}={every}", f"set it to training.steps={self.steps} at most")

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_every or -(-self.steps // _CHECKPOINTS)

    @property
    def validation_steps(self) -> int:
        """Steps between two validations."""
        return self.validate_every or -(-self.steps // _VALIDATIONS)

    def budget(self, inner: InnerBudget) -> InnerBudget:
        """This training, sampled and judged as an inner fine-tune is."""
        return dataclasses.replace(
            inner,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            caption_dropout=self.caption_dropout,
        )


@dataclass(frozen=True)
class EMASettings:
    """An exponential moving average of what is trained, see diffusers' ``EMAModel``.

    Attributes:
        decay: Most that the average keeps of itself in a step; 0 for no average.
        power: Of the warm-up, in which the average keeps 1 - (1 + step)^-power.
    """

    decay: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    power: Rate


@dataclass(frozen=True)
class ValidationSettings:
    """``grid``: generated images shown at each validation; 0 for none."""

    grid: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class StopSettings:
    """When a training ends before its last step.

    Attributes:
        metric: That ends it by getting worse than ``limit``; None for never.
        limit: None for the metric's value of held-out images: it is worse when its whole 95 % interval is.
    """

    metric: str | None
    limit: FiniteFloat | None

    def __post_init__(self) -> None:
        if self.metric is None and self.limit is not None:
            raise InputError(f"stop.limit={self.limit} without a metric", "set stop.metric, for example to copy_rate")
        if self.metric is not None and self.metric not in METRICS:
            raise InputError(f"stop.metric={self.metric} is unknown", f"choose among {', '.join(METRICS)}")


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything ``python -m agents.finetune`` is told. ``run``, ``policy`` or ``mask`` says which groups learn.

    Attributes:
        mitigation: Settings of each mitigation that the fine-tune is given, by name; see `envs.mitigations`.
    """

    env: EnvSettings
    data: DataSettings
    backbone: BackboneSettings
    method: MethodSettings
    groups: NamedSettings
    inner: InnerBudget
    reward: RewardSettings
    training: TrainingSettings
    ema: EMASettings
    validation: ValidationSettings
    stop: StopSettings
    final: FinalSettings
    preference: Annotated[FiniteFloat, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0)]
    run_dir: str
    run: str | None = None
    policy: str | None = None
    mask: str | int | list[str] | None = None
    mitigation: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    resume: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("run", "policy", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            raise InputError(
                f"{said or 'nothing'} says which groups learn",
                "give one of run=<a train run>, policy=<a folder with a policy>, mask=<all|0101...|[group, group]>",
            )

    @property
    def budget(self) -> InnerBudget:
        """See `TrainingSettings.budget`."""
        return self.training.budget(self.inner)

    @property
    def validation_metrics(self) -> list[str]:
        """What each validation measures: ``reward.metrics``, and what may end the training."""
        return list(dict.fromkeys([*self.reward.metrics, *([self.stop.metric] if self.stop.metric else [])]))
