"""All runs of a comparison as arrays, normalised by what each table has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.comparison.results import Record, ResultFile
from agents.comparison.settings import CompareSettings
from agents.comparison.statistics import Draws, draw_seeds
from agents.comparison.trace import Trace

Vector = NDArray[np.float64]

REACHED = 0.95
"""The share of the best hypervolume that counts as having found the front."""


@dataclass(frozen=True)
class Scores:
    """Results of searchers on tables.

    Attributes:
        settings: Of the comparison.
        searchers: Their names.
        tables: Their names.
        sources: The data source of each table.
        traces: Runs by searcher and table, then by seed and preference.
        records: What the files say of themselves.
    """

    settings: CompareSettings
    searchers: tuple[str, ...]
    tables: tuple[str, ...]
    sources: tuple[str, ...]
    traces: Mapping[tuple[str, str], Mapping[tuple[int, float | None], Trace]]
    records: Sequence[Record]

    @classmethod
    def of(
        cls, settings: CompareSettings, sources: Mapping[str, str], files: Mapping[tuple[str, str], ResultFile]
    ) -> Scores:
        """Reads complete files.

        Args:
            settings: Of the comparison.
            sources: The data source of each table, by its name.
            files: With all runs that the settings ask for.
        """
        searchers = tuple(dict.fromkeys(name for name, _ in files))
        traces = {key: file.traces for key, file in files.items()}
        heads = [file.head for file in files.values() if file.head is not None]
        return cls(settings, searchers, tuple(sources), tuple(sources.values()), traces, heads)

    @property
    def weights(self) -> tuple[float, ...]:
        """The preferences with a utility."""
        return self.settings.weights

    @property
    def has_fronts(self) -> bool:
        """True if there are searches for the whole front."""
        return None in self.settings.preferences

    def budget(self, searcher: str) -> int:
        """Distinct evaluations of its runs."""
        return self.settings.budget_of(searcher)

    def utility(self, searcher: str, evaluations: int) -> Vector:
        """Best utility after so many evaluations as a share of the table's best: ``(tables, seeds, preferences)``."""
        return self._after(searcher, self.weights, evaluations)

    def volume(self, searcher: str, evaluations: int) -> Vector:
        """Hypervolume after so many evaluations as a share of the table's: ``(tables, seeds)``."""
        return self._after(searcher, (None,), evaluations)[..., 0]

    def evaluations_to(self, searcher: str, share: float = REACHED) -> Vector:
        """Evaluations until a share of the hypervolume was there: ``(tables, seeds)``, infinite where it never was."""
        result = np.full((len(self.tables), self.settings.seeds), np.inf)
        for (t, s), _ in np.ndenumerate(result):
            trace = self._trace(searcher, t, s, None)
            reached = np.flatnonzero(np.asarray(trace.best) >= share * trace.limit - 1e-9)
            if reached.size:
                result[t, s] = reached[0] + 1
        return result

    def at_seconds(self, searcher: str, preferences: Sequence[float | None], seconds: Vector) -> Vector:
        """The same shares by time: ``(times, tables, seeds, preferences)``; 0 before the first evaluation is done.

        Args:
            searcher: Its name.
            preferences: Weights, or None alone.
            seconds: Of fine-tunes and of the searcher together, ascending.
        """
        result = np.zeros((len(seconds), len(self.tables), self.settings.seeds, len(preferences)))
        for t in range(len(self.tables)):
            for s in range(self.settings.seeds):
                for p, preference in enumerate(preferences):
                    trace = self._trace(searcher, t, s, preference)
                    shares = np.asarray([0.0, *trace.best]) / (trace.limit or 1.0)
                    ends = np.asarray(trace.fine_tuning) + np.asarray(trace.searching)
                    result[:, t, s, p] = shares[np.searchsorted(ends, seconds, side="right")]
        return result

    def seconds(self, searcher: str, evaluations: int) -> tuple[float, float]:
        """Median seconds of a run's first evaluations: of the fine-tunes, and of the searcher itself."""
        runs = [trace for table in self.tables for trace in self._wanted(searcher, table) if trace.masks]
        last = [min(evaluations, len(trace.masks)) - 1 for trace in runs]
        tuning = [trace.fine_tuning[i] for trace, i in zip(runs, last, strict=True)]
        own = [trace.searching[i] for trace, i in zip(runs, last, strict=True)]
        return (float(np.median(tuning)), float(np.median(own))) if runs else (0.0, 0.0)

    def slowest_start(self, searcher: str) -> float:
        """The most seconds that it took before a first evaluation: of one that learns elsewhere, that learning."""
        runs = [trace for table in self.tables for trace in self._wanted(searcher, table)]
        return max((trace.searching[0] for trace in runs if trace.searching), default=0.0)

    def anchors(self) -> Vector:
        """The share of the best utility that the better anchor has: ``(tables, preferences)``."""
        return self._of_tables(lambda trace: trace.anchor)

    def foreseeable(self) -> Vector:
        """The share that the mask has which looks best to a model of all others: ``(tables, preferences)``."""
        return self._of_tables(lambda trace: trace.foreseeable or 0.0)

    def _of_tables(self, value: Callable[[Trace], float]) -> Vector:
        """What does not depend on who searched, as a share of the table's best: ``(tables, preferences)``."""
        name = self.searchers[0]
        traces = [[self._trace(name, t, 0, weight) for weight in self.weights] for t in range(len(self.tables))]
        return np.asarray([[value(trace) / (trace.limit or 1.0) for trace in row] for row in traces])

    @cached_property
    def draws(self) -> Draws:
        """Resamples of seeds, the same for every searcher."""
        return self._draws(0)

    @cached_property
    def other_draws(self) -> Draws:
        """Further ones, for what is compared with the first."""
        return self._draws(1)

    def _draws(self, stream: int) -> Draws:
        rng = np.random.default_rng([0, stream])
        return draw_seeds(self.sources, self.settings.seeds, self.settings.resamples, rng)

    def _after(self, searcher: str, preferences: Sequence[float | None], evaluations: int) -> Vector:
        assert 1 <= evaluations <= self.budget(searcher), "nothing is known beyond the budget"
        # A searcher that stopped by itself keeps what it had.
        return np.asarray(
            [
                [
                    [_best(self._trace(searcher, t, s, p), evaluations) for p in preferences]
                    for s in range(self.settings.seeds)
                ]
                for t in range(len(self.tables))
            ]
        ).reshape(len(self.tables), self.settings.seeds, len(preferences))

    def _trace(self, searcher: str, table: int, seed: int, preference: float | None) -> Trace:
        return self.traces[searcher, self.tables[table]][seed, preference]

    def _wanted(self, searcher: str, table: str) -> list[Trace]:
        found = self.traces[searcher, table]
        return [found[s, p] for s in range(self.settings.seeds) for p in self.settings.preferences]


def _best(trace: Trace, evaluations: int) -> float:
    if not trace.best:
        return 0.0
    return trace.best[min(evaluations, len(trace.best)) - 1] / (trace.limit or 1.0)
