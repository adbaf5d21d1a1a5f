"""``python -m agents.transfer``: what was learned on other data sets chooses on one that it has never seen."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.entry import entry_point, interruption_explained
from agents.export import ExportedPolicy, save_policy
from agents.gallery import show_images
from agents.learning import learn_by_searching
from agents.report import write_report
from agents.result import summarize
from agents.run_folder import RunFolder
from agents.search import find_searcher
from agents.session import Session, frozen_mask
from agents.settings import DynaPPOSettings, TrainSettings, read_settings
from agents.source_policy import SourcePolicy
from agents.sources import Source, find_sources, the_policy
from agents.train import finished, save_run_experience
from agents.workbench import Workbench, prepare
from envs.store import EvaluationStore
from rewards.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferSettings(TrainSettings):
    """What a training is told, and what it may learn from before.

    Attributes:
        src: Run folders and names of data sets.
        rivals: Searchers that get as many evaluations of the target, to compare with.
        trust_zip: Whether a policy may come from a zip of stable-baselines3, which runs code from it.
    """

    src: list[str] = dataclasses.field(default_factory=list)
    rivals: list[str] = dataclasses.field(default_factory=list)
    trust_zip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.agent, DynaPPOSettings):
            raise InputError(f"agent={self.agent.name}", "set agent=dyna_ppo: it learns from other tasks")


def main() -> None:
    """``dst=`` is the target's ``env=``, and ``src=`` takes commas."""
    sys.argv[1:] = [_translated(argument) for argument in sys.argv[1:]]
    application()


@entry_point("transfer")
def application(config: DictConfig) -> None:
    """Transfers to a new task, or goes on with the run that ``resume=`` names."""
    folder, overrides = None, HydraConfig.get().overrides.task
    if config.resume is not None:
        folder, config = RunFolder.to_resume(config.resume, "transfer", overrides)
    elif not any(override.startswith("env=") for override in overrides):
        raise InputError("dst is not given", "name the data set to choose for: dst=<env>")
    settings = read_settings(config, TransferSettings)
    config.store.path = str(Path(settings.store.path).absolute())
    bench = prepare(settings)
    sources = find_sources(settings.src, settings, bench, trust_zip=settings.trust_zip)
    experiences = [experience for source in sources for experience in source.experiences]
    if {len(each.group_features) for each in experiences} != {len(bench.search.groups)}:
        # No masks, or masks of another length: there is nothing to copy.
        settings = dataclasses.replace(settings, rivals=[name for name in settings.rivals if name != "copy_mask"])
    for name in settings.rivals:
        find_searcher(name, experiences)
    with closing(EvaluationStore(":memory:" if bench.table else settings.store.path)) as store:
        if folder is None:
            task = f"{bench.search.env}-{bench.search.method}-{bench.search.id[:8]}"
            folder = RunFolder.create(settings.run_dir, "transfer", task, config, overrides)
        with folder, interruption_explained(folder.path):
            print(f"run {folder.path}", *bench.memory, sep="\n", flush=True)
            summary = transfer(settings, bench, sources, store, folder)
    outcome = summary["transfer"]
    copied = f"copied mask {_or_none(outcome['copy_mask_utility'])}, " if "copy_mask" in outcome["curves"] else ""
    print(
        f"zero-shot utility {_or_none(outcome['zero_shot_utility'])}, {copied}after {settings.budget.evaluations} "
        f"evaluations {outcome['curves']['transfer'][-1][1]:.2f}\n{finished(summary, folder.path)}"
    )


def transfer(
    settings: TransferSettings, bench: Workbench, sources: Sequence[Source], store: EvaluationStore, folder: RunFolder
) -> dict[str, Any]:
    """Chooses before anything is measured, learns on, lets the rivals search, and writes the run folder.

    Returns:
        What ``result.json`` holds.
    """
    started = time.monotonic()
    agent = settings.agent
    assert isinstance(agent, DynaPPOSettings)
    if bench.dataset is not None:
        folder.write_data_check(bench.dataset)
    experiences = tuple(experience for source in sources for experience in source.experiences)
    source = SourcePolicy(experiences, practice=agent.elsewhere, given=the_policy(sources))
    _log.info("learning from %s", ", ".join(f"{each.env} ({len(each.outcomes)} masks)" for each in experiences))
    source.network(settings.seed, folder.path / "tensorboard" / "practice")
    names = {"transfer", *settings.rivals}
    totals = {"search": settings.budget.evaluations + 2, "final table": 3}
    totals |= dict.fromkeys(settings.rivals, settings.budget.evaluations)
    with search_progress(totals) as show, closing(Session(settings, bench, store, folder, show)) as session:
        network = learn_by_searching(session, folder.path / "tensorboard", source)
        curves = {"transfer": session.curve()}
        for name in settings.rivals:
            curves[name] = session.rival(find_searcher(name, experiences), settings.seed)
        assert curves.keys() == names
        best = session.best()
        table = session.final_table(best.schedule)
        zero_shot = session.zero_shot_utility()
        limit = session.best_of_table()
    policy = ExportedPolicy(
        network,
        bench.group_feature_names,
        bench.task_feature_names,
        trained_on=(
            *({"task": each.task, "env": each.env} for each in experiences),
            {"task": bench.search.id, "env": bench.search.env},
        ),
    )
    save_policy(folder.path, policy)
    save_run_experience(folder.path, session)
    frozen = frozen_mask(settings.frozen, bench.search.groups)
    choice = policy.choose(bench.group_features, bench.task_features, settings.preference, frozen)
    seconds = time.monotonic() - started
    summary = summarize(settings, bench, session, table, choice, seconds, job="transfer")
    copied = curves.get("copy_mask", [])
    summary["transfer"] = {
        "sources": [each.name for each in sources],
        "zero_shot_utility": zero_shot,
        "zero_shot_share_of_best": None if limit is None or zero_shot is None else zero_shot / limit,
        "copy_mask_utility": copied[0][1] if copied and copied[0][0] == 1 else None,
        "curves": {name: [list(point) for point in curve] for name, curve in curves.items()},
    }
    if settings.report.images:
        show_images(folder.path, bench, best.schedule)
    write_report(folder.path, summary, session)
    folder.write_json("result.json", summary)
    return summary


def _translated(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and key == "dst":
        return f"env={value}"
    if equals and key == "src" and not value.startswith("["):
        quoted = [f"'{item.strip()}'" for item in value.split(",") if item.strip()]
        return f"src=[{','.join(quoted)}]"
    return argument


def _or_none(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
