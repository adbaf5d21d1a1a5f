"""What ``python -m agents.validate`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from agents.ranges import Count
from agents.settings import BackboneSettings, DataSettings, RewardSettings
from envs.task import InnerBudget
from rewards.errors import InputError
from rewards.suite import METRICS

Part = Literal["planted", "false_positives", "models", "objective", "cost"]
PARTS: tuple[Part, ...] = get_args(Part)

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class PlantedSettings:
    """Copies hidden among held-out images.

    Attributes:
        images: Of the training set, and of each generated set.
        calibration: Held-out images that thresholds rest on.
        shares: Of the generated set that are copies.
        rate: The detectors' false-positive rate.
    """

    images: Count
    calibration: Annotated[int, Field(ge=2)]
    shares: list[Share]
    rate: OpenShare


@dataclass(frozen=True)
class FalsePositiveSettings:
    """Held-out images split at random again and again; those that are in no other part are judged.

    Attributes:
        images: Drawn; of a patient or a near-duplicate cluster one is kept.
        train: In each split.
        calibration: In each split.
        resplits: How many.
        long_run: Further ones, for what the resplits alone are too few to see.
        rate: The detectors' false-positive rate.
    """

    images: Count
    train: Count
    calibration: Annotated[int, Field(ge=2)]
    resplits: Annotated[int, Field(ge=2)]
    long_run: Annotated[int, Field(ge=2)]
    rate: OpenShare

    def __post_init__(self) -> None:
        if self.train + self.calibration >= self.images:
            raise InputError(
                f"false_positives.images={self.images} leaves none to judge beside {self.train} training and "
                f"{self.calibration} calibration images",
                "raise it, or lower false_positives.train or false_positives.calibration",
            )


@dataclass(frozen=True)
class ModelSettings:
    """A model fine-tuned until it knows its images by heart, beside one that was stopped early.

    Attributes:
        env: The data set.
        train: Private images.
        heldout: Images that metrics compare with.
        resampled: Further held-out images, which play a generator that has learnt the source and no patient.
        inner: The overfitting fine-tune, and what is sampled.
        brief_steps: Of the other one, which is the same besides.
        seeds: Of everything; the metrics of the first are shown, the others say how far to believe them.
        metrics: Everything that is measured.
    """

    env: str
    train: Annotated[int, Field(ge=2)]
    heldout: Annotated[int, Field(ge=4)]
    resampled: Annotated[int, Field(ge=2)]
    inner: InnerBudget
    brief_steps: Count
    seeds: list[Annotated[int, Field(ge=0)]]
    metrics: list[str]

    def __post_init__(self) -> None:
        if self.brief_steps >= self.inner.steps:
            raise InputError(
                f"models.brief_steps={self.brief_steps} of {self.inner.steps}", "stop it before models.inner.steps"
            )
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise InputError(f"models.seeds={self.seeds}", "give two different ones or more: they are the noise floor")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise InputError(f"models.metrics {', '.join(unknown)} are unknown", f"choose among {', '.join(METRICS)}")


@dataclass(frozen=True)
class ObjectiveSettings:
    """Generators that must not win, beside one that must.

    Attributes:
        train: Private images.
        judge: Held-out images that metrics compare with.
        generated: Images of each generator.
        sampling_steps: Of the untouched base model.
        privacy: Metrics of the privacy axis where there is no model, only images.
        preferences: Weights of privacy.
    """

    train: Annotated[int, Field(ge=2)]
    judge: Annotated[int, Field(ge=4)]
    generated: Annotated[int, Field(ge=2)]
    sampling_steps: Count
    privacy: list[str]
    preferences: list[Share]


@dataclass(frozen=True)
class CostSettings:
    """Seconds of everything that images alone can tell.

    Attributes:
        env: Real images for as long as they last.
        real: How many of each of the three sets are real; the rest are phantoms.
        sizes: Images of each set.
        repeats: Of which the median is taken; at the largest size there is one.
        goal_s: Seconds allowed at the largest size.
    """

    env: str
    real: Count
    sizes: list[Annotated[int, Field(ge=4)]]
    repeats: Count
    goal_s: Annotated[float, Field(gt=0)]

    def __post_init__(self) -> None:
        if self.sizes != sorted(set(self.sizes)) or not self.sizes:
            raise InputError(f"cost.sizes={self.sizes}", "give different sizes, the smallest first")


@dataclass(frozen=True)
class ValidateSettings:
    """Everything the command is told.

    Attributes:
        only: Parts to compute; all if None. The document shows every part that was computed with these settings.
        docs: Folder of the document and its figures.
        envs: Data sets of real images.
        size: Height and width in pixels.
        seed: Of splits, resplits and noise.
        options: Of the data sets' loader.
        data: Where data sets are looked for.
        backbone: That is fine-tuned.
        reward: The objective that is put to the proof.
        run_dir: Results go to its folder ``validate``.
    """

    envs: list[str]
    docs: str
    size: Count
    data: DataSettings
    backbone: BackboneSettings
    reward: RewardSettings
    planted: PlantedSettings
    false_positives: FalsePositiveSettings
    models: ModelSettings
    objective: ObjectiveSettings
    cost: CostSettings
    run_dir: str
    options: dict[str, Any]
    seed: Annotated[int, Field(ge=0)] = 0
    only: list[str] | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.only or () if name not in PARTS]
        if unknown:
            raise InputError(f"only={','.join(unknown)} names no part", f"choose among {', '.join(PARTS)}")
        if not self.envs:
            raise InputError("envs=[]", "name at least one data set")

    @property
    def parts(self) -> list[Part]:
        """What is to be computed, in order."""
        return [part for part in PARTS if self.only is None or part in self.only]
