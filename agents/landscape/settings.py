"""What ``python -m agents.tables`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from agents.settings import RewardSettings
from rewards.errors import InputError

Preference = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class TablesSettings:
    """Everything that decides the page.

    Attributes:
        docs: Folder of the page; figures go into ``tables`` below it.
        reward: The axes; its metrics are not read.
        preferences: At which best masks are named.
        tables: Files; None for those that ship.
    """

    docs: str
    reward: RewardSettings
    preferences: list[Preference]
    tables: list[str] | None = None

    def __post_init__(self) -> None:
        if not self.preferences:
            raise InputError("preferences= is empty", "name at least one weight of privacy, 0 to 1")
