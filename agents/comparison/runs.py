"""Makes the runs of a comparison that are not known yet, several at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from agents.comparison.results import ResultFile
from agents.comparison.settings import CompareSettings
from agents.comparison.trace import Trace, follow
from agents.lookup import read_table
from agents.result import git_state, hardware, versions
from agents.search.base import Experience, Searcher
from agents.search.experience import anchored_at, experience_of, measured_axes
from agents.search.versions import version_of
from agents.source_policy import SourcePolicy
from agents.surrogate.belief import belief_of
from envs.evaluators.pool import cores
from envs.evaluators.table import EvaluationTable
from envs.seeding import derive_seed
from envs.task import Mask, content_hash
from rewards.errors import InputError
from rewards.objective import Axes, Objective

Show = Callable[[str, int], None]
"""Told which searcher is at work, and how many runs of it there are."""


FindSearcher = Callable[[str, Sequence[Experience]], Searcher]
"""`agents.search.find_searcher`."""


@dataclass(frozen=True)
class Target:
    """A table to search in, and those that may be learned from.

    Attributes:
        path: Of the table.
        sources: Of the tables of all other data sources.
    """

    path: Path
    sources: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Of the table."""
        return self.path.stem

    @property
    def table(self) -> EvaluationTable:
        """Read once a process."""
        return read_table(self.path)

    @property
    def env(self) -> str:
        """The data source."""
        return self.table.task.env


def targets_of(settings: CompareSettings, paths: Sequence[Path]) -> list[Target]:
    """Every table of the data source ``env=``, or of each, with what is left if that source is left out.

    Raises:
        InputError: If a table cannot be read or has no axes, or none is of that source.
    """
    envs = {path: read_table(path).task.env for path in paths}
    for path in paths:
        anchored_at(read_table(path), settings.objective)
    wanted = [path for path in paths if settings.source in (None, envs[path])]
    if not wanted:
        raise InputError(f"env={settings.source} has no table", f"choose among {', '.join(sorted(set(envs.values())))}")
    return [Target(path, tuple(other for other in paths if envs[other] != envs[path])) for path in wanted]


def result_files(
    settings: CompareSettings, names: Sequence[str], targets: Sequence[Target], find: FindSearcher
) -> dict[tuple[str, str], ResultFile]:
    """The files of all runs, by searcher and table, existing or not.

    Raises:
        InputError: By ``find``, for example for a searcher that has nothing to learn from.
    """
    return {
        (name, target.name): ResultFile(
            Path(settings.run_dir)
            / "compare"
            / f"{name}-{target.name}-{content_hash(identity(settings, name, target, find))[:16]}.jsonl"
        )
        for name in names
        for target in targets
    }


def identity(settings: CompareSettings, name: str, target: Target, find: FindSearcher) -> dict[str, Any]:
    """What decides the runs of a searcher on a table, besides their seed and preference."""
    searcher = _searcher(find, name, target.sources, settings.objective)
    return {
        "searcher": name,
        "settings": searcher_settings(searcher),
        "table": _fingerprint(target.path, settings.objective),
        "sources": [_fingerprint(path, settings.objective) for path in target.sources if _learns(searcher)],
        "budget": settings.budget_of(name),
        "code": version_of(name),
    }


def searcher_settings(searcher: Searcher) -> dict[str, str]:
    """The fields of a dataclass, but for what it learns from; of another class nothing, it has no settings."""
    return {name: repr(value) for name, value in _fields(searcher).items() if not _experiences(value)}


def _learns(searcher: Searcher) -> bool:
    """Whether it looks at other tasks: only then do their tables decide what it asks for."""
    values = _fields(searcher).values()
    return any(_experiences(value) or isinstance(value, SourcePolicy) for value in values)


def _fields(searcher: Searcher) -> dict[str, Any]:
    if not dataclasses.is_dataclass(searcher):
        return {}
    return {field.name: getattr(searcher, field.name) for field in dataclasses.fields(searcher) if field.init}


def _experiences(value: object) -> bool:
    return isinstance(value, Sequence) and any(isinstance(each, Experience) for each in value)


