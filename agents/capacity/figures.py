"""Figures of ``docs/methods.md``, drawn from numbers alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from agents.capacity.analysis import EnvAnalysis
from agents.study.rows import Row, Vector

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

_MARKERS = "osD^vPX*<>"


def draw(path: Path, title: str, analysis: EnvAnalysis) -> None:
    """Both axes against the trainable share, and against one another beside early stopping.

    Points are means over seeds, bars one standard error. Rows in which nothing learns are the base model's point.
    """
    rows = [row for row in analysis.rows if row.share]
    methods = list(dict.fromkeys(row.method for row in rows))
    masks = list(dict.fromkeys(row.mask for row in rows))
    colours = dict(zip(methods, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    markers = dict(zip(masks, _MARKERS, strict=False))
    figure, (quality, privacy, both) = plt.subplots(1, 3, figsize=(15, 4.8))

    def point(axis: Axes, row: Row, x: Vector, y: Vector) -> None:
        axis.errorbar(
            x.mean(),
            y.mean(),
            _error(y),
            None if x is y or x.size == 1 else _error(x),
            fmt=markers[row.mask],
            color=colours[row.method],
            markersize=6,
            elinewidth=0.6,
            alpha=0.85,
        )

    for row in rows:
        share = np.asarray([row.share])
        point(quality, row, share, row.quality)
        point(privacy, row, share, row.privacy)
        point(both, row, row.quality, row.privacy)
    x, y = ([getattr(stop, axis).mean() for stop in analysis.early] for axis in ("quality", "privacy"))
    both.plot(x, y, "k.-", linewidth=1, zorder=0)
    for stop, at_x, at_y in zip(analysis.early, x, y, strict=True):
        both.annotate(stop.mask, (at_x, at_y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    for axis, name in ((quality, "quality"), (privacy, "privacy")):
        axis.set(xscale="log", xlabel="trainable share", ylabel=name)
    both.set(xlabel="quality", ylabel="privacy")
    for axis in (quality, privacy, both):
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    handles = [Line2D([], [], color=colours[m], marker="o", linestyle="", label=m) for m in methods]
    handles += [Line2D([], [], color="0.4", marker=markers[m], linestyle="", label=m) for m in masks]
    handles.append(Line2D([], [], color="k", marker=".", label="full, steps"))
    figure.legend(handles=handles, loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.91, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _error(values: Vector) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))
