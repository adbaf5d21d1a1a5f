"""Figures of ``docs/tables.md``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from agents.landscape.effects import Effects, Vector
from agents.landscape.surface import AXES, Surface

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

_COLOURS = {"quality": "#1b6ca8", "privacy": "#c8553d"}


def draw_axes(path: Path, surface: Surface) -> None:
    """Every mask on both axes, coloured by what may learn; the Pareto front, the anchors, and the noise as a cross."""
    figure, axis = plt.subplots(figsize=(6.4, 4.6))
    front = surface.axes[surface.front()]
    axis.plot(*front.T, "-", color="0.35", linewidth=1, zorder=1, label="Pareto front")
    dots = axis.scatter(
        surface.axes[:, 0],
        surface.axes[:, 1],
        c=surface.share,
        cmap="viridis",
        s=18,
        linewidths=0.3,
        edgecolors="w",
        zorder=2,
    )
    for name, at, offset in (("all off", (0, 1), (8, 5)), ("all on", (1, 0), (-8, 6))):
        axis.plot(*at, "k*", markersize=10, zorder=3)
        side = "left" if offset[0] > 0 else "right"
        axis.annotate(name, at, xytext=offset, textcoords="offset points", ha=side, fontsize=9)
    noise = surface.noise()
    if noise:
        across, up = (noise[name].value for name in AXES)
        axis.errorbar(0.1, 0.1, up, across, color="#c8553d", capsize=2, linewidth=1, label="± noise of one measurement")
    axis.set(xlabel="quality", ylabel="privacy", xlim=(-0.05, 1.05), ylim=(-0.05, 1.09), title=surface.name)
    axis.grid(alpha=0.25)
    # Above the rest: the lower left corner has the noise, the upper right one good masks.
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    figure.colorbar(dots, label="trainable share")
    _save(figure, path)


def draw_effects(path: Path, surface: Surface, effects: dict[str, Effects]) -> None:
    """Main effects on both axes as bars, pairs as one map an axis."""
    names = surface.toggles
    rows = np.arange(len(names))
    figure, (bars, *maps) = plt.subplots(
        1, 3, figsize=(14, 1.7 + 0.36 * len(names)), width_ratios=(1.15, 1, 1), layout="constrained"
    )
    for offset, axis_name in ((-0.2, "quality"), (0.2, "privacy")):
        bars.barh(rows + offset, effects[axis_name].main, 0.38, color=_COLOURS[axis_name], label=axis_name)
    bars.axvline(0, color="k", linewidth=0.8)
    bars.set_yticks(rows, names)
    bars.invert_yaxis()
    bars.set(xlabel="mean with the toggle on, minus off", title="main effects")
    bars.grid(axis="x", alpha=0.25)
    bars.legend(fontsize=8)
    widest = max(float(np.nanmax(np.abs(each.pairs), initial=0.0)) for each in effects.values()) or 1.0
    for axis, axis_name in zip(maps, AXES, strict=True):
        image = _map(axis, effects[axis_name].pairs, names, "RdBu", -widest, widest)
        axis.set_title(f"pairs: {axis_name}")
        if axis is not maps[0]:
            axis.set_yticklabels([])
    figure.colorbar(image, ax=maps, label="what the other adds", shrink=0.8)
    _save(figure, path)


def draw_correlations(path: Path, names: Sequence[str], correlations: Vector) -> None:
    """Rank correlations of the tables with each other; on the diagonal, of a table's seeds."""
    size = 3.2 + 0.5 * len(names)
    figure, axis = plt.subplots(figsize=(size + 1.2, size), layout="constrained")
    image = _map(axis, correlations, names, "RdBu", -1.0, 1.0)
    figure.colorbar(image, label="rank correlation of utilities", shrink=0.8)
    _save(figure, path)


def _map(axis: Axes, values: Vector, names: Sequence[str], colours: str, low: float, high: float) -> AxesImage:
    cmap = plt.get_cmap(colours).with_extremes(bad="0.92")
    image = axis.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            strong = abs(value) > 0.6 * max(abs(low), abs(high))
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)  # and no -0.00
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color="w" if strong else "k")
    return image


def _save(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)
