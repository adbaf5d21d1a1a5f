"""``python -m agents.tabulate``: measures every mask of a task, for searches that cost nothing and an exact regret."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig
from pydantic import Field

from agents.callbacks import search_progress
from agents.entry import entry_point
from agents.result import git_state, hardware, versions
from agents.search.experience import axes_noise, repeats_among
from agents.settings import TrainSettings, read_settings
from agents.workbench import Workbench, prepare
from envs.evaluators.base import Evaluation
from envs.evaluators.cached import CachedEvaluator
from envs.evaluators.table import EvaluationTable
from envs.seeding import derive_seed
from envs.store import EvaluationStore
from envs.task import Mask, Schedule, SelectionTask
from rewards.calibration import noise_floor
from rewards.errors import InputError
from rewards.objective import Objective

_log = logging.getLogger(__name__)

_MOST_TOGGLES = 12
_MUCH_NOISE = 0.25
"""Of one measurement on an axis of length 1, a standard deviation: two masks have to differ by most of the axis."""


@dataclass(frozen=True)
class RepeatSettings:
    """Masks that are measured again with other seeds, for the noise floor.

    Attributes:
        share: Of all masks, drawn at random; both anchors are always among them.
        seeds: Further ones, counted up from the run's.
    """

    share: Annotated[float, Field(ge=0, le=1)]
    seeds: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class TabulateSettings(TrainSettings):
    """What a training is told, and what is measured again.

    Attributes:
        repeat: See `RepeatSettings`.
        table: The file to write; None for one under ``run_dir`` that is named by the task.
    """

    repeat: RepeatSettings = dataclasses.field(default_factory=lambda: RepeatSettings(0.125, 2))
    table: str | None = None


@entry_point("tabulate")
def main(config: DictConfig) -> None:
    """Measures every mask through the store, so that an interrupted call goes on where it was, and writes the table."""
    settings = read_settings(config, TabulateSettings)
    bench = prepare(settings)
    task = bench.search
    if bench.make_factory is None:
        raise InputError(f"evaluator={settings.evaluator.name}", "tables are measured: set evaluator=finetune")
    if len(task.groups) > _MOST_TOGGLES:
        raise InputError(
            f"groups={task.scheme} has {len(task.groups)} toggles, 2^{len(task.groups)} masks",
            f"choose a scheme of {_MOST_TOGGLES} at most",
        )
    path = Path(settings.table or Path(settings.run_dir) / "tables" / f"{task.env}-{task.method}-{task.id[:8]}.parquet")
    print(f"{2 ** len(task.groups)} masks of {task.id}, into {path}", flush=True)
    try:
        table = tabulate(settings, bench)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every finished evaluation is kept; the same command goes on") from None
    table.write(path)
    print(f"wrote {path}")


def tabulate(settings: TabulateSettings, bench: Workbench) -> EvaluationTable:
    """Every mask with the run's seed, and the repeated ones with the further seeds."""
    task = bench.search
    masks = all_masks(len(task.groups))
    repeated = repeated_masks(masks, settings.repeat.share, settings.seed)
    # The repeated masks come first: whether this budget tells masks apart is known, and said, before the long part.
    first = sorted(masks, key=lambda mask: mask not in set(repeated))
    wanted = {task.seed + 1 + i: repeated for i in range(settings.repeat.seeds)} | {task.seed: first}
    totals = {f"seed {seed}": len(of_seed) for seed, of_seed in wanted.items()}
    found: dict[int, dict[Schedule, Evaluation]] = {}
    with closing(EvaluationStore(settings.store.path)) as store, search_progress(totals) as show:
        for seed, of_seed in wanted.items():
            task_of_seed = dataclasses.replace(task, seed=seed)
            with closing(bench.make_evaluator(task_of_seed)) as inner:
                evaluator = CachedEvaluator(inner, store, task_of_seed, "tabulate")
                found[seed] = {}
                for part in (repeated, of_seed[len(repeated) :]):
                    for _, evaluation in evaluator.evaluate_iter([Schedule.constant(mask) for mask in part]):
                        found[seed][evaluation.schedule] = evaluation
                        show(f"seed {seed}", evaluator.distinct)
                    if part is repeated and seed == task.seed:
                        warn_of_noise(found, task.seed, bench.objective)
    return EvaluationTable(
        task,
        found,
        bench.group_feature_names,
        bench.group_features,
        bench.task_feature_names,
        bench.task_features,
        {
            "data": bench.data,
            "env": dataclasses.asdict(settings.env),
            "noise_floor": noise(task, found),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "git": git_state(),
            "hardware": hardware(),
            "versions": versions(),
        },
    )


def warn_of_noise(found: Mapping[int, Mapping[Schedule, Evaluation]], seed: int, objective: Objective) -> None:
    """Warns of an axis on which masks cannot be told apart, while there is time to choose another budget.

    Args:
        found: By seed and schedule, both anchors with each seed.
        seed: Of the table.
        objective: That is rewarded.
    """
    try:
        floor = axes_noise(repeats_among(found, seed, objective))
    except InputError as error:
        _log.warning("a search could not use this table: %s — %s", error.what, error.remedy)
        return
    for axis, noise in floor._asdict().items() if floor else ():
        if noise > _MUCH_NOISE:
            _log.warning(
                "%s: seeds of one mask differ by %.2f of the way between anchors; raise inner.steps or inner.images",
                axis,
                noise,
            )


def all_masks(toggles: int) -> list[Mask]:
    """Every mask, in the order of binary numbers."""
    return [tuple(bit == "1" for bit in f"{number:0{toggles}b}") for number in range(2**toggles)]


def repeated_masks(masks: Sequence[Mask], share: float, seed: int) -> list[Mask]:
    """A random share of the masks, in order; none and all are always among them."""
    inner = list(masks[1:-1])
    drawn = random.Random(derive_seed(seed, "repeated masks")).sample(
        inner, max(0, min(round(share * len(masks)) - 2, len(inner)))
    )
    return sorted({masks[0], masks[-1], *drawn})


def noise(task: SelectionTask, found: dict[int, dict[Schedule, Evaluation]]) -> dict[str, Any]:
    """How much a metric differs between seeds of one mask: the pooled standard deviation with its 95 % interval.

    Of a metric that a repeated mask has no value for, and without repeats, there is none.
    """
    floors: dict[str, Any] = {}
    seeds = list(found.values())
    repeated = sorted(set.intersection(*map(set, seeds)))
    for name in task.metrics if len(seeds) > 1 else ():
        repeats = [
            [of_seed[schedule].metrics[name].value for of_seed in seeds if name in of_seed[schedule].metrics]
            for schedule in repeated
        ]
        values = [of_mask for of_mask in repeats if len(of_mask) == len(seeds) and None not in of_mask]
        if values:
            floors[name] = list(noise_floor([torch.tensor(of_mask, dtype=torch.float64) for of_mask in values]))
    return floors


if __name__ == "__main__":
    main()
