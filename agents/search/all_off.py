"""No fine-tuning, as a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.search.base import SearchProblem


@dataclass(frozen=True)
class AllOff:
    """Asks for one mask: every toggle off."""

    name: ClassVar[str] = "all_off"

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        problem.ask([problem.mask(())])
