"""Ordinary fine-tuning, as a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.search.base import SearchProblem


@dataclass(frozen=True)
class AllOn:
    """Asks for one mask: every free toggle on."""

    name: ClassVar[str] = "all_on"

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        problem.ask([problem.mask(problem.free)])
