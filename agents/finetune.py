"""``python -m agents.finetune``: the long fine-tune of chosen layer groups, saved as a model that others load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.entry import entry_point
from agents.finetuning.checkpoints import Checkpoints
from agents.finetuning.choice import adopt_run
from agents.finetuning.curves import Curves
from agents.finetuning.fit import Books, fit
from agents.finetuning.result import above_null, finish
from agents.finetuning.settings import FinetuneSettings
from agents.finetuning.stop import StopRule
from agents.finetuning.trainer import State
from agents.finetuning.validation import validate
from agents.finetuning.workplace import Workplace, prepare, start_accelerator
from agents.run_folder import RunFolder
from agents.settings import read_settings
from envs.learner import DivergedError
from rewards.errors import InputError


@entry_point("finetune")
def main(config: DictConfig) -> None:
    """Fine-tunes anew, or goes on with the run that ``resume=`` names."""
    folder, overrides = None, HydraConfig.get().overrides.task
    if config.resume is not None:
        folder, config = RunFolder.to_resume(config.resume, "finetune", overrides)
    else:
        if config.run is not None:
            adopt_run(config, config.run, overrides)
        for key in ("run", "policy"):  # wherever the fine-tune is resumed from
            if config[key] is not None:
                config[key] = str(Path(config[key]).absolute())
    settings = read_settings(config, FinetuneSettings)
    accelerator = start_accelerator(settings)
    place = prepare(settings, accelerator)
    state = None if folder is None else Checkpoints(folder.path / "checkpoints", settings.training.keep).last()
    with _divergence_explained():
        if not accelerator.is_main_process:
            _follow(settings, place, accelerator, state)
            return
        if folder is None:
            task = f"{place.task.env}-{place.task.method}-{place.task.id[:8]}"
            folder = RunFolder.create(settings.run_dir, "finetune", task, config, overrides)
        with folder, _interruption_explained(folder):
            print(f"run {folder.path}", flush=True)
            summary = finetune(settings, place, accelerator, folder, state)
    accelerator.end_training()
    above = ", ".join(above_null(summary["metrics"]))
    print(
        f"{summary['stop']['words']}\n"
        f"memorization {f'above its null in {above}' if above else 'not found above its null'} "
        f"on the test split\nmodel card {folder.path / 'README.md'}"
    )


def finetune(
    settings: FinetuneSettings, place: Workplace, accelerator: Accelerator, folder: RunFolder, state: State | None
) -> dict[str, Any]:
    """Trains, measures the model on the test split, and writes the run folder.

    Args:
        settings: Of the run.
        place: What it needs.
        accelerator: Of the process, which is the one that writes.
        folder: Entered.
        state: To go on from; None to begin.

    Returns:
        What ``result.json`` holds.
    """
    started = time.monotonic()
    assert place.heldout is not None
    folder.write_data_check(place.dataset)
    for name, record in place.treatment.records.items():
        folder.write_json(name, record)
    rule = StopRule(settings.stop, place.heldout.nulls)
    with (
        closing(Curves(folder.path, None if state is None else state.numbers["history"])) as curves,
        search_progress({"training": settings.training.steps}) as show,
    ):
        look = partial(validate, place.heldout, settings.validation.grid, place.treatment.steerings)
        books = Books(look, rule, curves, Checkpoints(folder.path / "checkpoints", settings.training.keep))
        if state is not None:
            place.trainer.load(state)
            books.load(state)
        ended = state is not None and bool(state.numbers["ended"])
        ended = fit(place.trainer, settings.training, accelerator, books, ended=ended, show=partial(show, "training"))
    return finish(settings, place, folder, books, ended=ended, started=started)


def _follow(settings: FinetuneSettings, place: Workplace, accelerator: Accelerator, state: State | None) -> None:
    """What every process but the one that writes does."""
    if state is not None:
        place.trainer.load(state)
    ended = state is not None and bool(state.numbers["ended"])
    fit(place.trainer, settings.training, accelerator, None, ended=ended, show=lambda _: None)
    # One was seen to abort at its exit, whose launcher then ended the one that still wrote: leave in good order.
    accelerator.end_training()


@contextmanager
def _interruption_explained(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the last whole step is kept; go on with resume={folder.path}") from None


@contextmanager
def _divergence_explained() -> Iterator[None]:
    try:
        yield
    except DivergedError as error:
        raise InputError(f"the fine-tune diverged: {error}", "lower training.learning_rate") from error


if __name__ == "__main__":
    main()
