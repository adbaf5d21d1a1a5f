"""The figure of each data set in ``docs/mitigations.md``, drawn from numbers alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from agents.mitigating.analysis import EnvAnalysis
from agents.study.rows import Row, Vector

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

_MARKERS = "osD^vPX*<>"


def draw(path: Path, title: str, analysis: EnvAnalysis) -> None:
    """Quality and privacy of every row beside early stopping; a colour a mitigation, a marker a subject.

    Points are means over seeds, bars one standard error.
    """
    subjects = list(dict.fromkeys((row.method, row.mask) for row in analysis.rows))
    names = list(dict.fromkeys(row.mitigations for row in analysis.rows))
    palette = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    colours = {name: "0.2" if not name else palette[i % len(palette)] for i, name in enumerate(names)}
    markers = dict(zip(subjects, _MARKERS, strict=False))
    figure, axis = plt.subplots(figsize=(9.5, 6))
    for row in analysis.rows:
        axis.errorbar(
            row.quality.mean(),
            row.privacy.mean(),
            _error(row.privacy),
            _error(row.quality),
            fmt=markers[row.method, row.mask],
            color=colours[row.mitigations],
            markersize=6,
            elinewidth=0.6,
            alpha=0.85,
        )
    x, y = ([_mean(stop, name) for stop in analysis.early] for name in ("quality", "privacy"))
    axis.plot(x, y, "k.-", linewidth=1, zorder=0)
    for stop, at in zip(analysis.early, zip(x, y, strict=True), strict=True):
        axis.annotate(stop.mask, at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="quality", ylabel="privacy", title=title)
    axis.grid(alpha=0.25)
    handles = [Line2D([], [], color=colours[n], marker="o", linestyle="", label=n or "none") for n in names]
    handles += [Line2D([], [], color="0.4", marker=markers[s], linestyle="", label=f"{s[0]}, {s[1]}") for s in subjects]
    handles.append(Line2D([], [], color="k", marker=".", label="full, steps"))
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean(row: Row, axis: str) -> float:
    return float(getattr(row, axis).mean())


def _error(values: Vector) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))
