"""What the comparison of mitigations shows on one data set, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from agents.mitigating.analysis import EnvAnalysis, key_of
from agents.mitigating.plan import ALL, CHOSEN
from agents.mitigating.settings import FULL
from agents.study.rows import Interval, Row
from envs.mitigations import MITIGATIONS, Stage
from rewards.measurement import Measurement


def conclusions(analysis: EnvAnalysis) -> Iterator[str]:
    """Sentences; each is true of the analysis, whichever way it falls."""
    yield from _subjects(analysis)
    yield from _equal_steps(analysis)
    yield from _equal_quality(analysis)
    if "copy_rate" in analysis.rows[0].metrics:
        yield from _copies(analysis)
    yield from _named_images(analysis)
    if alone := _with(analysis, ALL):
        on_copies = len(_on_copies(analysis))
        of_copies = f", and {0.025 * on_copies:.1f} of {on_copies} on copies" if on_copies else ""
        yield (
            f"(By luck alone, {0.025 * len(alone):.1f} of {len(alone)} mitigations are to be expected beyond either "
            f"end{of_copies}.)"
        )


def _subjects(analysis: EnvAnalysis) -> Iterator[str]:
    full, chosen = _plain(analysis, ALL), _plain(analysis, CHOSEN)
    if {"membership", "copy_rate"} <= full.metrics.keys():
        yield (
            f"Full fine-tuning has a membership AUC of {full.metrics['membership'].mean():.3f} and copies "
            f"{full.metrics['copy_rate'].mean():.1%}."
        )
    yield f"The chosen mask trains {chosen.share:.1%} and has {_axes(chosen)}."
    alone = _with(analysis, ALL)
    better = [row for row in alone if row.privacy.mean() >= chosen.privacy.mean()]
    best = [row for row in better if row.quality.mean() >= chosen.quality.mean()]
    if best:
        yield f"Alone, {_named(best)} had means no worse than the mask's on both axes."
    else:
        more = f"; {_do(better, 'keep')} more private, at less quality" if better else ""
        yield f"Alone, no mitigation had means as good as the mask's on both axes{more}."
    yield from _copied_masks(analysis)


def _copied_masks(analysis: EnvAnalysis) -> Iterator[str]:
    changes = {method: {"quality": gain.quality, "privacy": gain.privacy} for method, gain in analysis.copied.items()}
    moved = []
    for axis in ("quality", "privacy"):
        for word, sign in (("less", -1), ("more", 1)):
            found = [f"{method} {each[axis].text()}" for method, each in changes.items() if each[axis].side == sign]
            if found:
                moved.append(f"{word} {axis} with {', '.join(found)}")
    if moved:
        yield f"Copied to other methods, beyond the seeds' interval it has {'; '.join(moved)}."
    if same := [method for method, each in changes.items() if not any(change.side for change in each.values())]:
        yield f"Copied to {', '.join(same)}, neither axis is shown to change."


def _equal_steps(analysis: EnvAnalysis) -> Iterator[str]:
    alone = _with(analysis, ALL)
    for verb, sign in (("raise", 1), ("lower", -1)):
        moved = [row for row in alone if analysis.gains[key_of(row)].privacy.side == sign]
        yield (
            f"At equal steps, {_do(moved, verb)} the privacy of full fine-tuning beyond the seeds' interval."
            if moved
            else f"At equal steps, none is shown to {verb} the privacy of full fine-tuning."
        )
    if idle := [row for row in alone if _same(row, _plain(analysis, ALL))]:
        yield f"Of {_named(idle)} every number is that of full fine-tuning alone: there was nothing for it to act on."
    added = [row for row in _with(analysis, CHOSEN) if analysis.gains[key_of(row)].privacy.side > 0]
    yield (
        f"On top of the mask, {_do(added, 'raise')} privacy further."
        if added
        else "On top of the mask, none is shown to raise privacy further."
    )
    if on_copies := _on_copies(analysis):
        raised = [row for row in on_copies if analysis.gains[key_of(row)].privacy.side > 0]
        by_method = [(method, [row for row in raised if row.method == method]) for method in analysis.copied]
        which = "; ".join(f"{_named(rows)} on {method}" for method, rows in by_method if rows)
        yield (
            f"On top of its copies privacy is raised further with {which}."
            if which
            else "On top of its copies, none is shown to raise privacy further."
        )


def _equal_quality(analysis: EnvAnalysis) -> Iterator[str]:
    private = [row for row in _with(analysis, ALL) if analysis.against_early[key_of(row)].side > 0]
    yield (
        f"At equal quality, {_do(private, 'keep')} full fine-tuning more private than stopping early does."
        if private
        else "At equal quality, none alone is shown to keep more private than stopping early does."
    )
    against = analysis.against_early[key_of(_plain(analysis, CHOSEN))]
    yield f"The mask alone is {against.text()} more private than that."


def _copies(analysis: EnvAnalysis) -> Iterator[str]:
    alone = _with(analysis, ALL)

    def change(row: Row) -> Interval:
        return analysis.gains[key_of(row)].metrics["copy_rate"]

    def changes(rows: Iterable[Row]) -> str:
        return ", ".join(f"{_name(row)} {change(row).text(3)}" for row in rows)

    fewer = [row for row in alone if change(row).side < 0]
    yield (
        f"The copy rate of full fine-tuning falls beyond the seeds' interval with {changes(fewer)}."
        if fewer
        else "None is shown to lower the copy rate of full fine-tuning."
    )
    of_sampler = [row for row in alone if _stages(row) == {Stage.SAMPLING}]
    if of_sampler:
        yield (
            "What acts on the sampler alone leaves the weights as they are, and membership asks the weights: it is to "
            f"be judged by the copy rate, which it moves by: {changes(of_sampler)}."
        )


def _named_images(analysis: EnvAnalysis) -> Iterator[str]:
    """Of the first seed whose images were inverted."""
    successes = {
        key: success
        for key, (first, *_) in analysis.inverted.items()
        if (success := first["inversion_success"]).value is not None
    }
    plain, chosen = successes.get((FULL, ALL, "")), successes.get((FULL, CHOSEN, ""))
    if plain is None or chosen is None:
        return
    yield (
        f"Of {plain.n} named training images inversion gets {_got(plain)} back from full fine-tuning, and "
        f"{_got(chosen)} from the mask."
    )
    alone = {_name(row): successes[key_of(row)] for row in _with(analysis, ALL) if key_of(row) in successes}
    if plain.value and alone:
        yield _fewer(alone, plain)
    if copies := [(key[0], each.value or 0.0) for key, each in successes.items() if key[0] in analysis.copied]:
        most = max(value for _, value in copies)
        worst = ", ".join(dict.fromkeys(method for method, value in copies if value == most))
        found = f"{most:.0%} at most ({worst})" if most else "none"
        yield f"From the mask's copies, mitigated or not, it gets {found}."


def _got(success: Measurement) -> str:
    return f"{success.value:.0%}" + ("" if success.null is None else f" (of test images {success.null:.0%})")


def _fewer(alone: Mapping[str, Measurement], plain: Measurement) -> str:
    """Of mitigations of full fine-tuning, beside it without one."""
    lower = [name for name, each in alone.items() if _below(each, plain)]
    if lower:
        return f"Beyond the intervals over the images, fewer come back from full fine-tuning with {', '.join(lower)}."
    least = min(each.value or 0.0 for each in alone.values())
    fewest = ", ".join(name for name, each in alone.items() if each.value == least)
    return (
        "From full fine-tuning with a mitigation it is not shown to get fewer; the fewest come back with "
        f"{fewest}, {least:.0%}."
    )


def _below(one: Measurement, other: Measurement) -> bool:
    """Whether its interval ends where the other's has not begun."""
    return one.high is not None and other.low is not None and one.high < other.low


def _plain(analysis: EnvAnalysis, mask: str) -> Row:
    return next(row for row in analysis.rows if key_of(row) == (FULL, mask, ""))


def _with(analysis: EnvAnalysis, mask: str) -> list[Row]:
    return [row for row in analysis.rows if (row.method, row.mask) == (FULL, mask) and row.mitigations]


def _on_copies(analysis: EnvAnalysis) -> list[Row]:
    return [row for row in analysis.rows if row.method in analysis.copied and row.mitigations]


def _stages(row: Row) -> set[Stage]:
    return {MITIGATIONS[name].stage for name in row.mitigations.split(",")}


def _same(row: Row, other: Row) -> bool:
    return all(np.array_equal(row.metrics[name], other.metrics[name], equal_nan=True) for name in row.metrics)


def _axes(row: Row) -> str:
    return f"quality {Interval.over(row.quality).text()} and privacy {Interval.over(row.privacy).text()}"


def _name(row: Row) -> str:
    return row.mitigations.replace(",", "+")


def _named(rows: Sequence[Row]) -> str:
    return ", ".join(map(_name, rows))


def _do(rows: Sequence[Row], verb: str) -> str:
    return f"{_named(rows)} {verb}{'s' if len(rows) == 1 else ''}"
