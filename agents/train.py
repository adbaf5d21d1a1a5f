"""``python -m agents.train``: learns which layer groups to tune, and writes down the set it would choose."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.entry import entry_point, interruption_explained
from agents.experience_file import save_experience
from agents.export import ExportedPolicy, save_policy
from agents.gallery import show_images
from agents.learning import learn_by_searching
from agents.report import write_report
from agents.result import summarize
from agents.run_folder import RunFolder
from agents.search.base import Experience
from agents.session import Session, frozen_mask
from agents.settings import TrainSettings, read_settings
from agents.workbench import Workbench, prepare
from envs.store import EvaluationStore
from rewards.objective import Axes

_log = logging.getLogger(__name__)


@entry_point("train")
def main(config: DictConfig) -> None:
    """Trains a new run, or goes on with the one that ``resume=`` names."""
    folder, overrides = None, HydraConfig.get().overrides.task
    if config.resume is not None:
        folder, config = RunFolder.to_resume(config.resume, "train", overrides)
    settings = read_settings(config, TrainSettings)
    # Wherever the run is resumed from, it finds what it has paid for.
    config.store.path = str(Path(settings.store.path).absolute())
    bench = prepare(settings)
    # Everything that can be wrong with the call has been looked at before a folder is made.
    # A table's numbers stay out of the store: another machine may have measured them.
    with closing(EvaluationStore(":memory:" if settings.evaluator.name == "tabular" else settings.store.path)) as store:
        if folder is None:
            task = f"{bench.search.env}-{bench.search.method}-{bench.search.id[:8]}"
            folder = RunFolder.create(settings.run_dir, "train", task, config, overrides)
        with folder, interruption_explained(folder.path):
            print(f"run {folder.path}", *bench.memory, sep="\n", flush=True)
            for line in bench.memory:
                _log.info(line)
            summary = train(settings, bench, store, folder)
    print(finished(summary, folder.path))


def finished(summary: dict[str, Any], folder: Path) -> str:
    """The last lines of a run: what was selected, and where to read on."""
    selected, axes = summary["selected"], summary["axes"]
    return (
        f"selected {', '.join(selected['groups']) or 'nothing'} ({selected['trainable_share']:.1%} of the parameters): "
        f"{', '.join(f'{name} {_or_none(value)}' for name, value in axes.items())} on {summary['judged_by']}\n"
        f"report {folder / 'report.html'}"
    )


def save_run_experience(folder: Path, session: Session) -> None:
    """Keeps what the run measured, both anchors among it, for policies that learn from several runs."""
    bench, groups = session.bench, len(session.bench.search.groups)
    anchors = {(False,) * groups: Axes(0.0, 1.0), (True,) * groups: Axes(1.0, 0.0)}
    scored = [each for each in session.scored() if len(each.evaluation.schedule.phases) == 1]
    save_experience(
        folder,
        Experience(
            env=bench.search.env,
            task=bench.search.id,
            objective=session.objective,
            group_features=bench.group_features,
            group_feature_names=bench.group_feature_names,
            task_features=bench.task_features,
            task_feature_names=bench.task_feature_names,
            outcomes=anchors | {each.evaluation.schedule.phases[0]: each.axes for each in scored},
        ),
    )


def train(settings: TrainSettings, bench: Workbench, store: EvaluationStore, folder: RunFolder) -> dict[str, Any]:
    """Measures the anchors, searches, measures the choice on the test split, and writes the run folder.

    Returns:
        What ``result.json`` holds.
    """
    started = time.monotonic()
    if bench.dataset is not None:
        folder.write_data_check(bench.dataset)
    totals = {"search": settings.budget.evaluations + 2, "final table": 3}
    with search_progress(totals) as show:
        session = Session(settings, bench, store, folder, show)
        with closing(session):
            network = learn_by_searching(session, folder.path / "tensorboard")
        best = session.best()
        table = session.final_table(best.schedule)
    policy = ExportedPolicy(
        network,
        bench.group_feature_names,
        bench.task_feature_names,
        trained_on=({"task": bench.search.id, "env": bench.search.env},),
    )
    save_policy(folder.path, policy)
    save_run_experience(folder.path, session)
    frozen = frozen_mask(settings.frozen, bench.search.groups)
    choice = policy.choose(bench.group_features, bench.task_features, settings.preference, frozen)
    summary = summarize(settings, bench, session, table, choice, seconds=time.monotonic() - started)
    if settings.report.images:
        show_images(folder.path, bench, best.schedule)
    write_report(folder.path, summary, session)
    folder.write_json("result.json", summary)
    return summary


def _or_none(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
