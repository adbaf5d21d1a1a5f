"""Random search: the baseline that every other search has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.search.base import SearchProblem
from agents.search.history import History


@dataclass(frozen=True)
class RandomSearch:
    """Masks of the free toggles, each with the same probability, none twice."""

    name: ClassVar[str] = "random"

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        history, rng = History(problem), np.random.default_rng(seed)
        while masks := history.batch(lambda: history.draw(rng)):
            history.ask(masks)
