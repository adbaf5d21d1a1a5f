"""Fine-tunes and measures, several tasks side by side, all through the store."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from agents.study.settings import StudySettings
from agents.workbench import method_options, mitigation_options, prepare_backbone, prepare_images
from envs.datasets.base import SplitDataset
from envs.evaluators.base import Evaluation, evaluate_many
from envs.evaluators.cached import CachedEvaluator, Served
from envs.evaluators.finetune import FineTuneEvaluator, FineTuneFactory, basis_key
from envs.evaluators.pool import PoolEvaluator, cores
from envs.groups import find_groups
from envs.judge import Basis
from envs.methods import find_method
from envs.mitigations import Mitigation, find_mitigations
from envs.store import EvaluationStore
from envs.task import Schedule, SelectionTask, parse_mask
from rewards.errors import InputError

Judge = Literal["heldout", "test"]
Show = Callable[[str, int], None]
"""Told what is being measured, and how many evaluations of it are there."""


@dataclass(frozen=True)
class Cell:
    """One fine-tune of the comparison.

    Attributes:
        method: Of adaptation.
        mask: Its name.
        steps: Optimizer steps.
        learning_rate: The peak.
        seed: Of everything but the split.
        mitigations: Their names, joined by commas; empty for none.
    """

    method: str
    mask: str
    steps: int
    learning_rate: float
    seed: int
    mitigations: str = ""


class Laboratory:
    """Evaluates cells on one data set.

    Args:
        settings: Of the comparison.
        env: The data set's name.
        masks: By name, as ``mask=`` takes them.
        run: What pays, for the store.

    Raises:
        InputError: If data or backbone are missing or do not fit, or a mask names no group.
    """

    def __init__(self, settings: StudySettings, env: str, masks: Mapping[str, str], run: str) -> None:
        self.settings, self.env, self._run = settings, env, run
        self.dataset: SplitDataset = prepare_images(settings.env(env), settings.data)
        self.backbone, self._path = prepare_backbone(settings.backbone, settings.env(env))
        self.groups = tuple(group.name for group in find_groups(self.backbone.denoiser, settings.groups))
        self.masks = {name: parse_mask(text, self.groups) for name, text in masks.items()}
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
                self._run,
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
                    f"{cell.method} with mask {cell.mask} and {cell.mitigations or 'no'} mitigation at learning rate "
                    f"{cell.learning_rate:g} failed: {evaluation.failure}",
                    "lower the learning rates, or leave it out",
                )
        return {cell: found[cell] for cell in cells}

    def task(self, cell: Cell, judge: Judge) -> SelectionTask:
        """The task of which a cell evaluates one mask."""
        settings = self.settings
        method = find_method(cell.method, settings.method_options.get(cell.method))
        mitigations = self.mitigations(cell.mitigations)
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
                **mitigation_options(mitigations),
            },
        )

    def mitigations(self, names: str) -> tuple[Mitigation, ...]:
        """Those of a cell, set as the comparison sets them, in the order in which they act.

        Args:
            names: Joined by commas; empty for none.

        Raises:
            InputError: As `find_mitigations` does.
        """
        options = self.settings.mitigation_options
        return find_mitigations({name: options.get(name, {}) for name in names.split(",") if name})

    def trains(self, method: str, mask: str) -> bool:
        """Whether a method has a parameter in the groups of a mask, by its name."""
        denoiser = copy.deepcopy(self.backbone.denoiser)
        attach = find_method(method, self.settings.method_options.get(method))
        # Nothing is lost on gradients: what matters most is chosen in every group by itself.
        attachment = attach(denoiser, find_groups(denoiser, self.settings.groups), calibration=lambda: ())
        return bool(attachment.selected(self.masks[mask]))

    def factory(self, task: SelectionTask, job: int = 0) -> FineTuneFactory:
        """What builds the evaluator of a task, on one GPU after another."""
        device = self._devices[job % len(self._devices)]
        return FineTuneFactory(task, self.dataset, self._path, (device,), self.settings.threads)

    def evaluator(
        self, task: SelectionTask, store: EvaluationStore, record: Callable[[Served], None] | None = None
    ) -> CachedEvaluator:
        """Of one task, several masks of it side by side; one worker is this process. The caller closes it.

        Args:
            task: What is evaluated.
            store: Where evaluations are looked for and kept.
            record: Called with every answer.
        """
        on_gpu = self._devices != ("cpu",)
        workers = self.settings.workers or (len(self._devices) if on_gpu else cores())
        factory = FineTuneFactory(task, self.dataset, self._path, self._devices, self.settings.threads)
        pool = PoolEvaluator(factory, workers if workers > 1 else 0, task.groups)
        return CachedEvaluator(pool, store, task, self._run, record)


def to_json(found: Mapping[Cell, Evaluation]) -> list[dict[str, Any]]:
    """JSON values of cells and their evaluations; see `from_json`."""
    return [{"cell": dataclasses.asdict(cell), "evaluation": e.to_json()} for cell, e in found.items()]


def from_json(fields: Sequence[Mapping[str, Any]]) -> dict[Cell, Evaluation]:
    """The inverse of `to_json`."""
    return {Cell(**each["cell"]): Evaluation.from_json(each["evaluation"]) for each in fields}


_known: dict[tuple[str, tuple[str, ...]], Basis] = {}
"""Of this process' last task, and on which device: cells that differ in mitigations alone come one after another."""


def _build(factory: FineTuneFactory, worker: int) -> FineTuneEvaluator:
    key = basis_key(factory.task), factory.devices
    evaluator = factory(worker, _known.get(key))
    _known.clear()
    _known[key] = evaluator.judge.basis
    return evaluator


def _evaluate(
    factory: FineTuneFactory, schedules: Sequence[Schedule], cells: Sequence[Cell], store_path: str, run: str
) -> dict[Cell, Evaluation]:
    """One task in a worker. Every evaluation is in the store before the next one starts."""
    task = factory.task
    with closing(EvaluationStore(Path(store_path))) as store:
        evaluator = CachedEvaluator(PoolEvaluator(partial(_build, factory), 0, task.groups), store, task, run)
        with closing(evaluator):
            return dict(zip(cells, evaluate_many(evaluator, schedules), strict=True))
