"""What src= names is found, and refused in one line if it cannot be learned from."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from agents import lookup
from agents.experience_file import save_experience
from agents.export import ExportedPolicy, save_policy
from agents.policy import SelectionNetwork, TokenLayout
from agents.search.base import Experience
from agents.search.experience import experience_of
from agents.sources import Source, find_sources, the_policy
from agents.workbench import Workbench, prepare
from envs.evaluators.table import EvaluationTable
from envs.features import GROUP_FEATURES, TASK_FEATURES
from rewards.errors import InputError
from rewards.objective import Objective
from tests.agents import tables
from tests.agents.tables import invented_table, settings_of


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run_dir with tables of the target (isic) and of two other data sets; none ship."""
    monkeypatch.setattr(lookup, "SHIPPED", tmp_path / "nowhere")
    for number, env in enumerate(("isic", "phantom", "chest_xray")):
        kept(tmp_path, f"{number}", table_of(f"env={env}", seed=number))
    return tmp_path


def table_of(*overrides: str, seed: int = 0) -> EvaluationTable:
    return invented_table("inner.steps=37", *overrides, seed=seed)


def kept(runs: Path, name: str, table: EvaluationTable) -> None:
    table.write(runs / "tables" / f"{name}.parquet")


def found(runs: Path, *names: str) -> list[Source]:
    settings = settings_of("env=isic", "evaluator=tabular", "inner.steps=37", f"run_dir={runs}")
    return find_sources(names, settings, prepare(settings))


def refused(runs: Path, *names: str) -> InputError:
    with pytest.raises(InputError) as error:
        found(runs, *names)
    assert "\n" not in str(error.value)
    return error.value


def experience(env: str = "phantom", seed: int = 1) -> Experience:
    return experience_of(table_of(f"env={env}", "method=svdiff", seed=seed), Objective())


