"""Regularized evolution."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agents.search.base import SearchProblem
from agents.search.history import History
from envs.task import Mask
from rewards.errors import InputError


@dataclass(frozen=True)
class RegularizedEvolution:
    """Regularized (aging) evolution (Real et al., arXiv 1802.01548, algorithm 1).

    The first masks are random. Then the best of a tournament has a child, and once the population is full, its oldest
    member dies. A child differs from its parent in one toggle, in more only if all of those are known: the budget
    counts distinct masks. Without a preference every tournament is held at a weight of its own.

    The defaults suit 16 to 128 evaluations of 8 toggles. There a tournament as large as the population was better than
    one half its size, and fewer founders than the population holds were better than as many.

    Attributes:
        population: How many masks live.
        tournament: How many of them compete to be a parent.
        founders: Random masks at the start, at most ``population``.

    Raises:
        InputError: If one of them is below 1, or there are more founders than can live.
    """

    name: ClassVar[str] = "evolution"
    population: int = 16
    tournament: int = 16
    founders: int = 8

    def __post_init__(self) -> None:
        if self.tournament < 1 or not 1 <= self.founders <= self.population:
            raise InputError(
                f"population={self.population} tournament={self.tournament} founders={self.founders}",
                "set each to 1 or more, and founders to at most population",
            )

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        history, rng = History(problem), np.random.default_rng(seed)
        alive: deque[Mask] = deque(maxlen=self.population)

        def propose() -> Mask | None:
            if len(alive) < self.founders:
                return history.draw(rng)
            competitors = rng.choice(len(alive), min(self.tournament, len(alive)), replace=False)
            weight = history.weight(rng)
            parent = max((alive[i] for i in competitors), key=lambda mask: problem.utility(history.known[mask], weight))
            return history.near(parent, rng)

        while masks := history.batch(propose):
            alive.extend(outcome.mask for outcome in history.ask(masks) if outcome.axes is not None)
