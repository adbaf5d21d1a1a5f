"""Figures of ``docs/comparison.md``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from agents.comparison.scores import Scores, Vector
from agents.comparison.statistics import iqm, iqm_estimate
from rewards.estimate import Estimate

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_STYLES = ("-", "--", ":")
_FEW = 6
"""Curves whose intervals are drawn as bands; of more, bands hide each other, and the tables have them."""


def draw_curves(path: Path, scores: Scores) -> None:
    """What is found against distinct evaluations: utility, and hypervolume of searches for the whole front."""
    panels = _panels(scores)
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + 5.5 * len(panels), 4.6), squeeze=False)
    for axis, (name, values) in zip(axes[0], panels.items(), strict=True):
        for searcher, style in _styles(scores.searchers).items():
            counts = steps(scores.budget(searcher))
            found = [iqm_estimate(values(searcher, n), scores.draws) for n in counts]
            axis.plot(counts, [each.value for each in found], label=searcher, **style)
            if len(scores.searchers) <= _FEW:
                low, high = ([getattr(each, end) for each in found] for end in ("low", "high"))
                axis.fill_between(counts, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set(xlabel="distinct evaluations", ylabel=f"{name}, share of the best")
        axis.grid(alpha=0.25)
    _legend_and_save(figure, axes[0][-1], path)


def draw_seconds(path: Path, scores: Scores) -> None:
    """The same against time: of the fine-tunes, as they took when the tables were made, and of the searcher."""
    panels = {name: weights for name, weights in _preferences(scores).items() if weights}
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + 5.5 * len(panels), 4.6), squeeze=False)
    longest = max(max(sum(scores.seconds(name, scores.budget(name))), 1e-3) for name in scores.searchers)
    shortest = min(max(scores.seconds(name, 1)[0], 1e-3) for name in scores.searchers)
    times = np.geomspace(min(shortest, longest) / 2, longest, 60)
    for axis, (name, weights) in zip(axes[0], panels.items(), strict=True):
        for searcher, style in _styles(scores.searchers).items():
            values = iqm(scores.at_seconds(searcher, weights, times).reshape(len(times), -1))
            if scores.budget(searcher) < scores.settings.budget:  # it had no more: the curve ends there
                values[times > sum(scores.seconds(searcher, scores.budget(searcher)))] = np.nan
            axis.plot(times / 60, values, label=searcher, **style)
        axis.set(xscale="log", xlabel="minutes of one worker", ylabel=f"{name}, share of the best")
        axis.grid(alpha=0.25)
    _legend_and_save(figure, axes[0][-1], path)


def draw_intervals(path: Path, scores: Scores, counts: Sequence[int]) -> None:
    """Interquartile means with their intervals after a few numbers of evaluations."""
    (name, values), *_ = _panels(scores).items()
    order = sorted(scores.searchers, key=lambda searcher: -float(iqm(values(searcher, 1).reshape(-1))))
    figure, axes = plt.subplots(
        1, len(counts), figsize=(2 + 3.4 * len(counts), 1.4 + 0.28 * len(order)), sharey=True, squeeze=False
    )
    styles = _styles(scores.searchers)
    for axis, count in zip(axes[0], counts, strict=True):
        for row, searcher in enumerate(order):
            if count <= scores.budget(searcher):
                found = iqm_estimate(values(searcher, count), scores.draws)
                low, high = _ends(found)
                axis.barh(row, high - low, 0.7, left=low, color=styles[searcher]["color"], alpha=0.35)
                axis.plot([found.value] * 2, [row - 0.35, row + 0.35], color="k", linewidth=1.5)
        axis.use_sticky_edges = False  # else bars at an end of the axis are cut
        axis.set(title=f"after {count}", xlabel=f"{name}, share of the best")
        axis.grid(axis="x", alpha=0.25)
    axes[0][0].set_yticks(range(len(order)), order)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    _save(figure, path)


def draw_improvement(path: Path, searchers: Sequence[str], probabilities: Vector, title: str) -> None:
    """How likely a run of the row is better than one of the column."""
    size = 2.6 + 0.46 * len(searchers)
    figure, axis = plt.subplots(figsize=(size + 1.2, size), layout="constrained")
    cmap = plt.get_cmap("RdBu").with_extremes(bad="0.92")
    image = axis.imshow(np.ma.masked_invalid(probabilities), cmap=cmap, vmin=0, vmax=1)
    axis.set_xticks(range(len(searchers)), searchers, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(searchers)), searchers, fontsize=8)
    for (i, j), value in np.ndenumerate(probabilities):
        if np.isfinite(value):
            colour = "w" if abs(value - 0.5) > 0.3 else "k"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, label="probability that the row is better", shrink=0.8)
    _save(figure, path)


def steps(budget: int) -> list[int]:
    """Numbers of evaluations at which curves are computed: every one at first, then in steps of a seventh."""
    counts = {1, budget}
    n = 1
    while n < budget:
        counts.add(n)
        n += max(1, n // 7)
    return sorted(counts)


def _panels(scores: Scores) -> dict[str, Callable[[str, int], Vector]]:
    panels: dict[str, Callable[[str, int], Vector]] = {}
    if scores.weights:
        panels["utility"] = scores.utility
    if scores.has_fronts:
        panels["hypervolume"] = scores.volume
    return panels


def _preferences(scores: Scores) -> dict[str, Sequence[float | None]]:
    return {"utility": scores.weights, "hypervolume": (None,) if scores.has_fronts else ()}


def _styles(searchers: Sequence[str]) -> dict[str, dict[str, str]]:
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    return {
        name: {"color": colours[i % len(colours)], "linestyle": _STYLES[i // len(colours) % len(_STYLES)]}
        for i, name in enumerate(searchers)
    }


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def _legend_and_save(figure: plt.Figure, axis: Axes, path: Path) -> None:  # type: ignore[name-defined]
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