def run_of(folder: Path, experience: Experience, width: int = 8, policy: ExportedPolicy | None = None) -> Path:
    """The folder of a finished run, as far as sources look at it."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    save_experience(folder, experience)
    network = SelectionNetwork(TokenLayout(len(GROUP_FEATURES), len(TASK_FEATURES), width))
    save_policy(folder, policy or ExportedPolicy(network, GROUP_FEATURES, TASK_FEATURES))
    return folder


def test_a_data_set_is_its_tables(runs: Path) -> None:
    kept(runs, "another method", table_of("env=phantom", "method=svdiff", seed=5))
    kept(runs, "another backbone", table_of("env=phantom", "backbone.name=other", seed=6))
    phantom, chest = found(runs, "phantom", "chest_xray")
    assert (phantom.name, chest.name) == ("phantom", "chest_xray")
    assert [each.env for each in (*phantom.experiences, *chest.experiences)] == ["phantom", "phantom", "chest_xray"]
    expected = experience_of(table_of("env=phantom", seed=1), Objective())
    assert phantom.experiences[0].outcomes == expected.outcomes
    assert len(phantom.experiences[0].outcomes) == 64
    assert the_policy([phantom]) is the_policy([phantom, chest]) is None, "one has to be learned"


def test_tables_of_the_targets_group_scheme_come_alone_if_there_are_any(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tables, "TOGGLES", 4)
        kept(runs, "others", table_of("env=phantom", "groups=memcontrol13"))
        kept(runs, "others alone", table_of("env=phantom", "groups=memcontrol13", "method=svdiff"))
    (source,) = found(runs, "phantom")
    assert [len(each.group_features) for each in source.experiences] == [6]
    (runs / "tables" / "1.parquet").unlink()
    (source,) = found(runs, "phantom")
    assert [len(each.group_features) for each in source.experiences] == [4, 4]


def test_sources_of_several_group_counts_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "tables" / "1.parquet").unlink()
    monkeypatch.setattr(tables, "TOGGLES", 4)
    kept(runs, "others", table_of("env=phantom", "groups=memcontrol13"))
    assert refused(runs, "phantom", "chest_xray").what == "sources have 4 and 6 groups"
    assert len(found(runs, "phantom")) == 1


def test_a_folder_is_a_run_with_its_policy(runs: Path, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "somewhere", experience())
    (source,) = found(runs, str(folder))
    assert source.name == str(folder)
    assert [each.task for each in source.experiences] == [experience().task]
    assert source.policy is not None
    weights = source.policy.network.state_dict()
    network = the_policy([source])
    assert network is not None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    (chest,) = found(runs, "chest_xray")
    assert the_policy([source, chest]) is None


def test_without_tables_a_data_set_is_the_newest_finished_run_on_it(runs: Path) -> None:
    (runs / "tables" / "1.parquet").unlink()
    train = runs / "train"
    run_of(train / "phantom-full-0a" / "20260102T000000Z-aa", experience(seed=3))
    newest = run_of(train / "phantom-svdiff-0b" / "20260301T000000Z-bb", experience(seed=4))
    unfinished = run_of(train / "phantom-full-0a" / "20260401T000000Z-cc", experience(seed=5))
    (unfinished / "result.json").unlink()
    run_of(train / "isic-full-0a" / "20260501T000000Z-dd", experience("isic"))
    (source,) = found(runs, "phantom")
    assert source.name == str(newest)


def test_an_unfinished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", experience())
    (folder / "result.json").unlink()
    assert refused(runs, str(folder)).what == f"src={folder} is no finished run"


def test_nothing_is_refused_with_what_to_do(runs: Path) -> None:
    error = refused(runs, "fundus")
    assert error.what.startswith("src=fundus is no folder of a run, and no data set with tables or finished runs under")
    assert error.remedy == "train on it first: python -m agents.train env=fundus"
    assert refused(runs).what == "src is not given"


def test_the_target_is_no_source(runs: Path, tmp_path: Path) -> None:
    assert refused(runs, "phantom", "isic").what == "src=isic is the target"
    same = experience_of(table_of("env=isic"), Objective())
    folder = run_of(tmp_path / "run", same)
    assert refused(runs, str(folder)).what == f"src={folder} is the target: the same task {same.task}"
    run_of(tmp_path / "other", experience("isic"))
    assert len(found(runs, str(tmp_path / "other"))) == 1, "another task on the same data set is one"


def test_other_features_are_named(runs: Path, tmp_path: Path) -> None:
    names = (*GROUP_FEATURES[:-1], "luck")
    error = refused(runs, str(run_of(tmp_path / "a", dataclasses.replace(experience(), group_feature_names=names))))
    assert error.what.endswith(f"was made for other group features: {', '.join(sorted((GROUP_FEATURES[-1], 'luck')))}")
    turned = TASK_FEATURES[::-1]
    error = refused(runs, str(run_of(tmp_path / "b", dataclasses.replace(experience(), task_feature_names=turned))))
    assert error.what.endswith("was made for other task features: another order")
    network = SelectionNetwork(TokenLayout(len(GROUP_FEATURES), len(TASK_FEATURES), 8))
    for name, policy in (
        ("c", ExportedPolicy(network, names, TASK_FEATURES)),
        ("d", ExportedPolicy(network, GROUP_FEATURES, turned)),
    ):
        error = refused(runs, str(run_of(tmp_path / name, experience(), policy=policy)))
        assert "was made for other" in error.what


class Bomb:
    """Unpickled, it says so."""

    exploded = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("from tests.agents.test_sources import Bomb; Bomb.exploded = True",)


@pytest.mark.parametrize("kind", ["pickle", "zip", "torch", "nothing"])
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "experience.json"])
def test_a_file_of_another_kind_is_refused_and_nothing_in_it_runs(
    runs: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = run_of(tmp_path / "run", experience())
    path = folder / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"weights": Bomb()}, path)
    elif kind == "zip":
        path.unlink()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Bomb()))
    else:
        path.write_bytes(b"")
    error = refused(runs, str(folder))
    assert str(folder) in error.what
    assert not Bomb.exploded


def test_a_policy_and_an_experience_that_do_not_belong_together(runs: Path, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", experience())
    card = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | {"width": 16}))
    assert "do not fit its policy.json" in refused(runs, str(folder)).what


def test_the_bench_of_these_tests_is_the_tables(runs: Path) -> None:
    """Else the tests above would look at something else."""
    settings = settings_of("env=isic", "evaluator=tabular", "inner.steps=37", f"run_dir={runs}")
    bench: Workbench = prepare(settings)
    assert bench.search.id == table_of("env=isic").task.id
