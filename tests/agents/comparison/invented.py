"""Results of searches that never ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agents.comparison.scores import Scores
from agents.comparison.settings import CompareSettings
from agents.comparison.trace import Trace
from agents.settings import RewardSettings

Course = Callable[[int, int, float | None], Sequence[float]]
"""The best so far by evaluation, of a table (by number), a seed and a preference."""


def trace(seed: int, preference: float | None, best: Sequence[float], seconds: float = 10.0) -> Trace:
    """A run in a table whose best is 1."""
    n = len(best)
    return Trace(
        seed=seed,
        preference=preference,
        masks=tuple(f"{i:08b}" for i in range(n)),
        quality=(0.5,) * n,
        privacy=(0.5,) * n,
        best=tuple(best),
        fine_tuning=tuple(seconds * (i + 1) for i in range(n)),
        searching=(0.0,) * n,
        limit=1.0,
        anchor=0.3,
        foreseeable=None if preference is None else 0.9,
    )


def scores(
    courses: Mapping[str, Course],
    *,
    seeds: int = 4,
    budget: int = 8,
    preferences: Sequence[float | None] = (0.5, None),
    budgets: Mapping[str, int] | None = None,
    sources: Sequence[str] = ("isic", "phantom"),
) -> Scores:
    """A comparison with one table a source."""
    settings = CompareSettings(
        docs="docs",
        reward=RewardSettings([], [], ["kid"], ["membership"]),
        seeds=seeds,
        budget=budget,
        preferences=list(preferences),
        run_dir="runs",
        budgets=dict(budgets or {}),
        resamples=200,
    )
    tables = [f"table {i}" for i in range(len(sources))]
    traces = {
        (name, table): {(s, p): trace(s, p, course(t, s, p)) for s in range(seeds) for p in preferences}
        for name, course in courses.items()
        for t, table in enumerate(tables)
    }
    return Scores(settings, tuple(courses), tuple(tables), tuple(sources), traces, [])
