"""Fine-tunes and measures every method with every mask, several tasks side by side, all through the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from agents.capacity.settings import MethodsSettings
from agents.workbench import method_options, prepare_backbone, prepare_images
from envs.datasets.base import SplitDataset
from envs.evaluators.base import Evaluation, evaluate_many
from envs.evaluators.cached import CachedEvaluator
from envs.evaluators.finetune import FineTuneFactory
from envs.evaluators.pool import PoolEvaluator, cores
from envs.groups import find_groups
from envs.methods import find_method
from envs.store import EvaluationStore
from envs.task import Schedule, SelectionTask, parse_mask
from rewards.errors import InputError
from rewards.suite import METRICS

Judge = Literal["heldout", "test"]
Show = Callable[[str, int], None]
"""Told what is being measured, and how many evaluations of it are there."""

_FULL = "full"


@dataclass(frozen=True)
class Cell:
    """One fine-tune of the comparison.

    Attributes:
        method: Of adaptation.
        mask: Its name.
        steps: Optimizer steps.
        learning_rate: The peak.
        seed: Of everything but the split.
    """

    method: str
    mask: str
    steps: int
    learning_rate: float
    seed: int


class Laboratory:
    """Evaluates cells on one data set.

    Args:
        settings: Of the comparison.
        env: The data set's name.

    Raises:
        InputError: If data or backbone are missing or do not fit, or a mask names no group.
    """

    def __init__(self, settings: MethodsSettings, env: str) -> None:
        self.settings, self.env = settings, env
        self.dataset: SplitDataset = prepare_images(settings.env(env), settings.data)
        self.backbone, self._path = prepare_backbone(settings.backbone, settings.env(env))
        self.groups = tuple(group.name for group in find_groups(self.backbone.denoiser, settings.groups))
        self.masks = {name: parse_mask(text, self.groups) for name, text in settings.masks.items()}
        self._devices = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)

    def evaluate(self, cells: Sequence[Cell], judge: Judge, what: str, show: Show) -> dict[Cell, Evaluation]:
        """The evaluation of every cell; those in the store cost nothing.

        Args:
            cells: What to evaluate.
            judge: The split that they are measured on.
            what: Names this in ``show``.
            show: Told about progress.

        Raises:
            InputError: If a fine-tune fails or a worker dies; what was finished is kept.
        """
        tasks: dict[str, SelectionTask] = {}
        by_task: dict[str, list[Cell]] = {}
        for cell in cells:
            task = self.task(cell, judge)
            tasks[task.id] = task
            by_task.setdefault(task.id, []).append(cell)
        jobs = [
            delayed(_evaluate)(
                self.factory(tasks[key], i),
                [Schedule.constant(self.masks[cell.mask]) for cell in of_task],
                of_task,
                self.settings.store.path,
            )
            for i, (key, of_task) in enumerate(by_task.items())
        ]
        found: dict[Cell, Evaluation] = {}
        try:
            # Mapped into memory, images would be read-only, of which torch warns.
            workers = Parallel(
                self.settings.workers or cores(), return_as="generator_unordered", batch_size=1, max_nbytes=None
            )
            for answers in workers(jobs):
                found |= answers
                show(what, len(found))
        except TerminatedWorkerError as error:
            raise InputError(
                "a worker was killed, perhaps for its memory", "lower workers= and call again: nothing finished is lost"
            ) from error
        for cell, evaluation in found.items():
            if evaluation.failure:
                raise InputError(
                    f"{cell.method} with mask {cell.mask} at learning rate {cell.learning_rate:g} failed: "
                    f"{evaluation.failure}",
                    "lower the learning rates, or leave the method out",
                )
        return {cell: found[cell] for cell in cells}

    def task(self, cell: Cell, judge: Judge) -> SelectionTask:
        """The task of which a cell evaluates one mask."""
        settings = self.settings
        method = find_method(cell.method, settings.method_options.get(cell.method))
        inner = dataclasses.replace(
            settings.inner,
            steps=cell.steps,
            warmup=min(settings.inner.warmup, cell.steps - 1),
            learning_rate=cell.learning_rate,
        )
        return SelectionTask(
            env=self.env,
            split_sha256=self.dataset.split_sha256,
            backbone=self.backbone.name,
            backbone_sha256=self.backbone.sha256,
            method=cell.method,
            scheme=settings.groups,
            groups=self.groups,
            inner=inner,
            metrics=tuple(settings.metrics),
            judge=judge,
            seed=cell.seed,
            options={
                "device": torch.device(self._devices[0]).type,
                "threads": settings.threads,
                **method_options(method),
            },
        )

    def factory(self, task: SelectionTask, job: int = 0) -> FineTuneFactory:
        """What builds the evaluator of a task, on one GPU after another."""
        device = self._devices[job % len(self._devices)]
        return FineTuneFactory(task, self.dataset, self._path, (device,), self.settings.threads)


def tuning_cells(settings: MethodsSettings) -> list[Cell]:
    """Every method with everything on, at every learning rate."""
    everything = next(name for name, text in settings.masks.items() if text == "all")
    return [
        Cell(method, everything, settings.inner.steps, rate, settings.tuning.seed)
        for rate in settings.tuning.learning_rates
        for method in settings.methods
    ]


def best_rates(settings: MethodsSettings, found: Mapping[Cell, Evaluation]) -> dict[str, float]:
    """The learning rate of each method at which the first quality metric is best; of equals, the lowest."""
    metric = settings.reward.quality[0]
    sign = 1 if METRICS[metric].higher_is_better else -1

    def merit(cell: Cell) -> tuple[float, float]:
        value = found[cell].metrics[metric].value
        return (-float("inf") if value is None else sign * value), -cell.learning_rate

    return {
        method: max((cell for cell in found if cell.method == method), key=merit).learning_rate
        for method in settings.methods
    }


def table_cells(settings: MethodsSettings, rates: Mapping[str, float]) -> Iterator[Cell]:
    """Every method with every mask and seed at its learning rate, and full fine-tuning stopped early."""
    everything = next(name for name, text in settings.masks.items() if text == "all")
    steps, rate = settings.inner.steps, rates[_FULL]
    for seed in settings.seeds:
        for method in settings.methods:
            for mask in settings.masks:
                yield Cell(method, mask, steps, rates[method], seed)
        # The whole schedule in fewer steps, decay included: what a user who stops early would run.
        yield from (Cell(_FULL, everything, early, rate, seed) for early in settings.early_stops)


def to_json(found: Mapping[Cell, Evaluation]) -> list[dict[str, Any]]:
    """JSON values of cells and their evaluations; see `from_json`."""
    return [{"cell": dataclasses.asdict(cell), "evaluation": e.to_json()} for cell, e in found.items()]


def from_json(fields: Sequence[Mapping[str, Any]]) -> dict[Cell, Evaluation]:
    """The inverse of `to_json`."""
    return {Cell(**each["cell"]): Evaluation.from_json(each["evaluation"]) for each in fields}


def _evaluate(
    factory: FineTuneFactory, schedules: Sequence[Schedule], cells: Sequence[Cell], store_path: str
) -> dict[Cell, Evaluation]:
    """One task in a worker. Every evaluation is in the store before the next one starts."""
    task = factory.task
    with closing(EvaluationStore(Path(store_path))) as store:
        evaluator = CachedEvaluator(PoolEvaluator(factory, 0, task.groups), store, task, run="methods")
        with closing(evaluator):
            return dict(zip(cells, evaluate_many(evaluator, schedules), strict=True))
