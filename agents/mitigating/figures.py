"""The figure of each data set in ``docs/mitigations.md``, drawn from numbers alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from agents.mitigating.analysis import EnvAnalysis
from agents.study.rows import Row, Vector
from envs.mitigations import MITIGATIONS, Stage

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

_COLUMNS = 5
_MARKERS = {Stage.DATA: "s", Stage.BATCH: "s", Stage.STEP: "o", Stage.WEIGHTS: "^", Stage.SAMPLING: "D"}
_NONE = {"color": "k", "marker": "*", "markersize": 11}


def draw(path: Path, title: str, analysis: EnvAnalysis) -> None:
    """Quality and privacy, a panel for each thing that mitigations are put on, beside early stopping.

    Points are means over seeds, bars one standard error. Marks tell when a mitigation acts.
    """
    subjects = list(dict.fromkeys((row.method, row.mask) for row in analysis.rows))
    names = list(dict.fromkeys(row.mitigations for row in analysis.rows if row.mitigations))
    palette = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    looks = {"": _NONE} | {
        name: {"color": palette[i % len(palette)], "marker": _marker(name), "markersize": 6}
        for i, name in enumerate(names)
    }
    columns = min(_COLUMNS, len(subjects))
    rows = -(-len(subjects) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(2.8 * columns + 2, max(2.8 * rows + 0.6, 4.5)),
        layout="constrained",
    )
    panels = dict(zip(subjects, grid.flat, strict=False))
    for subject, panel in panels.items():
        own = [row for row in analysis.rows if (row.method, row.mask) == subject]
        panel.set_title(f"{subject[0]}, {subject[1]} ({own[0].share:.2%})", fontsize=9)
        panel.grid(alpha=0.25)
        _stops(panel, analysis, numbers=subject == subjects[0])
        for row in reversed(own):  # what has no mitigation lies on top
            x, y = _point(row)
            errors = _error(row.privacy), _error(row.quality)
            panel.errorbar(x, y, *errors, linestyle="", elinewidth=0.6, alpha=0.85, **looks[row.mitigations])
    for i, panel in enumerate(grid.flat):
        panel.set_visible(i < len(subjects))
        panel.tick_params(labelbottom=i + columns >= len(subjects))  # the lowest of its column
    handles = [Line2D([], [], linestyle="", label=name or "none", **looks[name]) for name in ("", *names)]
    handles.append(Line2D([], [], color="0.6", marker=".", label="full, steps"))
    figure.suptitle(title)
    figure.supxlabel("quality", fontsize=10)
    figure.supylabel("privacy", fontsize=10)
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _stops(panel: Axes, analysis: EnvAnalysis, *, numbers: bool) -> None:
    points = [_point(stop) for stop in analysis.early]
    panel.plot(*zip(*points, strict=True), color="0.6", marker=".", linewidth=1, zorder=0)
    if numbers:
        for stop, at in zip(analysis.early, points, strict=True):
            panel.annotate(stop.mask, at, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _marker(mitigations: str) -> str:
    return _MARKERS[min(MITIGATIONS[name].stage for name in mitigations.split(","))]


def _point(row: Row) -> tuple[float, float]:
    return float(row.quality.mean()), float(row.privacy.mean())


def _error(values: Vector) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))
