"""The mask that was best elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from agents.search.base import Experience, SearchProblem
from agents.search.history import History
from envs.task import Mask
from rewards.errors import InputError

_GRID = tuple(i / 10 for i in range(11))
"""Preferences for which masks are copied if the problem has none."""


@dataclass(frozen=True)
class CopyMask:
    """Asks for the best mask of each source, one after another, and nothing else.

    Of a source, masks that turn a frozen toggle on do not count. Without a preference it copies the best masks for 0,
    .1, ..., 1.

    Attributes:
        sources: Tasks with as many toggles as the problem, in the order in which they are trusted.

    Raises:
        InputError: If there is no source; by `search`, if one has another number of toggles.
    """

    name: ClassVar[str] = "copy_mask"
    sources: tuple[Experience, ...]

    def __post_init__(self) -> None:
        _need_source(self.name, self.sources)

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        for source in self.sources:
            if (toggles := source.group_features.shape[0]) != problem.toggles:
                raise InputError(
                    f"{source.env}/{source.task} has {toggles} toggles and the problem {problem.toggles}: "
                    "no mask can be copied",
                    "choose sources with the same groups",
                )
        _ask_best(
            problem, ({m: [u] for m, u in s.utilities(w).items()} for w in _preferences(problem) for s in self.sources)
        )


@dataclass(frozen=True)
class CopyMeanMask:
    """Asks for the one mask that was best on average over the sources, and nothing else.

    Masks that fewer sources measured than others do not count: a mean over other tasks is another scale. Nor do masks
    that turn a frozen toggle on, nor sources with another number of toggles. Without a preference it copies the best
    masks for 0, .1, ..., 1.

    Attributes:
        sources: Other tasks.

    Raises:
        InputError: If there is no source; by `search`, if none has as many toggles as the problem.
    """

    name: ClassVar[str] = "copy_mean_mask"
    sources: tuple[Experience, ...]

    def __post_init__(self) -> None:
        _need_source(self.name, self.sources)

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        alike = [source for source in self.sources if source.group_features.shape[0] == problem.toggles]
        if not alike:
            raise InputError(
                f"none of {', '.join(f'{s.env}/{s.task}' for s in self.sources)} has {problem.toggles} toggles: "
                "no mask can be copied",
                "choose sources with the same groups",
            )
        _ask_best(problem, (_pooled(alike, weight) for weight in _preferences(problem)))


def _pooled(sources: Sequence[Experience], preference: float) -> Mapping[Mask, list[float]]:
    pooled: dict[Mask, list[float]] = {}
    for source in sources:
        for mask, utility in source.utilities(preference).items():
            pooled.setdefault(mask, []).append(utility)
    return pooled


def _ask_best(problem: SearchProblem, rankings: Iterator[Mapping[Mask, Sequence[float]]]) -> None:
    """Asks for the best mask of each ranking: measured most often first, then of the highest mean utility."""
    free = problem.mask(problem.free)
    wanted: dict[Mask, None] = {}
    for utilities in rankings:
        allowed = [mask for mask in utilities if all(map(bool.__le__, mask, free))]
        wanted[max(allowed, key=lambda mask: (len(utilities[mask]), fmean(utilities[mask])))] = None
    History(problem).ask_all(list(wanted))


def _preferences(problem: SearchProblem) -> Sequence[float]:
    return _GRID if problem.preference is None else (problem.preference,)


def _need_source(name: str, sources: Sequence[Experience]) -> None:
    if not sources:
        raise InputError(f"searcher {name} has no source", "give it at least one measured task (src=...)")
