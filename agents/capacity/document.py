"""``docs/methods.md``, written from results alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from agents.capacity.analysis import EnvAnalysis, analyse
from agents.capacity.figures import draw
from agents.capacity.runs import best_rates
from agents.capacity.settings import MethodsSettings
from agents.markdown import origin, prose, table
from agents.parts import Record
from agents.study.laboratory import from_json
from agents.study.rows import Interval, Row
from rewards.errors import InputError

NAME = "methods.md"

_SHARES = {0.5: "half", 0.8: "four fifths"}
"""Of full fine-tuning's quality, at which the most private row is named."""


def write_document(folder: Path, settings: MethodsSettings, records: Mapping[str, Record]) -> Path:
    """Writes the page and a figure a data set.

    Args:
        folder: Created if missing.
        settings: Of the comparison.
        records: Of the parts ``tuning``, ``timing`` and of each data set.

    Raises:
        InputError: If the folder cannot be written.
    """
    analyses = {env: analyse(settings, from_json(records[env]["result"])) for env in settings.envs}
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pieces = [_introduction(settings), _conclusions(settings, analyses)]
        for env, analysis in analyses.items():
            draw(folder / f"methods-{env}.png", env, analysis)
            pieces.append(_env(settings, env, analysis))
        pieces += [_tuning(settings, records["tuning"]), _timing(settings, records["timing"]), origin(records)]
        pieces.append(prose("Seconds are those of the last call: evaluations that the store knew cost it nothing."))
        path.write_text("\n".join(pieces), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction(settings: MethodsSettings) -> str:
    inner, split = settings.inner, settings.split
    masks = "; ".join(f"{name}: {text}" for name, text in settings.masks.items())
    seeds = ", ".join(map(str, settings.seeds))
    return (
        "# Adaptation methods: how much may learn, and what that changes\n\n"
        + prose(
            f"""MemControl (arXiv 2405.19458) claims that regulating the capacity that may learn mitigates memorization.
            `make methods` (`python -m agents.methods`) puts that to the test on {" and ".join(settings.envs)} with the
            backbone `{settings.backbone.name}`, and writes this page; nothing here is written by hand. Every method is
            combined with every mask of the scheme `{settings.groups}` ({masks}) and seeds {seeds}:
            {split.train} private images, {inner.steps} steps of batch {inner.batch_size}, {inner.images} generated
            images, measured against {split.test} test images of other patients. The rival is what anybody can do
            without any method: full fine-tuning that stops after {", ".join(map(str, settings.early_stops))} steps."""
        )
        + "\n"
        + prose(
            f"""Quality ({", ".join(settings.reward.quality)}): 0 = the base model, 1 = full fine-tuning with everything
            on. Privacy ({", ".join(settings.reward.privacy)}): 0 = full fine-tuning, 1 = the null of held-out images.
            Anchors are means over the seeds, and neither axis is clipped. Intervals are 95 % intervals over the seeds
            (Student's t; with {len(settings.seeds)} seeds they are wide); they know the luck of initialisation, batches
            and sampling, and not that of the one split: privacy above 1, members that look less like members than the
            null, is the luck of which images were drawn."""
        )
    )


def _conclusions(settings: MethodsSettings, analyses: Mapping[str, EnvAnalysis]) -> str:
    pieces = ["## What it shows\n"]
    for env, analysis in analyses.items():
        pieces.append(prose(" ".join([f"**{env}.**", *_sentences(settings, analysis)])))
    return "\n".join(pieces)


def _sentences(settings: MethodsSettings, analysis: EnvAnalysis) -> Iterable[str]:
    base, full = analysis.early[0], analysis.early[-1]
    yield f"Full fine-tuning moves {_from_to(settings, base, full, analysis)}."
    yield (
        f"The rank correlation of the trainable share with privacy is {analysis.share_privacy.text()}, with "
        f"quality {analysis.share_quality.text()} (over methods and masks; bootstrap):"
    )
    yield {
        (-1, 1): "what learns more memorizes more and makes better images: capacity trades one for the other.",
        (-1, 0): "what learns more memorizes more, and whether it makes better images is not settled.",
        (-1, -1): "what learns more memorizes more and makes worse images.",
        (0, 1): "what learns more makes better images, and whether it memorizes more is not settled.",
        (0, 0): "neither memorization nor quality follows the share measurably.",
        (0, -1): "what learns more makes worse images, and whether it memorizes more is not settled.",
        (1, 1): "what learns more makes better images and memorizes less: capacity control does not help here.",
        (1, 0): "what learns more memorizes less: capacity control does not help here.",
        (1, -1): "what learns more memorizes less and makes worse images.",
    }[analysis.share_privacy.side, analysis.share_quality.side]
    differences = {key: Interval.over(values) for key, values in analysis.against_early.items()}
    sides = [each.side for each in differences.values()]
    overall = Interval.over(np.mean(list(analysis.against_early.values()), axis=0))
    yield (
        f"At no less quality, early stopping is beaten in privacy by {sides.count(1)} of {len(sides)} combinations, "
        f"beats {sides.count(-1)}, and {sides.count(0)} are not settled by {len(settings.seeds)} seeds (about "
        f"{0.025 * len(sides):.0f} each way are to be expected by luck alone); the mean difference over all of them is "
        f"{overall.text()}:"
    )
    yield {
        1: "on the whole, restricting what learns keeps more private than stopping early does.",
        0: "on the whole, restricting what learns is not shown to be better than stopping early.",
        -1: "on the whole, restricting what learns is worse than stopping early.",
    }[overall.side]
    for share, words in _SHARES.items():
        good = [r for r in analysis.rows if r.quality.mean() >= share and (r.method, r.mask) in differences]
        if not good:
            yield f"Nothing but full fine-tuning itself reaches {words} of its quality."
            continue
        best = max(good, key=lambda row: row.privacy.mean())
        yield (
            f"With at least {words} of full fine-tuning's quality, {best.method} with {best.mask} is the most private: "
            f"privacy {Interval.over(best.privacy).text()}, quality {Interval.over(best.quality).text()}, "
            f"{best.share:.2%} trainable."
        )


def _from_to(settings: MethodsSettings, base: Row, full: Row, analysis: EnvAnalysis) -> str:
    moves = []
    for name in settings.metrics:
        null = analysis.nulls[name]
        beside = "" if null is None else f" (held-out images: {null:.3g})"
        moves.append(f"{name} from {base.metrics[name].mean():.3g} to {full.metrics[name].mean():.3g}{beside}")
    return ", ".join(moves)


def _env(settings: MethodsSettings, env: str, analysis: EnvAnalysis) -> str:
    header = ("method", "mask", "trainable", "quality", "privacy", "against early stopping", *settings.metrics, "s")
    rows = [_cells(settings, row, analysis) for row in (*analysis.rows, *analysis.early[1:-1])]
    how = """Against early stopping: privacy minus that of the most private early stop of no less quality, with the same
        seed. Metrics are means over the seeds. The last column is the mean wall time of an evaluation, generation and
        measurement included, beside whatever else the machine did; a step's cost is measured below."""
    return "\n".join([f"## {env}\n\n![Axes and shares](methods-{env}.png)\n", table(header, rows), prose(how)])


def _cells(settings: MethodsSettings, row: Row, analysis: EnvAnalysis) -> Sequence[str]:
    against = analysis.against_early.get((row.method, row.mask))
    return (
        row.method,
        row.mask,
        f"{row.share:.3%}",
        Interval.over(row.quality).text(),
        Interval.over(row.privacy).text(),
        "" if against is None else Interval.over(against).text(),
        *(f"{row.metrics[name].mean():.3g}" for name in settings.metrics),
        f"{row.seconds:.0f}",
    )


def _tuning(settings: MethodsSettings, record: Record) -> str:
    found, metric = from_json(record["result"]), settings.reward.quality[0]
    chosen, rates = best_rates(settings, found), settings.tuning.learning_rates
    value = {(cell.method, cell.learning_rate): e.metrics[metric].value for cell, e in found.items()}
    rows = []
    for method in settings.methods:
        cells = ["not measured" if (v := value[method, rate]) is None else f"{v:.3g}" for rate in rates]
        rows.append((method, *(f"**{c}**" if r == chosen[method] else c for c, r in zip(cells, rates, strict=True))))
    ends = [m for m in settings.methods if chosen[m] in (min(rates), max(rates))]
    edge = f" At an end of the grid: {', '.join(ends)}." if ends else ""
    tuning = settings.tuning
    how = f"""{metric} on the held-out split of {tuning.env} with everything on, seed {tuning.seed}, by learning rate.
        The best one of each method is used everywhere above; that is also what a user would do who looks at images
        alone.{edge}"""
    return "\n".join([f"## Learning rates\n\n{prose(how)}", table(("method", *(f"{rate:g}" for rate in rates)), rows)])


def _timing(settings: MethodsSettings, record: Record) -> str:
    times, masks = record["result"], list(settings.masks)
    rows = [(method, *(f"{of[mask]:.0f}" if of[mask] else "" for mask in masks)) for method, of in times.items()]
    how = f"""Milliseconds of a training step at batch {settings.inner.batch_size}, {settings.threads} thread, median of
        {settings.timing.repeats} measurements taken in turns."""
    return "\n".join([f"## A training step\n\n{prose(how)}", table(("method", *masks), rows)])
