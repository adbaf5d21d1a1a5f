"""What ``src=`` of a transfer names: finished runs, or data sets of which tables or runs are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.experience_file import load_experience
from agents.export import ExportedPolicy, load_archive, load_policy
from agents.lookup import known_tables, read_table
from agents.policy import SelectionNetwork
from agents.search.base import Experience
from agents.search.experience import experience_of
from agents.settings import TrainSettings
from agents.workbench import Workbench
from rewards.errors import InputError


@dataclass(frozen=True)
class Source:
    """One item of ``src=``.

    Attributes:
        name: As it is written into ``result.json``.
        experiences: Everything that was measured there.
        policy: Of a run; None for tables, from which one is learned.
    """

    name: str
    experiences: tuple[Experience, ...]
    policy: ExportedPolicy | None = None


def find_sources(
    names: Sequence[str], settings: TrainSettings, bench: Workbench, *, trust_zip: bool = False
) -> list[Source]:
    """Everything that the transfer may learn from.

    A folder is a finished train or transfer run. Any other name is a data set's: all tables of it with the target's
    backbone are taken, those of the target's group scheme alone if there are any; without a table, the newest finished
    run on it under ``run_dir``. A file ``*.zip`` is a policy that stable-baselines3 saved, without any measurements.

    Args:
        names: Items of ``src=``.
        settings: Of the transfer, whose ``env`` is the target.
        bench: The target.
        trust_zip: Whether code from a zip may run.

    Raises:
        InputError: If there is none, a source is the target, or it has other features than the target.
    """
    if not names:
        raise InputError("src is not given", "name a run folder or a data set: src=<run or env>[,<another>]")
    archives = [name for name in names if name.endswith(".zip")]
    if archives and len(names) > 1:
        raise InputError(f"src={','.join(names)}: a zip holds no measurements to learn from", "name it alone")
    sources = [_archive(name, bench, trust_zip) if archives else _source(name, settings, bench) for name in names]
    for source in sources:
        for experience in source.experiences:
            _check(source, experience, bench)
    counts = sorted({len(each.group_features) for source in sources for each in source.experiences})
    if len(counts) > 1:
        raise InputError(f"sources have {' and '.join(map(str, counts))} groups", "name those of one group scheme")
    return sources


def the_policy(sources: Sequence[Source]) -> SelectionNetwork | None:
    """The one run's own policy; None if one has to be learned from several sources, or from tables."""
    policies = [source.policy for source in sources if source.policy is not None]
    return policies[0].network if len(sources) == len(policies) == 1 else None


def _source(name: str, settings: TrainSettings, bench: Workbench) -> Source:
    if Path(name).is_dir():
        return _run(Path(name))
    if name == settings.env.name:
        raise InputError(f"src={name} is the target", "name another data set, or a run on another one")
    tables = [read_table(path) for path in known_tables(settings.run_dir)]
    fitting = [each for each in tables if (each.task.env, each.task.backbone) == (name, bench.search.backbone)]
    same = [each for each in fitting if each.task.scheme == bench.search.scheme]
    if fitting:
        return Source(name, tuple(experience_of(table, bench.objective) for table in same or fitting))
    runs = [path.parent for path in Path(settings.run_dir).glob(f"train/{name}-*/*/result.json")]
    if runs:
        return _run(max(runs, key=lambda path: path.name))
    raise InputError(
        f"src={name} is no folder of a run, and no data set with tables or finished runs under {settings.run_dir}",
        f"train on it first: python -m agents.train env={name}",
    )


def _archive(name: str, bench: Workbench, trusted: bool) -> Source:
    network = load_archive(name, trusted=trusted)
    layout = network.layout
    given = layout.group_features, layout.task_features
    wanted = len(bench.group_feature_names), len(bench.task_feature_names)
    if given != wanted:
        raise InputError(
            f"src={name} was made for {given[0]} group and {given[1]} task features, this version has {wanted}",
            "train it again with this version",
        )
    return Source(name, (), ExportedPolicy(network, bench.group_feature_names, bench.task_feature_names))


def _run(folder: Path) -> Source:
    if not (folder / "result.json").is_file():
        raise InputError(f"src={folder} is no finished run", "name a folder with result.json, or resume it")
    return Source(str(folder), (load_experience(folder),), load_policy(folder))


def _check(source: Source, experience: Experience, bench: Workbench) -> None:
    if experience.task == bench.search.id:
        raise InputError(f"src={source.name} is the target: the same task {experience.task}", "name another source")
    policy = source.policy
    for what, wanted, given in (
        ("group features", bench.group_feature_names, experience.group_feature_names),
        ("task features", bench.task_feature_names, experience.task_feature_names),
        ("group features", bench.group_feature_names, policy.group_features if policy else bench.group_feature_names),
        ("task features", bench.task_feature_names, policy.task_features if policy else bench.task_feature_names),
    ):
        if wanted != given:
            other = sorted(set(wanted) ^ set(given)) or ["another order"]
            raise InputError(
                f"src={source.name} was made for other {what}: {', '.join(other)}", "train it again with this version"
            )
