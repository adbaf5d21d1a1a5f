"""``docs/measurements.md``, written from results alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.markdown import origin, prose, table
from agents.parts import Record
from agents.validation.figures import SHOWN, draw_cost, draw_false_positives, draw_planted
from agents.validation.planted import DEFAULT
from agents.validation.settings import PARTS, Part
from rewards.errors import InputError
from rewards.suite import is_memorization

NAME = "measurements.md"

_WIDTH = 120


def write_document(folder: Path, records: Mapping[Part, Record]) -> Path:
    """Writes the page and its figures.

    Args:
        folder: Created if missing.
        records: Of the parts that were computed; the others are named as missing.

    Raises:
        InputError: If the folder cannot be written.
    """
    sections = {
        "planted": _planted,
        "false_positives": _false_positives,
        "models": _models,
        "objective": _objective,
        "cost": _cost,
    }
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pieces = [_introduction(), _goals(records)]
        pieces += [sections[part](folder, records[part]) for part in PARTS if part in records]
        missing = [part for part in PARTS if part not in records]
        if missing:
            pieces.append(f"Not computed with these settings: {', '.join(missing)}.\n")
        pieces.append(origin(records))
        path.write_text("\n".join(pieces), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction() -> str:
    text = prose(
        """Every number that this project prints about memorization rests on a detector. Here the detectors meet cases
        whose answer is known: planted copies, real images that no model has seen, a model that knows its images by
        heart, generators that must not win. `make proof` (`python -m agents.validate`) computes all of it and writes
        this page; nothing here is written by hand, and no image is shown. Intervals are 95 % intervals, Wilson's of
        shares where nothing else is said."""
    )
    return f"# What the measurements are worth\n\n{text}"


def _goals(records: Mapping[Part, Record]) -> str:
    goals = [goal for part in PARTS if part in records for goal in records[part]["result"]["goals"]]
    missed = sum(not goal["met"] for goal in goals)
    rows = ((goal["goal"], goal["found"], "met" if goal["met"] else "**missed**") for goal in goals)
    return f"## Goals\n\n{len(goals) - missed} of {len(goals)} are met.\n\n{table(('goal', 'found', ''), rows)}"


def _planted(folder: Path, record: Record) -> str:
    result = record["result"]
    draw_planted(folder / "measurements-planted.png", result)
    how = """Training images, changed as the table says, take the place of some images of a generated set. All other
        images of it, and those that thresholds are calibrated on, are held-out images of other patients. `copy_rate`
        is the default detector: an image is flagged if any of its three distances is suspicious. The next three
        columns are these distances alone, at the same stated rate. `nearest_ratio` and `1 - authenticity` have fixed
        thresholds and no stated rate: the last row of a first table is what they flag without any copy. Noise and
        brightness are in grey levels of 255."""
    reading = """What is flagged is the copies that are found, plus the stated rate of all other images. So without
        copies a share near the stated rate is right, not 0, and a `copy_rate` has to be read beside its null, the grey
        line. One split was drawn, and the same copies are in every set: intervals know the luck of the judged images
        alone."""
    pieces = [f"## Planted copies\n\n{prose(how)}"]
    for env, found in result["envs"].items():
        detectors = list(found["false_positives"])
        rows = [
            (name, *(_percent(each["sensitivity"][detector]) for detector in detectors))
            for name, each in found["perturbations"].items()
        ]
        rows.append(("held-out images", *(_percent(found["false_positives"][detector]) for detector in detectors)))
        sizes = f"""{found["train"]} training, {found["calibration"]} calibration and {found["generated"]} generated
            images; the stated rate is {found["stated"]:.2%}. Share of the copies that is found, in per cent, if all
            training images are tried:"""
        pieces += [
            f"### {env}\n\n{prose(sizes)}",
            table(("copies", *detectors), rows),
            "Share of the generated set that is flagged, in per cent, false positives included:\n",
            table(("planted", *detectors), _recovered(found, detectors)),
        ]
    return "\n".join([*pieces, "![Flagged against planted share](measurements-planted.png)\n", prose(reading)])


def _recovered(found: Mapping[str, Any], detectors: Sequence[str]) -> Iterable[Sequence[str]]:
    for number, perturbation in enumerate(SHOWN):
        for each in found["perturbations"][perturbation]["recovered"]:
            if each["copies"] or not number:  # without copies all perturbations are the same
                what = f"{100 * each['planted']:.3g} %, {perturbation}" if each["copies"] else "nothing"
                yield what, *(_percent(each[name], interval=True) for name in detectors)


def _false_positives(folder: Path, record: Record) -> str:
    envs = record["result"]["envs"]
    draw_false_positives(folder / "measurements-false-positives.png", record["result"])
    rows = [
        (
            env,
            name,
            f"{100 * found['stated']:.3f}",
            _percent(each["mean"], interval=True, digits=3),
            "yes" if _inside(found["stated"], each["mean"]) else "no",
            _percent(each["long_run"], interval=True, digits=3),
            f"{100 * max(each['flagged']) / found['judged']:.1f}",
            f"{100 * each['covered']:.0f}",
        )
        for env, found in envs.items()
        for name, each in found["detectors"].items()
    ]
    some = next(iter(envs.values()))
    sizes = "; ".join(
        f"{env}: {found['images']} images, one a patient, {found['train']} of them for training, "
        f"{found['calibration']} for calibration and {found['judged']} to judge"
        for env, found in envs.items()
    )
    how = f"""Held-out images are split at random again and again, so that nothing that is flagged is a copy ({sizes}).
        The mean over {some["resplits"]} resplits has a bootstrap interval over them. The long run is
        {some["long_run"]} further resplits, which see smaller deviations. "By rank" is a plain order statistic of one
        distance; its expectation over random resplits is the stated rate whatever the images are, so it checks the
        resplits themselves. The last column is how often the Wilson interval of a single resplit covers the stated
        rate: it knows the luck of the judged images, not that of the calibration images. All but the names is in per
        cent."""
    header = ("data", "detector", "stated", "mean flagged", "stated inside", "long run", "most", "Wilson covers")
    return "\n".join(
        [
            f"## False positives\n\n{prose(how)}",
            table(header, rows),
            "![Flagged images of each resplit](measurements-false-positives.png)\n",
            prose(_long_run(envs)),
        ]
    )


def _long_run(envs: Mapping[str, Any]) -> str:
    """What the further resplits say of the default detector."""
    said = []
    for env, found in envs.items():
        each = found["detectors"][DEFAULT]["long_run"]
        verdict = "too few" if each[0] < found["stated"] else "too many"
        verdict = "as stated" if _inside(found["stated"], each) else verdict
        said.append(f"{env}: {each[0]:.3%} where {found['stated']:.3%} is stated, {verdict}")
    return f"In the long run the default detector flags, without any copy, {'; '.join(said)}."


def _models(folder: Path, record: Record) -> str:
    found = record["result"]
    brief, overfitted = found["brief"], found["overfitted"]
    rows, noise = [], []
    for name in sorted(brief[0]["metrics"], key=lambda name: not is_memorization(name)):
        first, second = brief[0]["metrics"][name], overfitted[0]["metrics"][name]
        floor, gap = found["noise"][name]["floor"], found["noise"][name]["gap"]
        rows.append(
            (
                f"`{name}`",
                "higher" if first["higher_is_better"] else "lower",
                _number(second["null"]),
                _measured(first),
                _measured(second),
                _order(found["order"][name]) if name in found["order"] else "",
            )
        )
        if floor is not None:
            ratio = "" if not floor[0] else f"{abs(gap) / floor[0]:.1f}"
            noise.append((f"`{name}`", _estimate(floor), _number(gap), ratio))
    notes = {
        f"- `{name}`, {kind}: {each['note']}.\n"
        for kind, model in (("brief", brief[0]), ("overfitted", overfitted[0]))
        for name, each in model["metrics"].items()
        if each.get("note")
    }
    inner, seeds = found["inner"], found["seeds"]
    how = f"""The backbone was fine-tuned in full on {found["train"]} images of {found["env"]}: for
        {overfitted[0]["steps"]} steps (overfitted) and for {brief[0]["steps"]} (brief), in batches of
        {inner["batch_size"]} with a learning rate of {inner["learning_rate"]:g}. Each generated {inner["images"]}
        images, which are compared with {found["heldout"]} held-out images. Values are those of seed {seeds[0]}. The
        last column counts the seeds, of {len(seeds)}, with which the overfitted model is the worse one of the two;
        where intervals overlap, that alone says little, and the noise floor below says more. Inversion that finds no
        image within its budget counts as better than one that does."""
    pairs = "; ".join(
        f"seed {model['seed']}: {_estimate(model['heldout_pairs']['auc'])}, {model['heldout_pairs']['covered']:.0%} of "
        "random halvings have an interval that covers 0.5"
        for model in overfitted
        if model["heldout_pairs"] is not None
    )
    halves = f"""Membership AUC between two halves of the held-out images, under the overfitted models ({pairs}). None
        of these images was trained on, so 0.5 is right. The halves are the same with every seed, and so the values
        nearly are."""
    floor_text = f"""The noise floor is the standard deviation over seeds, pooled over both models, with its chi-square
        interval from {len(seeds)} seeds each; the gap is overfitted minus brief, between means over seeds. A gap of
        two floors or less is nothing to rely on."""
    header = ("metric", "better", "null", "brief [95 %]", "overfitted [95 %]", "ordered rightly")
    return "\n".join(
        [
            f"## Real models\n\n{prose(how)}",
            table(header, rows),
            *([f"Not measured:\n\n{''.join(sorted(notes))}"] if notes else []),
            prose(halves),
            prose(floor_text),
            table(("metric", "noise floor [95 %]", "gap", "gap / floor"), noise),
        ]
    )


def _order(order: Sequence[bool | None]) -> str:
    said = [each for each in order if each is not None]
    return f"{sum(said)} of {len(said)}" if said else "not measured"


def _objective(folder: Path, record: Record) -> str:
    how = """Utilities, between 0 and 1, in the form of the default objective. A copycat gives training images back; the
        base model is the untouched backbone; the held-out resample is images of other patients, what a perfect
        generator would make. Where there are images and no model, the privacy axis is of metrics that need no model;
        the last table is the default objective itself."""
    pieces = [f"## The objective\n\n{prose(how)}"]
    for found in record["result"]["tables"]:
        rows = [
            (name, f"{each['quality']:.2f}", f"{each['privacy']:.2f}", *(f"{u:.2f}" for u in each["utility"]))
            for name, each in found["generators"].items()
        ]
        header = (
            "generator",
            f"quality ({', '.join(found['quality'])})",
            f"privacy ({', '.join(found['privacy'])})",
            *(f"utility at {preference:g}" for preference in found["preferences"]),
        )
        pieces += [prose(f"{found['title']}: {found['note']}."), table(header, rows)]
    return "\n".join(pieces)


def _cost(folder: Path, record: Record) -> str:
    result, goal = record["result"], record["identity"]["cost"]["goal_s"]
    draw_cost(folder / "measurements-cost.png", result, goal)
    rows, last = result["sizes"], result["sizes"][-1]
    steps = {step: [row["steps"][step] for row in rows] for step in last["steps"]}
    steps |= {f"`{name}`": [sum(row["metrics"][name].values()) for row in rows] for name in last["metrics"]}
    steps = {"everything": [row["seconds"] for row in rows]} | dict(
        sorted(steps.items(), key=lambda item: -item[1][-1])
    )
    body = [
        (name, *(f"{each:.2f}" for each in values), f"{100 * values[-1] / last['seconds']:.0f} %")
        for name, values in steps.items()
    ]
    mixed = f"; beyond {result['real']} of a set they are phantoms" if last["n"] > result["real"] else ""
    how = f"""All {len(result["metrics"])} metrics that need images alone, on equally many generated, training and
        held-out images of {result["env"]}{mixed}. Embeddings are cached. Seconds of processor time of one thread, nulls
        included, though a search computes those once. Steps are shared by metrics; a metric's own row is its value and
        its null. A metric that has no value at these sizes costs nothing: `fid` needs more images than it has
        features."""
    return "\n".join(
        [
            f"## Cost\n\n{prose(how)}",
            table(("step or metric", *(str(row["n"]) for row in rows), "share"), body),
            "![Seconds against the number of images](measurements-cost.png)\n",
        ]
    )


def _inside(value: float, estimate: Sequence[float]) -> bool:
    return estimate[1] <= value <= estimate[2]


def _percent(estimate: Sequence[float], *, interval: bool = False, digits: int = 1) -> str:
    value, low, high = (f"{100 * each:.{digits}f}" for each in estimate[:3])
    return f"{value} [{low}, {high}]" if interval else value


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _estimate(estimate: Sequence[float | None]) -> str:
    value, low, high, _ = estimate
    return _number(value) + ("" if low is None or high is None else f" [{low:.3g}, {high:.3g}]")


def _measured(fields: Mapping[str, Any]) -> str:
    if fields["value"] is None:
        return "not measured"
    return _estimate((fields["value"], fields["low"], fields["high"], None))
