"""What ``python -m agents.methods`` is told."""

from __future__ import annotations

from dataclasses import dataclass

from agents.ranges import Count, Rate
from agents.study.settings import Seed, StudySettings
from envs.methods import find_method
from rewards.errors import InputError
from rewards.suite import Suite


@dataclass(frozen=True)
class TuningSettings:
    """The choice of each method's learning rate, with everything on.

    Attributes:
        env: The data set, judged by its held-out split.
        seed: None of the table's.
        learning_rates: To choose among.
    """

    env: str
    seed: Seed
    learning_rates: list[Rate]


@dataclass(frozen=True)
class TimingSettings:
    """Training steps a measurement, and measurements, of which the median is quoted."""

    steps: Count
    repeats: Count


@dataclass(frozen=True, kw_only=True)
class MethodsSettings(StudySettings):
    """Everything that decides the comparison; the learning rate of ``inner`` is the early stops' only.

    Attributes:
        methods: Adaptation methods.
        masks: By name, as ``mask=`` takes them.
        seeds: Of everything but the split.
        early_stops: Steps of full fine-tunes that are stopped early.
        tuning: See `TuningSettings`.
        timing: See `TimingSettings`.
    """

    methods: list[str]
    masks: dict[str, str]
    seeds: list[Seed]
    early_stops: list[Count]
    tuning: TuningSettings
    timing: TimingSettings

    def __post_init__(self) -> None:
        for name in self.methods:
            find_method(name, self.method_options.get(name))
        Suite(self.metrics)
        for key in ("envs", "methods", "masks", "seeds"):
            if not getattr(self, key):
                raise InputError(f"{key}= is empty", "name at least one")
        if "full" not in self.methods or "all" not in self.masks.values() or "none" not in self.masks.values():
            raise InputError(
                "the axes lie between the base model and full fine-tuning",
                "keep full in methods=, and all and none among masks=",
            )
        if len(self.seeds) < 2 or self.tuning.seed in self.seeds:
            raise InputError(
                f"seeds={self.seeds} with tuning.seed={self.tuning.seed}", "give two seeds or more, tuning.seed not"
            )
        late = [steps for steps in self.early_stops if steps >= self.inner.steps]
        if late:
            raise InputError(f"early_stops={late}", f"stop before inner.steps={self.inner.steps}")
        needed = {*self.reward.quality, *self.reward.privacy, "copy_rate"}
        if missing := sorted(needed - set(self.metrics)):
            raise InputError(f"metrics= lacks {', '.join(missing)}", "the axes and the table need it")
