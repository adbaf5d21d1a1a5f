"""``docs/mitigations.md``, written from results alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from agents.markdown import origin, prose, table
from agents.mitigating.analysis import EnvAnalysis, analyse, key_of
from agents.mitigating.choice import Choice, Found
from agents.mitigating.figures import draw
from agents.mitigating.plan import ALL, CHOSEN
from agents.mitigating.settings import FULL, MitigationsSettings
from agents.parts import Record
from agents.study.laboratory import from_json
from agents.study.rows import Interval, Row
from envs.mitigations import MITIGATIONS
from rewards.errors import InputError

NAME = "mitigations.md"


def write_document(folder: Path, settings: MitigationsSettings, records: Mapping[str, Record]) -> Path:
    """Writes the page and a figure a data set.

    Args:
        folder: Created if missing.
        settings: Of the comparison.
        records: For each data set the parts ``<env>-choice``, ``<env>`` and ``<env>-inversion``.

    Raises:
        InputError: If the folder cannot be written.
    """
    analyses = {
        env: analyse(
            settings,
            from_json(records[env]["result"]["cells"]),
            from_json(records[f"{env}-inversion"]["result"]),
        )
        for env in settings.envs
    }
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pieces = [_introduction(settings), _systems(settings), _conclusions(settings, analyses)]
        for env, analysis in analyses.items():
            draw(folder / f"mitigations-{env}.png", env, analysis)
            choice = Choice.from_json(records[f"{env}-choice"]["result"])
            pieces += _env(settings, env, analysis, choice, records[env]["result"]["refused"])
        path.write_text("\n".join([*pieces, origin(records)]), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction(settings: MitigationsSettings) -> str:
    inner, split = settings.inner, settings.split
    seeds = ", ".join(map(str, settings.seeds))
    return (
        "# Mitigations, alone and on top of a mask\n\n"
        + prose(
            f"""Is choosing which parameters learn better than what else is published against memorization, and does one
            add to the other? `make mitigations` (`python -m agents.mitigations`) fine-tunes the backbone
            `{settings.backbone.name}` on {" and ".join(settings.envs)} in full, with the mask that a policy found, and
            with that mask by other methods ({", ".join(settings.copies) or "none"}), each without a mitigation and with
            every one, seeds {seeds}: {split.train} private images, {inner.steps} gradient steps of batch
            {inner.batch_size} in all, {inner.images} generated images, measured against {split.test} test images of
            other patients. Nothing here is written by hand."""
        )
        + "\n"
        + prose(
            f"""Quality ({", ".join(settings.reward.quality)}): 0 = the base model, 1 = full fine-tuning. Privacy
            ({", ".join(settings.reward.privacy)}): 0 = full fine-tuning, 1 = the null of held-out images. Anchors are
            means over the seeds, and neither axis is clipped. Intervals are 95 % intervals over the seeds (Student's t;
            with {len(settings.seeds)} seeds they are wide). Two questions are asked of every row. At equal gradient
            steps: what does the mitigation change against the same subject without it, seed by seed? At equal quality:
            by how much is the row more private than full fine-tuning that stops early (after
            {", ".join(map(str, settings.early_stops))} steps) with no less quality, which costs nothing?"""
        )
    )


def _systems(settings: MitigationsSettings) -> str:
    names = dict.fromkeys(name for each in settings.mitigations for name in each.split(","))
    rows = []
    for name in names:
        mitigation = MITIGATIONS[name](**settings.mitigation_options.get(name, {}))
        used = ", ".join(f"{key}={value}" for key, value in mitigation.settings.items())
        rows.append((f"`{name}`", mitigation.source, mitigation.stage.name.lower(), used))
    return "\n".join(["## What is compared\n", table(("mitigation", "source", "acts on", "settings"), rows)])


def _conclusions(settings: MitigationsSettings, analyses: Mapping[str, EnvAnalysis]) -> str:
    pieces = ["## What it shows\n"]
    for env, analysis in analyses.items():
        pieces.append(prose(" ".join([f"**{env}.**", *_sentences(settings, analysis)])))
    return "\n".join(pieces)


def _sentences(settings: MitigationsSettings, analysis: EnvAnalysis) -> Iterable[str]:
    rows = {key_of(row): row for row in analysis.rows}
    full, chosen = rows[FULL, ALL, ""], rows[FULL, CHOSEN, ""]
    yield (
        (
            f"Full fine-tuning has a membership AUC of {full.metrics['membership'].mean():.3f} and copies "
            f"{full.metrics['copy_rate'].mean():.1%}; the chosen mask trains {chosen.share:.1%} and has quality "
            f"{_over(chosen.quality)} and privacy {_over(chosen.privacy)}."
        )
        if {"membership", "copy_rate"} <= full.metrics.keys()
        else (
            f"The chosen mask trains {chosen.share:.1%} and has quality {_over(chosen.quality)} and privacy "
            f"{_over(chosen.privacy)}."
        )
    )
    alone = [row for row in analysis.rows if (row.method, row.mask) == (FULL, ALL) and row.mitigations]
    better = [row for row in alone if row.privacy.mean() >= chosen.privacy.mean()]
    best = [row for row in better if row.quality.mean() >= chosen.quality.mean()]
    if best:
        yield f"Alone, {_named(best)} had means no worse than the mask's on both axes."
    else:
        more = f"; {_named(better)} kept more private, at less quality" if better else ""
        yield f"Alone, no mitigation had means as good as the mask's on both axes{more}."
    for words, sign in (("raise", 1), ("lower", -1)):
        moved = [row for row in alone if analysis.gains[key_of(row)].privacy.side == sign]
        yield (
            f"At equal steps, {_named(moved)} {words} the privacy of full fine-tuning beyond the seeds' interval."
            if moved
            else f"At equal steps, none is shown to {words} the privacy of full fine-tuning."
        )
    if idle := [row for row in alone if _same(row, full)]:
        yield f"Of {_named(idle)} every number is that of full fine-tuning alone: there was nothing for it to act on."
    added = [
        row
        for row in analysis.rows
        if (row.method, row.mask) == (FULL, CHOSEN) and row.mitigations and analysis.gains[key_of(row)].privacy.side > 0
    ]
    yield (
        f"On top of the mask, {_named(added)} raise privacy further."
        if added
        else "On top of the mask, none is shown to raise privacy further."
    )
    equal = [row for row in alone if analysis.against_early[key_of(row)].side > 0]
    yield (
        f"At equal quality, {_named(equal)} alone keep more private than stopping early does."
        if equal
        else "At equal quality, none alone is shown to keep more private than stopping early does."
    )
    against = analysis.against_early[key_of(chosen)]
    yield f"For the mask that difference is {_interval(against)}."
    if len(alone):
        expected = 0.025 * len(alone)
        yield f"(By luck alone, {expected:.1f} of {len(alone)} mitigations are to be expected beyond either end.)"


def _same(row: Row, other: Row) -> bool:
    return all(np.array_equal(row.metrics[name], other.metrics[name], equal_nan=True) for name in row.metrics)


def _env(
    settings: MitigationsSettings, env: str, analysis: EnvAnalysis, choice: Choice, refused: Sequence[Sequence[str]]
) -> Iterable[str]:
    yield f"## {env}\n\n![Quality and privacy](mitigations-{env}.png)\n"
    yield prose(" ".join(_chosen(settings, choice)))
    header = (
        "method",
        "mask",
        "mitigation",
        "trainable",
        "quality",
        "privacy",
        "at equal steps: quality",
        "privacy",
        "at equal quality: privacy",
        *settings.metrics,
        "s",
    )
    yield table(header, [_cells(settings, row, analysis) for row in (*analysis.rows, *analysis.early[:-1])])
    yield prose(
        """At equal steps: against the same method and mask without a mitigation. At equal quality: privacy minus that
        of the most private early stop of no less quality, with the same seed. Metrics are means over the seeds. The
        last column is the mean wall time of an evaluation, generation and measurement included, beside whatever else
        the machine did."""
    )
    reported = [(_title(row), ", ".join(f"{k} {v:.3g}" for k, v in row.figures.items())) for row in analysis.rows]
    yield f"### {env}: what the mitigations report\n"
    yield table(("row", "figures, means over the seeds"), [pair for pair in reported if pair[1]])
    yield f"### {env}: named images\n"
    yield from _inverted(settings, analysis)
    if refused:
        yield f"### {env}: what does not go together\n"
        yield table(("method", "mitigation", "reason"), [(method, name or "any", why) for method, name, why in refused])


def _chosen(settings: MitigationsSettings, choice: Choice) -> Iterable[str]:
    yield f"The chosen mask, {choice.source}: {', '.join(choice.groups)}."
    if choice.best is None:
        return
    yield (
        f"It is the best of {settings.choice_evaluations} fine-tunes with a seed of their own, judged by held-out "
        f"images: {_placed(choice.best)}."
    )
    if choice.first is None:
        yield "The first that the policy asked for failed."
    elif choice.first == choice.best:
        yield "It was also the first that the policy asked for, with nothing measured."
    else:
        groups = ", ".join(choice.first.groups) or "none"
        yield f"The first that the policy asked for, with nothing measured, was {groups}: {_placed(choice.first)}."


def _placed(found: Found) -> str:
    return f"quality {found.quality:.2f}, privacy {found.privacy:.2f}, utility {found.utility:.2f}"


def _cells(settings: MitigationsSettings, row: Row, analysis: EnvAnalysis) -> Sequence[str]:
    gain, against = analysis.gains.get(key_of(row)), analysis.against_early.get(key_of(row))
    return (
        row.method,
        row.mask,
        row.mitigations or "none",
        f"{row.share:.3%}",
        _over(row.quality),
        _over(row.privacy),
        "" if gain is None else _interval(gain.quality),
        "" if gain is None else _interval(gain.privacy),
        "" if against is None else _interval(against),
        *(f"{row.metrics[name].mean():.3g}" for name in settings.metrics),
        f"{row.seconds:.0f}",
    )


def _inverted(settings: MitigationsSettings, analysis: EnvAnalysis) -> Iterable[str]:
    count, seeds = settings.inner.inversions, ", ".join(map(str, settings.inversion_seeds))
    yield prose(
        f"""{count} training images, by name, and {count} test images are inverted: an attacker who knows an image looks
        for the noise from which the model draws it (seed {seeds}). Success of test images is the null. It asks whether
        a mitigation erased what was memorized or only hides it; a sampler's own mitigation is no obstacle to an
        attacker who has the model."""
    )
    rows = []
    for key, found in analysis.inverted.items():
        for metrics in found:
            success, effort = metrics["inversion_success"], metrics["inversion"]
            null = "" if success.null is None else f"{success.null:.3f}"
            interval = "" if success.low is None else f" [{success.low:.3f}, {success.high:.3f}]"
            value = "not measured" if success.value is None else f"{success.value:.3f}{interval}"
            how = effort.note if effort.value is None else f"{effort.value:.3g}"
            rows.append((key[0], key[1], key[2] or "none", value, null, how))
    yield table(("method", "mask", "mitigation", "success", "null", "noise needed (inversion)"), rows)


def _title(row: Row) -> str:
    return f"{row.method}, {row.mask}, {row.mitigations or 'none'}"


def _named(rows: Sequence[Row]) -> str:
    return ", ".join(row.mitigations for row in rows)


def _interval(interval: Interval) -> str:
    mean, low, high = (f"{round(value, 2) + 0.0:.2f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"  # and no -0.00


def _over(values: object) -> str:
    return _interval(Interval.over(values))  # type: ignore[arg-type]
