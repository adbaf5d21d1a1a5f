"""What one search knows, and which masks are still new to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice, product

import numpy as np

from agents.search.base import Outcome, SearchProblem
from envs.task import Mask
from rewards.objective import Axes

_TRIES = 64


class History:
    """Asks on behalf of one search, remembers the answers, and finds masks that were not asked for yet.

    Args:
        problem: What is searched.

    Attributes:
        problem: The same.
        known: Axes by mask, in the order of the answers: those of the anchors, which cost nothing, and of every mask
            whose evaluation did not fail.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        self.known: dict[Mask, Axes] = {problem.mask(()): Axes(0.0, 1.0)}
        if len(problem.free) == problem.toggles:
            self.known[problem.mask(problem.free)] = Axes(1.0, 0.0)
        self._taken: set[Mask] = set()

    @property
    def exhausted(self) -> bool:
        """True once every mask of the free toggles is taken."""
        return len(self._taken) == int(2 ** len(self.problem.free))

    def is_new(self, mask: Mask) -> bool:
        """Whether a mask is not taken: neither asked for nor promised by `draw` or `near`."""
        return mask not in self._taken

    def take(self, mask: Mask) -> Mask:
        """Promises to ask for a mask."""
        self._taken.add(mask)
        return mask

    def ask(self, masks: Sequence[Mask]) -> list[Outcome]:
        """`SearchProblem.ask`, remembered.

        Raises:
            BudgetSpent: If the budget has no room for one of them.
        """
        self._taken.update(masks)
        outcomes = self.problem.ask(masks)
        self.known.update((outcome.mask, outcome.axes) for outcome in outcomes if outcome.axes is not None)
        return outcomes

    def ask_all(self, masks: Sequence[Mask]) -> None:
        """Asks for as many at once as the evaluator works on side by side."""
        for start in range(0, len(masks), self.problem.parallel):
            self.ask(masks[start : start + self.problem.parallel])

    def draw(self, rng: np.random.Generator) -> Mask | None:
        """Takes one of the new masks, each with the same probability; None if there is none."""
        if self.exhausted:
            return None
        free = np.asarray(self.problem.free)
        for _ in range(_TRIES):
            mask = self.problem.mask(free[rng.random(len(free)) < 0.5].tolist())
            if self.is_new(mask):
                return self.take(mask)
        new = [mask for mask in self._all() if self.is_new(mask)]
        return self.take(new[rng.integers(len(new))])

    def near(self, mask: Mask, rng: np.random.Generator) -> Mask | None:
        """Takes the new mask with the fewest flipped toggles, of several a random one; None if there is none."""
        if self.exhausted:
            return None
        order = rng.permutation(self.problem.free).tolist()
        neighbours = (flipped(mask, flips) for count in range(len(order) + 1) for flips in combinations(order, count))
        return next((self.take(neighbour) for neighbour in neighbours if self.is_new(neighbour)), None)

    def batch(self, propose: Callable[[], Mask | None], size: int | None = None) -> list[Mask]:
        """Up to ``size`` proposals, by default as many as the evaluator works on; shorter once one is None."""
        proposals = iter(propose, None)
        return [mask for mask in islice(proposals, size or self.problem.parallel) if mask is not None]

    def answer(self, mask: Mask) -> Axes | None:
        """Axes of a mask that was asked for or is an anchor; None if its evaluation failed."""
        return self.known.get(mask)

    def best(self, preference: float) -> Mask:
        """The known mask of highest utility; of equals, the first."""
        return max(self.known, key=lambda mask: self.problem.utility(self.known[mask], preference))

    def weight(self, rng: np.random.Generator) -> float:
        """The problem's preference; if it has none, a new one at random.

        Random weights in a scalarisation that finds every trade-off are how a method for one objective looks for a
        front (Knowles 2006, ParEGO).
        """
        preference = self.problem.preference
        return float(rng.random()) if preference is None else preference

    def _all(self) -> Iterator[Mask]:
        free = self.problem.free
        for bits in product((False, True), repeat=len(free)):
            yield self.problem.mask([i for i, on in zip(free, bits, strict=True) if on])


def flipped(mask: Mask, toggles: Sequence[int]) -> Mask:
    """The mask with these toggles the other way round."""
    return tuple(on != (i in toggles) for i, on in enumerate(mask))
