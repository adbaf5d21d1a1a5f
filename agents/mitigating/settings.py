"""What ``python -m agents.mitigations`` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.ranges import Count, Rate, Weight
from agents.study.settings import Seed, StudySettings
from envs.methods import find_method
from envs.mitigations import find_mitigations
from rewards.errors import InputError
from rewards.suite import Suite

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class MitigationsSettings(StudySettings):
    """Everything that decides the comparison.

    Attributes:
        mitigations: What is compared; names joined by commas act together.
        masks: By data set, as ``mask=`` takes them; for the others a policy searches.
        preference: Weight of privacy that it is asked for.
        choice_evaluations: Fine-tunes that it may try.
        copies: Methods that the mask is copied to.
        learning_rates: By method.
        seeds: Of everything but the split.
        early_stops: Steps of full fine-tunes that are stopped early.
        inversion_seeds: Of the fine-tunes whose images are inverted.
        inversion_copies: Whether those of copies are inverted too.
    """

    mitigations: list[str]
    copies: list[str]
    learning_rates: dict[str, Rate]
    seeds: list[Seed]
    early_stops: list[Count]
    inversion_seeds: list[Seed]
    inversion_copies: bool = True
    masks: dict[str, str] = field(default_factory=dict)
    preference: Weight = 0.5
    choice_evaluations: Count = 16

    def __post_init__(self) -> None:
        for method in self.methods:
            find_method(method, self.method_options.get(method))
            if method not in self.learning_rates:
                raise InputError(f"learning_rates has none of {method}", f"set +learning_rates.{method}=<rate>")
        for each in self.mitigations:
            find_mitigations({name: self.mitigation_options.get(name, {}) for name in each.split(",")})
        Suite(self.metrics)
        if not self.envs or not self.mitigations or len(set(self.mitigations)) < len(self.mitigations):
            raise InputError(
                f"envs={self.envs} mitigations={self.mitigations}", "name at least one of both, and each once"
            )
        if strange := sorted(set(self.masks) - set(self.envs)):
            raise InputError(f"masks names {', '.join(strange)}", f"envs= has {', '.join(self.envs)}")
        if FULL in self.copies:
            raise InputError(f"copies={self.copies}", "full has the mask anyway: leave it out")
        if len(self.seeds) < 2:
            raise InputError(f"seeds={self.seeds}", "give two or more")
        if not 0 <= self.preference <= 1:
            raise InputError(f"preference={self.preference}", "set it between 0 (quality only) and 1 (privacy only)")
        if late := [steps for steps in self.early_stops if steps >= self.inner.steps]:
            raise InputError(f"early_stops={late}", f"stop before inner.steps={self.inner.steps}")
        if missing := sorted({*self.reward.quality, *self.reward.privacy} - set(self.metrics)):
            raise InputError(f"metrics= lacks {', '.join(missing)}", "the axes need it")

    @property
    def methods(self) -> list[str]:
        """All that are fine-tuned with, full fine-tuning first."""
        return [FULL, *self.copies]

    @property
    def choice_seed(self) -> int:
        """Of the fine-tunes by which a mask is chosen: no other fine-tune of the comparison has it."""
        return max(*self.seeds, *self.inversion_seeds) + 1
