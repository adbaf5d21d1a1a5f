"""Figures of ``docs/measurements.md``, drawn from results alone: numbers, never an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from agents.validation.planted import DEFAULT
from rewards.memorization.copy_rate import DETECTOR

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = ("untouched", "noise, sd 4", "shifted 2 px right")
"""Perturbations whose recovered shares are shown."""

_COLOURS = dict(zip((DEFAULT, *DETECTOR), ("crimson", "tab:blue", "tab:orange", "tab:green"), strict=True))
_MINOR_SHARE = 0.02
"""A metric that takes less of the time than this at the largest size has no curve of its own."""


def draw_planted(path: Path, result: Mapping[str, Any]) -> None:
    """Recovered against planted share, a row a data set and a column a perturbation."""
    envs = result["envs"]
    figure, axes = plt.subplots(
        len(envs), len(SHOWN), figsize=(11, 3.6 * len(envs)), squeeze=False, sharex=True, sharey=True
    )
    for row, (env, found) in zip(axes, envs.items(), strict=True):
        least = 0.25 / found["generated"]
        for axis, perturbation in zip(row, SHOWN, strict=True):
            recovered = found["perturbations"][perturbation]["recovered"]
            planted = [max(each["planted"], least) for each in recovered]
            axis.plot([least, 1], [least, 1], ":", color="0.5", label="planted")
            axis.axhline(found["stated"], color="0.8", linewidth=1)
            for place, (name, colour) in enumerate(_COLOURS.items()):
                x = [share * 1.07 ** (place - 1.5) for share in planted]
                value, low, high = ([max(each[name][i], least) for each in recovered] for i in range(3))
                errors = [
                    [v - a for v, a in zip(value, low, strict=True)],
                    [b - v for v, b in zip(value, high, strict=True)],
                ]
                axis.errorbar(x, value, errors, fmt=".-", color=colour, label=name, linewidth=1, capsize=2)
            axis.set(xscale="log", yscale="log", title=f"{env}: {perturbation}")
            ticks = sorted({max(each["planted"], least) for each in recovered})
            axis.set_xticks(ticks, ["0" if tick == least else f"{tick:.0%}" for tick in ticks])
            axis.set_xticks([], minor=True)
            axis.set_yticks([least, 0.01, 0.1, 1], ["0", "1%", "10%", "100%"])
        row[0].set_ylabel("flagged share")
    for axis in axes[-1]:
        axis.set_xlabel("planted share")
    axes[0, 0].legend(fontsize=8)
    _save(figure, path)


def draw_false_positives(path: Path, result: Mapping[str, Any]) -> None:
    """How many images each resplit flagged, beside what an exchangeable score would give."""
    envs = result["envs"]
    figure, axes = plt.subplots(1, len(envs), figsize=(5.5 * len(envs), 3.6), squeeze=False)
    for axis, (env, found) in zip(axes[0], envs.items(), strict=True):
        flagged = found["detectors"][DEFAULT]["flagged"]
        most = max(flagged)
        counts = [flagged.count(value) / len(flagged) for value in range(most + 1)]
        axis.bar(range(most + 1), counts, color="crimson", alpha=0.6, label=f"{DEFAULT}, {len(flagged)} resplits")
        axis.plot(range(most + 1), found["expected"][: most + 1], "k.-", label="if the stated rate holds")
        axis.set(title=env, xlabel=f"flagged of {found['judged']} held-out images", ylabel="share of the resplits")
        axis.legend(fontsize=8)
    _save(figure, path)


def draw_cost(path: Path, result: Mapping[str, Any], goal: float) -> None:
    """Seconds against the number of images: the whole, and every step and metric that matters."""
    rows = result["sizes"]
    sizes = [row["n"] for row in rows]
    curves = {step: [row["steps"][step] for row in rows] for step in rows[-1]["steps"]}
    curves |= {name: [sum(row["metrics"][name].values()) for row in rows] for name in rows[-1]["metrics"]}
    total = [row["seconds"] for row in rows]
    figure, axis = plt.subplots(figsize=(8, 4.8))
    axis.plot(sizes, total, "o-", color="black", linewidth=2, label="everything")
    for name, seconds in sorted(curves.items(), key=lambda item: -item[1][-1]):
        if seconds[-1] >= _MINOR_SHARE * total[-1]:
            axis.plot(sizes, [max(each, 1e-3) for each in seconds], ".-", linewidth=1, label=name)
    axis.axhline(goal, color="0.6", linestyle="--", linewidth=1)
    axis.annotate(f"goal at {sizes[-1]}", (sizes[0], goal), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="generated, training and held-out images each", ylabel="seconds")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
