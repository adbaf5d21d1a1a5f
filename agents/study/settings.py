"""What every comparison that fine-tunes is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from agents.ranges import Count
from agents.settings import BackboneSettings, DataSettings, EnvSettings, RewardSettings, StoreSettings
from envs.task import InnerBudget

Seed = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class SplitSettings:
    """How every data set is split; see `EnvSettings`."""

    size: Count
    train: Count
    heldout: Count
    test: Count
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Where a comparison's data are, and how it fine-tunes and measures.

    Attributes:
        docs: Folder of the page and its figures.
        envs: Data sets.
        split: Of each of them.
        groups: The group scheme.
        inner: Of every fine-tune.
        metrics: Everything that is measured.
        workers: Tasks that are computed side by side; None for one a core.
        threads: Of torch in each.
        options: Of the data sets' loader.
        method_options: Settings of a method by its name.
        mitigation_options: Settings of a mitigation by its name.
    """

    docs: str
    envs: list[str]
    split: SplitSettings
    data: DataSettings
    backbone: BackboneSettings
    reward: RewardSettings
    groups: str
    inner: InnerBudget
    metrics: list[str]
    store: StoreSettings
    run_dir: str
    workers: Count | None = None
    threads: Count = 1
    options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    mitigation_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def env(self, name: str) -> EnvSettings:
        """A data set with the split that all share."""
        split = self.split
        return EnvSettings(
            name, split.size, split.train, split.heldout, split.test, seed=split.seed, options=self.options
        )
