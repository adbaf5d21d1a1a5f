"""``docs/tables.md``, written from tables alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from agents.landscape.effects import Effects
from agents.landscape.figures import draw_axes, draw_correlations, draw_effects
from agents.landscape.likeness import Vector, likeness
from agents.landscape.luck import Luck
from agents.landscape.settings import TablesSettings
from agents.landscape.surface import AXES, Surface
from agents.lookup import provenance
from agents.markdown import prose, table
from rewards.errors import InputError

NAME = "tables.md"
_FIGURES = "tables"
_MIDDLE = 0.5
"""The preference at which effects on the utility, likeness and luck are quoted."""


def write_document(folder: Path, settings: TablesSettings, surfaces: Sequence[Surface]) -> Path:
    """Writes the page, two figures a table, and one of all tables.

    Args:
        folder: Created if missing.
        settings: Of the page.
        surfaces: The tables, in the order of the page.

    Raises:
        InputError: If the folder cannot be written.
    """
    path, figures = folder / NAME, folder / _FIGURES
    alike = likeness(surfaces, _MIDDLE)
    try:
        figures.mkdir(parents=True, exist_ok=True)
        pieces = [_introduction(settings), _overview(surfaces)]
        if len(surfaces) > 1:
            draw_correlations(figures / "likeness.png", [surface.name for surface in surfaces], alike)
            pieces.append(_alike(alike))
        for surface in surfaces:
            effects = {name: Effects.of(surface.masks, surface.axes[:, i]) for i, name in enumerate(AXES)}
            draw_axes(figures / f"{surface.name}-axes.png", surface)
            draw_effects(figures / f"{surface.name}-effects.png", surface, effects)
            pieces += _table(settings, surface, effects)
        path.write_text("\n".join(pieces), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction(settings: TablesSettings) -> str:
    reward = settings.reward
    return (
        "# Tables: every mask measured\n\n"
        + prose(
            """`make tables` (`python -m agents.tables`) writes this page and its figures from the tables alone; nothing
            here is written by hand. In a table every combination of the toggles was fine-tuned, sampled and measured
            by `python -m agents.tabulate`, so that the best mask is known, and a search in it
            (`evaluator=tabular`) costs microseconds."""
        )
        + "\n"
        + prose(
            f"""Quality ({", ".join(reward.quality)}): 0 = the base model, all toggles off; 1 = full fine-tuning, all
            on. Privacy ({", ".join(reward.privacy)}): 0 = full fine-tuning, 1 = no more memorized than held-out images.
            Both are cut to [0, 1]. The utility is {_scalarization(settings)} of both, with the preference as the weight
            of privacy. Some masks were measured again with further seeds, each of them between the anchors of its own
            seed: the noise is the pooled standard deviation of one mask's measurements about their mean, without the
            anchors, which have none by definition."""
        )
    )


def _scalarization(settings: TablesSettings) -> str:
    if settings.reward.scalarization == "weighted_sum":
        return "the weighted sum"
    return f"the augmented Chebyshev mean (rho {settings.reward.rho:g})"


def _overview(surfaces: Sequence[Surface]) -> str:
    settings = ("table", "data", "method", "train", "steps", "learning rate", "masks", "seeds")
    header = (*settings, "noise: quality", "noise: privacy", "best")
    rows = []
    for surface in surfaces:
        task, noise = surface.table.task, surface.noise()
        rows.append(
            (
                f"[{surface.name}](#{_anchor(surface.name)})",
                task.env,
                task.method,
                str(surface.table.card["data"]["train"]),
                str(task.inner.steps),
                f"{task.inner.learning_rate:g}",
                str(len(surface.masks)),
                str(len(surface.table.evaluations)),
                *(f"{noise[name].value:.3f}" if name in noise else "" for name in AXES),
                f"{surface.utilities(_MIDDLE).max():.3f}",
            )
        )
    return "\n".join(
        ["## All tables\n", table(header, rows), prose(f"Best: the highest utility at preference {_MIDDLE:g}.")]
    )


def _alike(correlations: Vector) -> str:
    off = correlations[~np.eye(len(correlations), dtype=bool)]
    off = off[np.isfinite(off)]
    how = f"""Spearman's rank correlation of the masks' utilities at preference {_MIDDLE:g}, between every two tables
        of the same toggles. The diagonal is a table's correlation with itself measured again, over the repeated masks:
        what noise leaves for another table to reach."""
    found = f" Between tables: {off.min():.2f} to {off.max():.2f}, median {np.median(off):.2f}." if off.size else ""
    return f"## How alike they are\n\n![Rank correlations]({_FIGURES}/likeness.png)\n\n{prose(how + found)}"


def _table(settings: TablesSettings, surface: Surface, effects: dict[str, Effects]) -> Iterator[str]:
    yield f"## {surface.name}\n"
    yield prose(_card(surface))
    yield f"![Both axes]({_FIGURES}/{surface.name}-axes.png)\n"
    yield f"![Effects of toggles and pairs]({_FIGURES}/{surface.name}-effects.png)\n"
    yield prose(" ".join(_explained(surface, effects)))
    yield table(*_best(settings, surface))
    if luck := _luck(settings, surface):
        yield luck
    yield _details(surface)


def _card(surface: Surface) -> str:
    source, card = surface.table, surface.table.card
    data, task = card["data"], source.task
    failed = len(source.evaluations[task.seed]) - len(surface.masks)
    seconds = [e.seconds for of_seed in source.evaluations.values() for e in of_seed.values()]
    made = f"Made on {card['date']}" if "date" in card else "Made"
    if commit := card.get("git", {}).get("commit"):
        made += f" at commit {commit[:12]}"
    if hardware := card.get("hardware"):
        made += f" on {hardware}"
    unusable = f" (seeds {', '.join(map(str, surface.unusable))}: no axes)" if surface.unusable else ""
    return f"""{data["source"]}. Licence: {data["licence"]}. {data["train"]} private images, {data["heldout"]}
        held-out ones that the measurements compare with. Method {task.method}, {task.inner.steps} steps of batch
        {task.inner.batch_size} at a learning rate of {task.inner.learning_rate:g}, {task.inner.images} generated
        images. {len(surface.masks)} masks with seed {task.seed}{f" ({failed} more failed)" if failed else ""};
        {len(surface.repeated)} of them, and both anchors, with {surface.repeats.shape[1]} seeds{unusable}.
        {made}, in {sum(seconds) / 3600:.1f} hours of fine-tunes."""


def _explained(surface: Surface, effects: dict[str, Effects]) -> Iterator[str]:
    noise = surface.noise()
    complete = len(surface.masks) == 2 ** len(surface.toggles)
    for i, name in enumerate(AXES):
        first, second = effects[name].explained
        variance = float(surface.axes[:, i].var())
        words = (
            f"{name.capitalize()}: main effects explain {first:.0%} of the variance between masks, pairs {second:.0%}"
        )
        if name in noise and variance > 0:
            words += f", and noise would make up {min(noise[name].value ** 2 / variance, 1):.0%}"
        order = np.argsort(-np.abs(effects[name].main))[:2]
        largest = ", ".join(f"{surface.toggles[k]} ({effects[name].main[k]:+.2f})" for k in order)
        yield f"{words}; the largest main effects are {largest}."
    if noise:
        spread = ", ".join(f"{name} {each.value:.3f} [{each.low:.3f}, {each.high:.3f}]" for name, each in noise.items())
        yield f"Noise of one measurement: {spread}."
    if not complete:
        yield "Some masks failed: effects are least squares over the others."


def _best(settings: TablesSettings, surface: Surface) -> tuple[Sequence[str], list[Sequence[str]]]:
    header = (
        *("preference", "best mask", "utility", "with other seeds", "quality", "privacy", "trainable"),
        *("all on", "all off"),
    )
    rows: list[Sequence[str]] = []
    every = np.flatnonzero(surface.masks.all(axis=1) | ~surface.masks.any(axis=1))
    where = {int(row): i for i, row in enumerate(surface.repeated)}
    for preference in settings.preferences:
        utilities = surface.utilities(preference)
        best = int(utilities.argmax())
        again = ""
        if best in where and surface.repeats.shape[1] > 1:
            again = f"{surface.repeated_utilities(preference)[where[best], 1:].mean():.3f}"
        off, on = (utilities[row] for row in every)
        quality, privacy = surface.axes[best]
        rows.append(
            (
                *(f"{preference:g}", surface.named(best), f"{utilities[best]:.3f}", again),
                *(f"{quality:.2f}", f"{privacy:.2f}", f"{surface.share[best]:.1%}", f"{on:.3f}", f"{off:.3f}"),
            )
        )
    return header, rows


def _luck(settings: TablesSettings, surface: Surface) -> str:
    header = ("preference", "noise", "reliable", "chosen", "measured again", "luck", "best again", "luck of the best")
    rows = []
    for preference in settings.preferences:
        luck = Luck.of(surface.utilities(preference), surface.repeated_utilities(preference))
        if luck is not None:
            numbers = (luck.chosen, luck.again, luck.chosen - luck.again, luck.best_again, luck.expected)
            cells = (f"{luck.noise:.3f}", f"{luck.reliability:.0%}", *(f"{number:.3f}" for number in numbers))
            rows.append((f"{preference:g}", *cells))
    if not rows:
        return ""
    how = f"""What the best owe to luck. Noise: standard deviation of one mask's utility between seeds; reliable: the
        share of the variance between masks that is not noise. Of the {len(surface.repeated)} repeated masks the best
        one with one seed is *chosen*, and *measured again* with the others, each seed in turn; *best again* is the best
        mean over those others. *Luck of the best*: what the best of the whole table is expected to lose with another
        seed, its distance from the mean times the unreliable share."""
    return "\n".join([table(header, rows), prose(how)])


def _details(surface: Surface) -> str:
    source = surface.table
    rows = [(f"`{key}`", f"`{value}`") for key, value in provenance(source).items() if value not in (None, {}, [])]
    rows += [("split", f"`{source.task.split_sha256[:16]}`"), ("task", f"`{source.task.id}`")]
    rows += [("toggles", ", ".join(source.task.groups)), ("metrics", ", ".join(source.task.metrics))]
    for name, floor in source.card.get("noise_floor", {}).items():
        value, low, high, *_ = floor
        rows.append((f"noise of {name}", f"{value:.3g} [{low:.3g}, {high:.3g}]"))
    if versions := source.card.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    rows += [(f"`options.{key}`", f"`{value}`") for key, value in source.task.options.items() if key != "method"]
    return f"<details><summary>Provenance</summary>\n\n{table(('what', 'value'), rows)}\n</details>\n"


def _anchor(heading: str) -> str:
    """How GitHub names a heading of these characters."""
    return "".join(c for c in heading.lower() if c.isalnum() or c in "-_")
