"""``docs/transfers.md``, written from the files of runs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from agents.markdown import made_by, prose, table
from agents.transferred.runs import TransferRun
from rewards.errors import InputError

_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of evaluations that the tables quote."""
_RANDOM = "random"
_MODELS = ("base model", "chosen", "full fine-tuning")


def write_document(folder: Path, transfers: Sequence[Sequence[TransferRun]]) -> Path:
    """Writes the page.

    Args:
        folder: Created if missing.
        transfers: Runs of one command with several seeds each.

    Raises:
        InputError: If the folder cannot be written.
    """
    path = folder / "transfers.md"
    pieces = ["# Transfers\n", _introduction()]
    for runs in transfers:
        pieces += _transfer(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(pieces), encoding="utf-8")
    except OSError as error:
        raise InputError(f"docs={folder} cannot be written: {error}", "name another folder") from error
    return path


def _introduction() -> str:
    return prose(
        """What policies that learned on other data sets choose on one that they had never seen. `make transfers`
        (`python -m agents.transfers`) wrote this page from the runs' `result.json`. A cell has the mean over seeds and,
        in brackets, each seed's own number. *Utility* is the best so far at the run's preference, on the two axes that
        the run's own anchors define: 0 to 1. After one evaluation it is that of the first mask asked for: for
        `transfer` the zero-shot choice, chosen before anything on the target was measured but probes of the base model.
        Every searcher got as many distinct evaluations."""
    )


def _transfer(runs: Sequence[TransferRun]) -> Iterator[str]:
    first = runs[0].result
    task, transfer = first["task"], first["transfer"]
    yield f"## {', '.join(transfer['sources'])} to {task['env']}, {len(task['groups'])} toggles\n"
    seeds = ",".join(str(run.seed) for run in runs)
    yield f"```bash\npython -m agents.transfer -m {' '.join(runs[0].command)} seed={seeds}\n```\n"
    yield "### What is found, by evaluations\n"
    yield _found(runs)
    yield prose(_against_random(runs))
    yield "### The winners, judged anew\n"
    yield prose(
        f"""Fine-tuned again with another seed and judged by {first["judged_by"]}. Chosen, by seed:
        {"; ".join(_chosen(run) for run in runs)}."""
    )
    yield _judged(runs)
    yield prose(f"{_axes(runs)} {_origin(runs)}")


def _found(runs: Sequence[TransferRun]) -> str:
    curves = [run.result["transfer"]["curves"] for run in runs]
    names = [name for name in curves[0] if all(curve.get(name) for curve in curves)]
    last = max(int(curve["transfer"][-1][0]) for curve in curves)
    counts = [n for n in _COUNTS if n <= last]
    rows = [(name, *(_cell([_best_after(curve[name], n) for curve in curves]) for n in counts)) for name in names]
    return table(("utility", *(f"after {n}" for n in counts)), rows)


def _against_random(runs: Sequence[TransferRun]) -> str:
    """The zero-shot choice against the best that random search finds with all its evaluations."""
    pairs = []
    for run in runs:
        transfer = run.result["transfer"]
        zero_shot, curve = transfer["zero_shot_utility"], transfer["curves"].get(_RANDOM)
        if zero_shot is not None and curve:
            pairs.append((float(zero_shot), float(curve[-1][1]), int(curve[-1][0])))
    if not pairs:
        return "Random search did not run beside it."
    gains = [ours - theirs for ours, theirs, _ in pairs]
    above = sum(gain > 0 for gain in gains)
    best = f"random's best of {max(n for _, _, n in pairs)}"
    return f"The zero-shot choice minus {best}: {_cell(gains, '+.3f')}; above it in {above} of {len(gains)} runs."


def _best_after(curve: Sequence[Sequence[float]], evaluations: int) -> float | None:
    """The curve has no point for a failed evaluation."""
    reached = [best for number, best in curve if number <= evaluations]
    return reached[-1] if reached else None


def _chosen(run: TransferRun) -> str:
    selected = run.result["selected"]
    groups = ", ".join(f"`{group}`" for group in selected["groups"]) or "nothing"
    return f"{run.seed}: {groups} ({selected['trainable_share']:.1%})"


def _judged(runs: Sequence[TransferRun]) -> str:
    rows, without = [], []
    for name in runs[0].result["metrics"]:
        by_model = [[models[model].get(name, {}) for models in map(_metrics, runs)] for model in _MODELS]
        cells = [_cell([found.get("value") for found in of_seeds], ".3g") for of_seeds in by_model]
        null = _cell([found.get("null") for found in by_model[1]], ".3g")
        if any(cells):
            rows.append((f"`{name}`", *cells, null))
        else:
            notes = dict.fromkeys(found.get("note", "") for of_seeds in by_model for found in of_seeds)
            without.append(f"`{name}` has no value: {'; '.join(filter(None, notes)) or 'nobody says why'}.\n")
    return "\n".join([table(("metric", *_MODELS, "null"), rows), *without])


def _metrics(run: TransferRun) -> dict[str, dict[str, Any]]:
    anchors = run.result["anchors"]
    found = anchors["base"]["metrics"], run.result["metrics"], anchors["full"]["metrics"]
    return dict(zip(_MODELS, found, strict=True))


def _axes(runs: Sequence[TransferRun]) -> str:
    notes = {run.result["axes_note"] for run in runs} - {""}
    values = [_cell([run.result["axes"][axis] for run in runs]) for axis in ("quality", "privacy", "utility")]
    words = (
        ["On these axes the choice has quality {}, privacy {} and utility {}.".format(*values)] if all(values) else []
    )
    return " ".join([*words, *(f"There are no axes for some seeds: {note}." for note in sorted(notes))])


def _origin(runs: Sequence[TransferRun]) -> str:
    origins = dict.fromkeys(made_by(run.result) for run in runs)
    seconds = [run.result["evaluations"]["seconds"] for run in runs]
    counts = sum(run.result["evaluations"]["distinct"] for run in runs)
    return (
        f"{counts} distinct evaluations; {fmean(seconds) / 60:.0f} minutes a run for what was not stored. "
        f"{'; '.join(origins)}."
    )


def _cell(values: Sequence[float | None], form: str = ".3f") -> str:
    """A mean, and what it is the mean of if they differ."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = format(fmean(known), form)
    each = ", ".join("none" if value is None else format(value, form) for value in values)
    return mean if len(set(values)) == 1 else f"{mean} ({each})"