def compute(
    settings: CompareSettings,
    targets: Sequence[Target],
    files: Mapping[tuple[str, str], ResultFile],
    find: FindSearcher,
    show: Show,
) -> None:
    """Makes the runs that the files do not have.

    A piece of work is a searcher with a seed on all tables of a data source: what it learned from the others is then
    learned once. Each piece's runs are in the files when it is finished.

    Raises:
        InputError: If a worker dies; what was finished is kept.
    """
    pieces = list(_pieces(settings, targets, files))
    wanted = {(seed, preference) for seed in range(settings.seeds) for preference in settings.preferences}
    done = {name: 0 for name, _ in files}
    for (name, _), file in files.items():
        done[name] += len(wanted & file.traces.keys())
    for name, count in done.items():
        show(name, count)
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "git": git_state(),
        "hardware": hardware(),
        "versions": versions(),
    }
    workers = min(settings.workers or cores(), max(len(pieces), 1))
    jobs = [delayed(_run)(find, piece, settings.objective) for piece in pieces]
    by_name = {target.name: target for target in targets}
    try:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            for name, found in Parallel(workers, return_as="generator_unordered", batch_size=1)(jobs):
                for table, traces in found.items():
                    head = {
                        "searcher": name,
                        "table": table,
                        "identity": identity(settings, name, by_name[table], find),
                        **about,
                    }
                    files[name, table].append(head, traces)
                    done[name] += len(traces)
                show(name, done[name])
    except TerminatedWorkerError as error:
        raise InputError(
            "a worker was killed, perhaps for its memory", "lower workers= and call again: nothing finished is lost"
        ) from error


@dataclass(frozen=True)
class _Piece:
    """Runs of a searcher with one seed on tables of one data source.

    Attributes:
        name: Of the searcher.
        env: The data source.
        sources: Files of the tables to learn from.
        seed: Of the runs.
        budget: Distinct evaluations.
        runs: Files to search in, each with preferences.
    """

    name: str
    env: str
    sources: tuple[Path, ...]
    seed: int
    budget: int
    runs: tuple[tuple[Path, tuple[float | None, ...]], ...]


def _pieces(
    settings: CompareSettings, targets: Sequence[Target], files: Mapping[tuple[str, str], ResultFile]
) -> Iterator[_Piece]:
    for name in dict.fromkeys(name for name, _ in files):
        for env in dict.fromkeys(target.env for target in targets):
            of_env = [target for target in targets if target.env == env]
            for seed in range(settings.seeds):
                runs = []
                for target in of_env:
                    known = files[name, target.name].traces
                    missing = tuple(each for each in settings.preferences if (seed, each) not in known)
                    if missing:
                        runs.append((target.path, missing))
                if runs:
                    yield _Piece(name, env, of_env[0].sources, seed, settings.budget_of(name), tuple(runs))


def _run(find: FindSearcher, piece: _Piece, objective: Objective) -> tuple[str, dict[str, list[Trace]]]:
    """Runs of a piece by table, in a worker.

    A searcher's seed differs between data sources: what comes out of two of them is then independent, and the bootstrap
    may draw their seeds separately. Within one it is the same, so that what was learned from the others is shared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        searcher = _searcher(find, piece.name, piece.sources, objective)
        # Some random generators take 32 bits only.
        seed = derive_seed(piece.seed, "compare", piece.env) % 2**31
        return piece.name, {
            path.stem: [
                follow(
                    searcher,
                    read_table(path),
                    objective,
                    preference,
                    piece.budget,
                    seed=piece.seed,
                    searcher_seed=seed,
                    foretold=_foretold(path, objective),
                )
                for preference in preferences
            ]
            for path, preferences in piece.runs
        }
    finally:
        torch.set_num_threads(threads)


@cache
def _searcher(find: FindSearcher, name: str, sources: tuple[Path, ...], objective: Objective) -> Searcher:
    """Built once a process: what it keeps of the sources is learned once."""
    return find(name, [experience_of(read_table(path), objective) for path in sources])


@cache
def _foretold(path: Path, objective: Objective) -> Mapping[Mask, Axes]:
    """Once a process and table."""
    return belief_of(experience_of(read_table(path), objective)).foretold()


@cache
def _fingerprint(path: Path, objective: Objective) -> str:
    """Hash of everything in a table that a run can depend on."""
    table = read_table(path)
    axes = measured_axes(table, anchored_at(table, objective))
    return content_hash(
        {
            "task": table.task.id,
            "objective": dataclasses.asdict(objective),
            "axes": [["".join("01"[bit] for bit in mask), *at] for mask, at in axes.items()],
            "groups": [table.group_feature_names, table.group_features.tolist()],
            "whole": [table.task_feature_names, table.task_features.tolist()],
        }
    )
