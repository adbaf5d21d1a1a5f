"""What every searcher promises. Run by `test_conformance.py` for each of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from agents.search.base import Searcher
from envs.task import Mask
from tests.agents.search.problems import Invented

TOGGLES = 4
"""Of the problems here, and of every task that a searcher may know."""

_MANY = 2**TOGGLES + 1
"""A budget with room for everything."""

_FROZEN: tuple[Mask, ...] = ((False,) * TOGGLES, (False, True, False, True), (True,) * TOGGLES)


def check_searcher(
    make: Callable[[], Searcher], *, preference: float | None, parallel: int, chance: bool, thorough: bool
) -> None:
    """Fails if a searcher breaks the promises of `Searcher`.

    Args:
        make: Builds one without a past.
        preference: Of the problem.
        parallel: Of the problem.
        chance: Whether its first masks depend on the seed.
        thorough: Whether it goes on until it has asked for everything.
    """
    landscape, searcher = Invented(TOGGLES, seed=3), make()

    def ask(searcher: Searcher, seed: int, budget: int, frozen: Mask = (), of: Invented = landscape) -> list[Mask]:
        return of.asked(searcher, seed, budget=budget, preference=preference, frozen=frozen, parallel=parallel)

    first = ask(searcher, 1, 12)
    assert 0 < len(first) <= 12
    assert all(len(mask) == TOGGLES and {type(bit) for bit in mask} == {bool} for mask in first), "masks are of bools"
    assert ask(make(), 1, 12) == first, "one seed, one search"
    if chance:
        assert any(ask(searcher, seed, 12) != first for seed in (2, 3)), "another seed, another search"
    assert ask(searcher, 1, 12) == first, "keeps nothing between two searches"
    assert len(ask(searcher, 1, 1)) == 1, "a budget of one"
    for frozen in _FROZEN:
        free = {mask for mask in product((False, True), repeat=TOGGLES) if not any(map(bool.__and__, mask, frozen))}
        everything = ask(searcher, 1, _MANY, frozen)
        assert everything, "ends by itself, after at least one mask"
        assert set(everything) <= free, "keeps frozen toggles off"
        if thorough:
            assert set(everything) == free, "given time, finds everything"
    half = [mask for mask in product((False, True), repeat=TOGGLES) if sum(mask) % 2]
    everything = list(product((False, True), repeat=TOGGLES))
    for failing in (half, everything):
        assert ask(searcher, 1, _MANY, of=Invented(TOGGLES, 3, failing)), "lives with failures"
