"""``docs/comparison.md`` and pages like it, written from the files of runs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from agents.comparison.figures import draw_curves, draw_improvement, draw_intervals, draw_seconds
from agents.comparison.goals import verdicts
from agents.comparison.scores import REACHED, Scores, Vector
from agents.comparison.statistics import iqm, iqm_estimate, median_estimate, probability_of_improvement
from agents.markdown import made_by, prose, table
from rewards.errors import InputError
from rewards.estimate import Estimate

_COUNTS = (1, 4, 8, 16, 32, 64, 128)
"""Numbers of evaluations that the tables quote."""
_MET = {True: "**met**", False: "**not met**", None: "not measured"}


def write_document(folder: Path, scores: Scores) -> Path:
    """Writes the page and its figures.

    Args:
        folder: Created if missing.
        scores: What was run.

    Raises:
        InputError: If the folder cannot be written.
    """
    page = scores.settings.page
    path, figures = folder / f"{page}.md", folder / page
    counts = [n for n in _COUNTS if n <= scores.settings.budget]
    try:
        figures.mkdir(parents=True, exist_ok=True)
        draw_curves(figures / "evaluations.png", scores)
        draw_intervals(figures / "intervals.png", scores, [n for n in counts if n in (1, 4, 16, 64)])
        draw_seconds(figures / "seconds.png", scores)
        pieces = [
            _introduction(scores),
            _goals(scores),
            *_headline(scores, counts),
            *_improvement(scores, figures, counts),
            _seconds(scores, counts),
            *_tables(scores, counts),
            _origin(scores),
        ]
        path.write_text("\n".join(pieces), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction(scores: Scores) -> str:
    settings, reward = scores.settings, scores.settings.reward
    of_source = Counter(scores.sources)
    sources = ", ".join(f"{source} ({count})" for source, count in of_source.items())
    weights = ", ".join(f"{weight:g}" for weight in scores.weights)
    smaller = [f"{name}: {scores.budget(name)}" for name in scores.searchers if scores.budget(name) < settings.budget]
    dates = sorted({record["date"] for record in scores.records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    counts = f"""{_many(scores.searchers, "searcher")} on {_many(scores.tables, "table")}, with
        {_many(range(settings.seeds), "seed")}"""
    searches = []
    if weights:
        searches.append(f"for the highest utility at each preference of {weights}")
    if scores.has_fronts:
        searches.append("for the whole Pareto front")
    return "\n".join(
        [
            f"# {settings.title}\n",
            prose(
                f"""`{settings.command}` made these runs ({when}) and wrote this page from their files; nothing here is
                written by hand. Tables: {", ".join(scores.tables)}. In these every mask was
                measured, so that the best one is known, with what it owes to luck ([tables.md](tables.md)). Data
                sources: {sources}."""
            ),
            prose(
                f"""**What is compared.** {counts}, {" and ".join(searches)}. All of them see the same: features of the
                toggles and of the task, the axes of the two anchors (all off is quality 0, privacy 1; all on is quality
                1, privacy 0), and the masks that they ask for, of which {settings.budget} distinct ones are allowed
                {f"({'; '.join(smaller)})" if smaller else ""} and repeats are free. Searchers that learn from other
                tasks get the tables of all *other data sources*, and never one of the target's own."""
            ),
            prose(
                f"""**What is quoted.** Shares of the best: the best utility so far over the highest in the table, the
                hypervolume so far over that of all masks. Quality is {", ".join(reward.quality)}, privacy
                {", ".join(reward.privacy)}. What is found after one evaluation is the first mask that a searcher asks
                for: of one that learned elsewhere, its zero-shot choice. Numbers are interquartile means over tables,
                seeds and preferences, with 95 % percentile intervals of a bootstrap with {settings.resamples} resamples
                (Agarwal et al., arXiv 2108.13264), stratified by data source: seeds are drawn there with all their
                tables and preferences. So intervals know the luck of searching, and not which tables there are;
                searchers without chance have intervals without width. A searcher that ends by itself keeps what it
                had."""
            ),
        ]
    )


def _goals(scores: Scores) -> str:
    rows = [(each.goal, each.measured, _MET[each.met]) for each in verdicts(scores)]
    return "\n".join(["## Goals\n", table(("goal", "measured", ""), rows)])


def _headline(scores: Scores, counts: Sequence[int]) -> Iterator[str]:
    yield "## What is found, by evaluations\n"
    page = scores.settings.page
    yield f"![Found against evaluations]({page}/evaluations.png)\n"
    yield f"![Intervals]({page}/intervals.png)\n"
    if scores.weights:
        anchor, foreseeable = (float(iqm(found.reshape(-1))) for found in (scores.anchors(), scores.foreseeable()))
        yield "### Utility\n"
        yield table(*_by_evaluations(scores, scores.utility, counts))
        yield prose(
            f"""Share of the best utility. The better anchor, which everybody knows before any evaluation, has
            {anchor:.3f}. The best of a table owes something to the luck of its one measurement, which nobody can know
            who did not make it: the mask that looks best to a model of all *other* masks of the same table
            (leave-one-out, Gaussian process) has {foreseeable:.3f}. A first choice cannot be expected to have more."""
        )
    if scores.has_fronts:
        yield "### Hypervolume\n"
        header, rows = _by_evaluations(scores, scores.volume, counts)
        reached = f"to {REACHED:.0%}"
        rows = [(*row, *_reached(scores, row[0])) for row in rows]
        yield table((*header, reached, "runs there"), rows)
        yield prose(
            f"""Share of the hypervolume of the whole table. *{reached.capitalize()}*: median of the evaluations until
            {REACHED:.0%} of it was there, with its interval; runs that did not get there within the budget count as
            needing more, and *runs there* says how many did."""
        )


