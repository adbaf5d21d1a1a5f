from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.comparison.results import ResultFile
from agents.comparison.runs import compute, identity, result_files, searcher_settings, targets_of
from agents.comparison.settings import CompareSettings
from agents.comparison.trace import Trace
from agents.search.base import Experience, Searcher
from agents.settings import EnvSettings, RewardSettings
from rewards.errors import InputError
from tests.agents.comparison.invented import trace
from tests.agents.comparison.searchers import CopyMask, Random, find_searcher
from tests.agents.noisy import noisy_table

NAMES = ["random", "copy_mask"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tables")
    tables = {"isic-full": ["env=isic"], "isic-lora": ["env=isic", "method=lora"], "phantom-full": ["env=phantom"]}
    for seed, (name, overrides) in enumerate(tables.items()):
        noisy_table(*overrides, seed=seed).write(folder / f"{name}.parquet")
    return [folder / f"{name}.parquet" for name in tables]


def settings_in(folder: Path, *, env: str | None = None, seeds: int = 2, workers: int = 1) -> CompareSettings:
    return CompareSettings(
        docs=str(folder / "docs"),
        reward=RewardSettings([], [], ["kid"], ["membership"]),
        seeds=seeds,
        budget=4,
        preferences=[0.5, None],
        run_dir=str(folder / "runs"),
        env=None if env is None else EnvSettings(env, 64, 32, 64, 64),
        workers=workers,
    )


def runs(
    settings: CompareSettings, paths: Sequence[Path]
) -> dict[tuple[str, str], dict[tuple[int, float | None], Trace]]:
    targets = targets_of(settings, paths)
    files = result_files(settings, NAMES, targets, find_searcher)
    compute(settings, targets, files, find_searcher, lambda name, done: None)
    again = result_files(settings, NAMES, targets, find_searcher)
    return {key: file.traces for key, file in again.items()}


def without_times(trace: Trace) -> Trace:
    return dataclasses.replace(trace, searching=())


def test_no_table_of_the_target_s_source_is_learned_from(paths: list[Path], tmp_path: Path) -> None:
    targets = targets_of(settings_in(tmp_path), paths)
    assert {target.name: [path.stem for path in target.sources] for target in targets} == {
        "isic-full": ["phantom-full"],
        "isic-lora": ["phantom-full"],
        "phantom-full": ["isic-full", "isic-lora"],
    }
    seen: list[list[str]] = []

    def find(name: str, experiences: Sequence[Experience]) -> Searcher:
        seen.append([experience.env for experience in experiences])
        return Random()

    settings = settings_in(tmp_path)
    compute(settings, targets, result_files(settings, ["random"], targets, find), find, lambda name, done: None)
    assert seen == [["phantom"], ["isic", "isic"]], "once for each source that is left out"


def test_a_source_alone(paths: list[Path], tmp_path: Path) -> None:
    assert [target.name for target in targets_of(settings_in(tmp_path, env="phantom"), paths)] == ["phantom-full"]
    with pytest.raises(InputError, match="env=mimic has no table — choose among isic, phantom"):
        targets_of(settings_in(tmp_path, env="mimic"), paths)
    alone = settings_in(tmp_path)
    with pytest.raises(InputError, match="copy_mask has nothing to learn from"):
        result_files(alone, NAMES, targets_of(alone, paths[:1]), find_searcher)


def test_every_run_is_made_once_and_more_seeds_are_added(paths: list[Path], tmp_path: Path) -> None:
    first = runs(settings_in(tmp_path), paths)
    assert {key: len(traces) for key, traces in first.items()} == {
        (name, path.stem): 4 for name in NAMES for path in paths
    }
    # Within a source a seed means the same, between sources it does not.
    masks = {path.stem: first["random", path.stem][0, 0.5].masks for path in paths}
    assert masks["isic-full"] == masks["isic-lora"] != masks["phantom-full"]

    files = sorted((tmp_path / "runs" / "compare").iterdir())
    before = [file.read_bytes() for file in files]
    assert runs(settings_in(tmp_path), paths) == first
    more = runs(settings_in(tmp_path, seeds=3), paths)
    assert all(len(traces) == 6 for traces in more.values())
    assert sorted((tmp_path / "runs" / "compare").iterdir()) == files
    assert all(file.read_bytes().startswith(old) for file, old in zip(files, before, strict=True))


@pytest.mark.slow
def test_workers_find_the_same(paths: list[Path], tmp_path: Path) -> None:
    one, two = (runs(settings_in(tmp_path / str(n), workers=n), paths) for n in (1, 2))
    assert one.keys() == two.keys()
    for key, traces in one.items():
        assert {k: without_times(t) for k, t in traces.items()} == {k: without_times(t) for k, t in two[key].items()}


def test_what_decides_a_run(paths: list[Path], tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    full, lora, phantom = targets_of(settings, paths)
    known = identity(settings, "random", full, find_searcher)
    assert known == identity(settings_in(tmp_path / "elsewhere", seeds=9), "random", full, find_searcher)
    others = [
        identity(settings, "copy_mask", full, find_searcher),
        identity(settings, "random", lora, find_searcher),
        identity(dataclasses.replace(settings, budget=5), "random", full, find_searcher),
        identity(
            dataclasses.replace(settings, reward=RewardSettings([], [], ["kid"], ["membership"], rho=0.1)),
            "random",
            full,
            find_searcher,
        ),
    ]
    assert all(known != other for other in others)
    more = dataclasses.replace(full, sources=(phantom.path, lora.path))
    assert identity(settings, "random", more, find_searcher) == known, "it does not look at other tables"
    copied = (identity(settings, "copy_mask", target, find_searcher) for target in (full, more))
    assert next(copied) != next(copied)


def test_settings_are_fields_without_what_is_learned_from(paths: list[Path], tmp_path: Path) -> None:
    assert searcher_settings(Random()) == {}
    experience = CopyMask([], goes_on=True)
    assert searcher_settings(experience) == {"experiences": "[]", "goes_on": "True"}
    target = targets_of(settings_in(tmp_path), paths)[0]
    assert identity(settings_in(tmp_path), "copy_mask", target, find_searcher)["settings"] == {"goes_on": "False"}


def test_half_a_line_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    one, two = trace(0, 0.5, [0.1]), trace(1, None, [0.2, 0.3])
    ResultFile(path).append({"searcher": "x"}, [one, two])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    torn = ResultFile(path)
    assert torn.traces == {one.key: one}
    torn.append({"searcher": "never written"}, [two])
    assert path.read_bytes() == whole
    path.write_bytes(whole[:5])  # not even the first line
    assert ResultFile(path).head is None
    assert ResultFile(path).traces == {}


@pytest.mark.parametrize("content", ["no json\n", '{}\n{"seed": 0}\n', "[1]\n[2]\n"])
def test_a_file_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"runs\.jsonl cannot be read: .* — delete it; its runs are made again"):
        ResultFile(path)
