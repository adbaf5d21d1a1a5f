"""What ``python -m agents.compare`` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from agents.ranges import Count
from agents.settings import EnvSettings, RewardSettings
from rewards.errors import InputError
from rewards.objective import Objective

Preference = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class CompareSettings:
    """Everything that decides the comparison.

    Attributes:
        docs: Folder of the page; figures go into ``comparison`` below it.
        reward: The axes and the utility; its metrics are not read.
        seeds: Runs of each searcher on each table for each preference.
        budget: Distinct evaluations of a run.
        preferences: Weights of privacy; None for a search for the whole front.
        run_dir: Runs are kept in ``compare`` below it.
        page: Name of the page, without ``.md``.
        title: Its headline.
        command: What its first sentence says made it.
        searchers: Names; None for all.
        tables: Files; None for those that ship.
        env: The data source to search in, of which the name alone counts; None for each in turn. The others are what
            can be learned from.
        budgets: Smaller ones of searchers, by their name; larger ones than ``budget`` mean nothing.
        workers: Processes; None for one a core.
        resamples: Of the bootstrap.
    """

    docs: str
    reward: RewardSettings
    seeds: int
    budget: Count
    preferences: list[Preference | None]
    run_dir: str
    page: str = "comparison"
    title: str = "Searchers against each other"
    command: str = "python -m agents.compare"
    searchers: list[str] | None = None
    tables: list[str] | None = None
    env: EnvSettings | None = None
    budgets: dict[str, Count] = field(default_factory=dict)
    workers: Count | None = None
    resamples: Count = 2000

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds={self.seeds}", "set it to 1 or more")
        for key, values in (("preferences", self.preferences), ("searchers", self.searchers)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise InputError(f"{key}={list(values)}", "name at least one, and each once")

    @property
    def objective(self) -> Objective:
        """What is searched for."""
        reward = self.reward
        return Objective(tuple(reward.quality), tuple(reward.privacy), reward.scalarization, reward.rho)

    @property
    def source(self) -> str | None:
        """The name of the data source to search in; None for each in turn."""
        return None if self.env is None else self.env.name

    @property
    def weights(self) -> tuple[float, ...]:
        """The preferences that are one."""
        return tuple(preference for preference in self.preferences if preference is not None)

    def names(self, usual: Sequence[str], others: Sequence[str] = ()) -> list[str]:
        """The searchers to compare.

        Args:
            usual: Those that are compared if none is named.
            others: Those that have to be named.

        Raises:
            InputError: If one is not known.
        """
        known = [*usual, *others]
        names = list(usual) if self.searchers is None else self.searchers
        for key, given in (("searchers", names), ("budgets", list(self.budgets))):
            if unknown := [name for name in given if name not in known]:
                raise InputError(f"{key}= names {', '.join(unknown)}", f"choose among {', '.join(known)}")
        return names

    def budget_of(self, searcher: str) -> int:
        """Distinct evaluations of its runs."""
        return min(self.budgets.get(searcher, self.budget), self.budget)
