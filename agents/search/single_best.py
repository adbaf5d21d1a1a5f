"""The best single layer group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.search.base import SearchProblem
from agents.search.history import History


@dataclass(frozen=True)
class SingleBest:
    """Measures each free toggle alone, in order, and nothing else: the best of them wins."""

    name: ClassVar[str] = "single_best"

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        alone = [problem.mask([toggle]) for toggle in problem.free]
        History(problem).ask_all(alone or [problem.mask(())])
