"""``docs/mitigations.md``, written from results alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agents.markdown import origin, prose, table
from agents.mitigating.analysis import EnvAnalysis, analyse, key_of
from agents.mitigating.choice import Choice, Found
from agents.mitigating.conclusions import conclusions
from agents.mitigating.figures import draw
from agents.mitigating.plan import subjects
from agents.mitigating.settings import MitigationsSettings
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
            other patients. Of a mitigation one setting is tried, that of the table below. Nothing here is written by
            hand."""
        )
        + "\n"
        + prose(
            f"""Quality ({", ".join(settings.reward.quality)}): 0 = the base model, 1 = full fine-tuning. Privacy
            ({", ".join(settings.reward.privacy)}): 0 = full fine-tuning, 1 = the null of held-out images. Anchors are
            means over the seeds, and neither axis is clipped: privacy above 1 is of training images that look less like
            members than the null. Intervals are 95 % intervals over the seeds (Student's t;
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
        pieces.append(prose(" ".join([f"**{env}.**", *conclusions(analysis)])))
    if settings.copies:
        pieces += ["### The mask by other methods, without a mitigation\n", _by_method(settings, analyses)]
    return "\n".join(pieces)


def _by_method(settings: MitigationsSettings, analyses: Mapping[str, EnvAnalysis]) -> str:
    plain = {
        env: {(row.method, row.mask): row for row in analysis.rows if not row.mitigations}
        for env, analysis in analyses.items()
    }
    rows = []
    for method, mask in subjects(settings):
        found = [of_env.get((method, mask)) for of_env in plain.values()]
        if any(found):
            rows.append((method, mask, *(text for row in found for text in _share_and_axes(row))))
    columns = (name for env in plain for name in (f"{env}: trainable", "quality", "privacy"))
    return table(("method", "mask", *columns), rows)


def _share_and_axes(row: Row | None) -> Sequence[str]:
    if row is None:
        return "", "", ""
    return f"{row.share:.3%}", Interval.over(row.quality).text(), Interval.over(row.privacy).text()


def _env(
    settings: MitigationsSettings, env: str, analysis: EnvAnalysis, choice: Choice, refused: Sequence[Sequence[str]]
) -> Iterable[str]:
    yield f"## {env}\n\n![Quality and privacy](mitigations-{env}.png)\n"
    yield prose(" ".join(_chosen(settings, choice)))
    rows = (*analysis.rows, *analysis.early[:-1])
    compared = ("at equal steps: quality", "privacy", "at equal quality: privacy")
    axes = ("method", "mask", "mitigation", "trainable", "quality", "privacy", *compared)
    yield table(axes, [_placed_row(row, analysis) for row in rows])
    yield prose(
        """At equal steps: against the same method and mask without a mitigation. At equal quality: privacy minus that
        of the most private early stop of no less quality, with the same seed."""
    )
    yield f"### {env}: what was measured\n"
    nulls = [analysis.nulls[name] for name in settings.metrics]
    heldout = ("held-out images", "", "", *("" if null is None else f"{null:.3f}" for null in nulls), "")
    metrics = ("method", "mask", "mitigation", *settings.metrics, "s")
    yield table(metrics, [*(_measured_row(settings, row) for row in rows), heldout])
    yield prose(
        """The last column is the mean wall time of an evaluation, generation and measurement included, beside whatever
        else the machine did."""
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


def _placed_row(row: Row, analysis: EnvAnalysis) -> Sequence[str]:
    gain, against = analysis.gains.get(key_of(row)), analysis.against_early.get(key_of(row))
    return (
        row.method,
        row.mask,
        row.mitigations or "none",
        *_share_and_axes(row),
        "" if gain is None else gain.quality.text(),
        "" if gain is None else gain.privacy.text(),
        "" if against is None else against.text(),
    )


def _measured_row(settings: MitigationsSettings, row: Row) -> Sequence[str]:
    metrics = (Interval.over(row.metrics[name]).text(3) for name in settings.metrics)
    return row.method, row.mask, row.mitigations or "none", *metrics, f"{row.seconds:.0f}"


def _inverted(settings: MitigationsSettings, analysis: EnvAnalysis) -> Iterable[str]:
    count, seeds = settings.inner.inversions, ", ".join(map(str, settings.inversion_seeds))
    yield prose(
        f"""{count} training images, by name, and {count} test images are inverted: an attacker who knows an image looks
        for the noise from which the model draws it (seed {seeds}). Success of test images is the null. It asks whether
        a mitigation erased what was memorized or only hides it. One that leaves the trained weights as they are, as a
        sampler's own does, is no obstacle to an attacker who has the model: its row is the one without it."""
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