def _by_evaluations(
    scores: Scores, values: Callable[[str, int], Vector], counts: Sequence[int]
) -> tuple[list[str], list[tuple[str, ...]]]:
    middle = max((n for n in counts if n <= 16), default=counts[0])
    order = sorted(
        scores.searchers,
        key=lambda name: -float(iqm(values(name, min(middle, scores.budget(name))).reshape(-1))),
    )
    rows = []
    for name in order:
        cells = [_text(iqm_estimate(values(name, n), scores.draws)) if n <= scores.budget(name) else "" for n in counts]
        rows.append((name, *cells))
    return ["searcher", *(f"after {n}" for n in counts)], rows


def _reached(scores: Scores, name: str) -> tuple[str, str]:
    needed = scores.evaluations_to(name)
    share = float(np.isfinite(needed).mean())
    estimate, budget = median_estimate(needed, scores.draws), scores.budget(name)
    value, low, high = (f"> {budget}" if each is None or np.isinf(each) else f"{each:g}" for each in estimate[:3])
    return f"{value} [{low}, {high}]", f"{share:.0%}"


def _improvement(scores: Scores, figures: Path, counts: Sequence[int]) -> Iterator[str]:
    if not scores.weights or len(scores.searchers) < 2:
        return
    yield "## Probability of improvement\n"
    for count in [n for n in counts if n in (1, 16, 128)]:
        names = [name for name in scores.searchers if scores.budget(name) >= count]
        found = {
            (x, y): probability_of_improvement(
                scores.utility(x, count), scores.utility(y, count), scores.draws, scores.other_draws
            )
            for x in names
            for y in names
            if x != y
        }
        matrix = np.asarray([[found[x, y].value if x != y else np.nan for y in names] for x in names])
        draw_improvement(figures / f"improvement-{count}.png", names, matrix, f"utility after {count}")
        yield f"![Probability of improvement after {count}]({scores.settings.page}/improvement-{count}.png)\n"
        rows = [(x, *(_text(found[x, y], 2) if x != y else "" for y in names)) for x in names]
        title = f"After {count}: how likely the row's run is better than the column's, with intervals"
        yield f"<details><summary>{title}</summary>\n\n{table(('', *names), rows)}\n</details>\n"
    yield prose("Of two runs on the same table with the same preference, averaged over these; ties count half.")


def _seconds(scores: Scores, counts: Sequence[int]) -> str:
    rows = []
    last = counts[-1]
    for name in scores.searchers:
        tuning, searching = scores.seconds(name, last)
        found = (scores.seconds(name, 1)[1], scores.slowest_start(name), tuning, searching)
        rows.append((name, *(f"{seconds:,.3g}" for seconds in found)))
    how = f"""Median seconds of a run: fine-tunes as they took when the tables were made, one after another, and what
        the searcher itself took, on one thread. After {last} evaluations, or as many as there were. Learning from other
        tasks is paid for once a data source and seed, by the first run that needs it: the medians leave it out, *at
        most before the first* has it, and so have the curves, in the runs that paid."""
    header = ("searcher", "before the first", "at most before the first", f"fine-tunes, {last}", f"searching, {last}")
    return "\n".join(
        [
            "## Seconds\n",
            f"![Found against minutes]({scores.settings.page}/seconds.png)\n",
            table(header, rows),
            prose(how),
        ]
    )


def _tables(scores: Scores, counts: Sequence[int]) -> Iterator[str]:
    yield "## Table by table\n"
    yield prose(
        """Interquartile means over seeds (and preferences, for the utility) on each table alone, as shares of what the
        table has."""
    )
    some = [n for n in counts if n in (1, 16, 64)]
    for t, (name, source) in enumerate(zip(scores.tables, scores.sources, strict=True)):
        header = ["searcher"]
        if scores.weights:
            header += [f"utility after {n}" for n in some]
        if scores.has_fronts:
            header += [f"hypervolume after {n}" for n in some]
        rows = []
        for searcher in scores.searchers:
            cells = []
            for values in _kinds(scores):
                for n in some:
                    known = n <= scores.budget(searcher)
                    cells.append(f"{float(iqm(values(searcher, n)[t].reshape(-1))):.3f}" if known else "")
            rows.append((searcher, *cells))
        anchor = ""
        if scores.weights:
            anchor = f"""The better anchor: {scores.anchors()[t].mean():.3f} of the best utility; foreseeable:
                {scores.foreseeable()[t].mean():.3f}."""
        title = f"{name} ({source})"
        text = "\n".join([table(header, rows), prose(anchor)])
        yield f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _kinds(scores: Scores) -> list[Callable[[str, int], Vector]]:
    return [*([scores.utility] if scores.weights else []), *([scores.volume] if scores.has_fronts else [])]


def _origin(scores: Scores) -> str:
    settings: dict[str, str] = {}
    origins = set()
    for record in scores.records:
        found = ", ".join(f"{key}={value}" for key, value in record["identity"]["settings"].items())
        settings.setdefault(record["searcher"], found or "no settings")
        origins.add(f"{record['date']}, {made_by(record)}")
    rows = [(name, f"`{text}`", str(scores.budget(name))) for name, text in settings.items()]
    return "\n".join(
        ["## Settings\n", table(("searcher", "settings", "budget"), rows), *(prose(f"{o}.") for o in sorted(origins))]
    )


def _many(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _text(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
