"""``python -m agents.transfer`` between tables of invented numbers."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.experience_file import load_experience
from agents.export import load_policy
from agents.heat_map import heat_map
from agents.search.experience import experience_of
from agents.surrogate.set_ensemble import SetEnsembleSettings
from envs.evaluators.table import EvaluationTable
from envs.task import Schedule
from rewards.objective import Axes, Objective, hypervolume
from tests.agents import tables
from tests.agents.command import Command, Double, Outcome, answers, read_json, without_times
from tests.agents.tables import invented_table

ENVS = ("phantom", "chest_xray", "isic")
BUDGET = 6
PRACTICE = ("environments=8", "episodes=2", "updates=2", "epochs=2", "width=16", "cloning=60")
TABULAR = ("evaluator=tabular", "inner.steps=37")
QUICK = (
    *TABULAR,
    f"budget.evaluations={BUDGET}",
    "agent.round_updates=1",
    "agent.draws=16",
    *(f"agent.{part}.{setting}" for part in ("practice", "elsewhere") for setting in PRACTICE),
)


def alone_and_quick() -> None:
    """The prior's model in a tenth of a second instead of ten, and no tables that ship."""
    import agents.lookup
    import agents.transfer

    lookup: Any = agents.lookup
    lookup.SHIPPED = Path("nowhere")
    command: Any = agents.transfer
    command.SourcePolicy = functools.partial(
        command.SourcePolicy, ensemble=SetEnsembleSettings(members=1, width=8, steps=20)
    )


def killed_after_answers(count: int) -> None:
    """A small prior, and ``kill -9`` after an answer."""
    from agents.run_folder import RunFolder

    alone_and_quick()
    record, calls = RunFolder.record, 0

    def last(self: RunFolder, served: Any) -> None:
        nonlocal calls
        record(self, served)
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.record = last  # type: ignore[method-assign]


def table_of(env: str) -> EvaluationTable:
    return invented_table("inner.steps=37", f"env={env}", seed=ENVS.index(env))


def with_tables(folder: Path, envs: Sequence[str] = ENVS) -> Path:
    for env in envs:
        table_of(env).write(folder / "runs" / "tables" / f"{env}.parquet")
    return folder


def transfer(*arguments: str, folder: Path, double: Double = alone_and_quick) -> Outcome:
    return Command(arguments, folder, double, name="transfer").wait()


def run_folders(folder: Path) -> list[Path]:
    return sorted((folder / "runs" / "transfer").glob("*/*"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tables(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def outcome(workplace: Path) -> Outcome:
    return transfer("src=phantom,chest_xray", "dst=isic", *QUICK, folder=workplace)


@pytest.fixture(scope="module")
def run(workplace: Path, outcome: Outcome) -> Path:
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(workplace)
    return folder


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = read_json(run / "result.json")
    return loaded


@pytest.fixture(scope="module")
def utilities() -> dict[str, float]:
    """Of every mask of the target, by its key."""
    found = dict(axes_of_target())
    objective = anchored()
    return {key: objective.utility(axes, 0.5) for key, axes in found.items()}


def anchored() -> Any:
    evaluations = table_of("isic").evaluations[0]
    base, full = (evaluations[Schedule.constant([on] * tables.TOGGLES)] for on in (False, True))
    return Objective().anchor(base.metrics, full.metrics)


def axes_of_target() -> dict[str, Axes]:
    objective = anchored()
    return {s.key: objective.axes(e.metrics) for s, e in table_of("isic").evaluations[0].items()}


def of_search(run: Path) -> list[str]:
    """What the transfer itself asked for, each once, in order."""
    keys = [line["schedule"] for line in answers(run)][2:]
    return list(dict.fromkeys(keys))[:BUDGET]


def test_the_result_is_that_of_a_run(result: dict[str, Any], utilities: dict[str, float], run: Path) -> None:
    assert (result["schema"], result["job"], result["status"]) == (1, "transfer", "done")
    assert result["task"]["env"] == "isic"
    assert result["selected"]["schedule"] == max(of_search(run), key=lambda key: utilities[key])
    assert result["selected"]["search"]["axes"]["utility"] == pytest.approx(
        max(utilities[key] for key in of_search(run))
    )


def test_zero_shot_is_the_first_answer(result: dict[str, Any], utilities: dict[str, float], run: Path) -> None:
    about = result["transfer"]
    assert about["sources"] == ["phantom", "chest_xray"]
    assert about["zero_shot_utility"] == pytest.approx(utilities[answers(run)[2]["schedule"]])
    share = about["zero_shot_share_of_best"]
    assert share == pytest.approx(about["zero_shot_utility"] / max(utilities.values()))
    assert 0 < share <= 1


def test_the_copied_mask_is_the_best_of_the_first_source(result: dict[str, Any], utilities: dict[str, float]) -> None:
    best = experience_of(table_of("phantom"), Objective()).best(0.5)
    assert result["transfer"]["copy_mask_utility"] == pytest.approx(utilities[Schedule.constant(best).key])


def test_every_search_has_a_curve(result: dict[str, Any], utilities: dict[str, float], run: Path) -> None:
    curves = result["transfer"]["curves"]
    assert set(curves) == {"transfer", "dyna_ppo", "copy_mask", "tpe", "random"}
    possible = list(utilities.values())
    for name, curve in curves.items():
        numbers, best = zip(*curve, strict=True)
        assert list(numbers) == list(range(1, len(numbers) + 1)), name
        assert len(numbers) == {"copy_mask": 2}.get(name, BUDGET)
        assert list(best) == sorted(best)
        assert all(any(u == pytest.approx(p) for p in possible) for u in best)
    found = np.maximum.accumulate([utilities[key] for key in of_search(run)])
    assert [best for _, best in curves["transfer"]] == pytest.approx(found.tolist())


def test_it_says_how_well_it_went(outcome: Outcome, result: dict[str, Any], run: Path, workplace: Path) -> None:
    about = result["transfer"]
    assert (
        f"zero-shot utility {about['zero_shot_utility']:.2f}, copied mask {about['copy_mask_utility']:.2f}, after "
        f"{BUDGET} evaluations {about['curves']['transfer'][-1][1]:.2f}\n"
    ) in outcome.out
    assert f"report {run.relative_to(workplace) / 'report.html'}" in outcome.out
    assert outcome.err == ""


def test_the_folder_is_that_of_a_run(run: Path, result: dict[str, Any]) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "result.json",
        "policy.safetensors",
        "policy.json",
        "experience.json",
        "tensorboard",
        "report.html",
    } <= names
    policy, experience = load_policy(run), load_experience(run)
    assert [each["env"] for each in policy.trained_on] == list(ENVS)
    assert (experience.env, experience.task) == ("isic", result["task"]["id"])
    axes = axes_of_target()
    asked = {"0" * 6, "1" * 6, *of_search(run)}
    assert {Schedule.constant(mask).key for mask in experience.outcomes} == asked
    assert all(found == pytest.approx(axes[Schedule.constant(m).key]) for m, found in experience.outcomes.items())
    choice = policy.choose(experience.group_features, experience.task_features, 0.5)
    assert list(choice) == [bool(bit) for bit in result["policy"]["mask"]]


def test_the_curves_are_those_that_are_promised(run: Path, result: dict[str, Any], utilities: dict[str, float]) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    groups = result["task"]["groups"]
    promised = {
        *(f"policy/{where}/{group}" for where in ("probability", "at 0.1", "at 0.9", "final") for group in groups),
        *(f"policy/{name}" for name in ("entropy_bits", "value", "expected_quality", "expected_privacy")),
        *(f"search/{name}" for name in ("best_utility", "hypervolume", "regret")),
        *(f"evaluations/{name}" for name in ("distinct", "cached", "failed")),
        *(f"train/{name}" for name in ("loss", "value_loss", "entropy_loss", "approx_kl", "explained_variance")),
    }
    assert promised <= set(curves)
    assert all(np.isfinite(value) for tag in promised for _, value in curves[tag])
    asked, axes = of_search(run), axes_of_target()
    # After the zero-shot choice, and after each of the others.
    answered = range(1, BUDGET + 1)
    rounds = [len({"0" * 6, "1" * 6, *asked[:count]}) for count in answered]
    for tag in ("search/best_utility", "search/hypervolume", "search/regret", f"policy/probability/{groups[0]}"):
        assert [step for step, _ in curves[tag]] == rounds, tag
    for i, (step, count) in enumerate(zip(rounds, answered, strict=True)):
        seen = asked[:count]
        best = max(utilities[key] for key in seen)
        assert curves["search/best_utility"][i][1] == pytest.approx(best)
        assert curves["search/regret"][i][1] == pytest.approx(max(utilities.values()) - best, abs=1e-6)
        assert curves["search/hypervolume"][i][1] == pytest.approx(hypervolume(axes[key] for key in seen))
        assert curves["evaluations/distinct"][i][1] == step
    policy, features = load_policy(run), load_experience(run)
    shown = [value for group in groups for _, value in curves[f"policy/final/{group}"]]
    p = policy.probabilities(features.group_features, features.task_features, 0.5)
    assert shown == pytest.approx(p.tolist(), abs=1e-6)
    first = np.asarray([curves[f"policy/probability/{group}"][0][1] for group in groups])
    entropy = -(first * np.log2(first) + (1 - first) * np.log2(1 - first)).sum()
    assert curves["policy/entropy_bits"][0][1] == pytest.approx(entropy, abs=1e-3)
    images = events.Images("policy/over time")
    cell = heat_map(np.zeros((1, 1), dtype=np.float32)).shape[0]
    assert [(image.height, image.width) for image in images] == [(6 * cell, n * cell) for n in answered]


def test_a_heat_map_has_a_row_a_group_and_a_column_a_round() -> None:
    image = heat_map(np.asarray([[0.0, 1.0], [0.5, 0.0], [1.0, 1.0]], dtype=np.float32))
    assert image.dtype == np.uint8
    assert image.shape[0] / 3 == image.shape[1] / 2
    cell = image.shape[0] // 3
    cells = image.reshape(3, cell, 2, cell, 3)
    assert (cells == cells[:, :1, :, :1]).all(), "cells are of one colour"
    light = cells[:, 0, :, 0].sum(axis=-1).astype(int)
    assert light[0, 0] == light[1, 1] < light[1, 0] < light[0, 1] == light[2, 0] == light[2, 1]


def test_the_same_call_gives_the_same_numbers(run: Path, result: dict[str, Any], tmp_path: Path) -> None:
    """Also with dst= written as env=, and with src= as a list."""
    with_tables(tmp_path)
    outcome = transfer("src=[phantom, chest_xray]", "env=isic", *QUICK, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    (again,) = run_folders(tmp_path)
    assert without_times(read_json(again / "result.json")) == without_times(result)
    assert (again / "policy.safetensors").read_bytes() == (run / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("count", [2 + 4, 2 + BUDGET + 7])
def test_a_killed_transfer_is_resumed_to_the_same_result(
    result: dict[str, Any], run: Path, tmp_path: Path, count: int
) -> None:
    """In the search, and while a rival searches."""
    with_tables(tmp_path)
    double = functools.partial(killed_after_answers, count)
    assert (
        transfer("src=phantom,chest_xray", "dst=isic", *QUICK, folder=tmp_path, double=double).code == -signal.SIGKILL
    )
    (killed,) = run_folders(tmp_path)
    assert not (killed / "result.json").exists()
    outcome = transfer(f"resume={killed}", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert run_folders(tmp_path) == [killed]
    assert without_times(read_json(killed / "result.json")) == without_times(result)
    assert (killed / "policy.safetensors").read_bytes() == (run / "policy.safetensors").read_bytes()


def test_from_a_run_whose_policy_chooses_first(run: Path, tmp_path: Path) -> None:
    """The policy of the run above, taken on to a task that it has not seen; no rivals."""
    invented_table("inner.steps=37", "env=imagenette", seed=9).write(tmp_path / "runs" / "tables" / "a.parquet")
    outcome = transfer(f"src={run}", "dst=imagenette", "rivals=[]", *QUICK, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(tmp_path)
    table = invented_table("inner.steps=37", "env=imagenette", seed=9)
    choice = load_policy(run).choose(table.group_features, table.task_features, 0.5)
    assert answers(folder)[2]["schedule"] == Schedule.constant(choice).key
    about = read_json(folder / "result.json")["transfer"]
    assert about["sources"] == [str(run)]
    assert set(about["curves"]) == {"transfer"}
    assert about["copy_mask_utility"] is None


def test_from_another_number_of_groups_there_is_no_mask_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tables(tmp_path, ["isic"])
    monkeypatch.setattr(tables, "TOGGLES", 4)
    with_tables(tmp_path, ["phantom"])
    outcome = transfer("src=phantom", "dst=isic", "rivals=[copy_mask,random]", *QUICK, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(tmp_path)
    about = read_json(folder / "result.json")["transfer"]
    assert set(about["curves"]) == {"transfer", "random"}
    assert about["copy_mask_utility"] is None
    assert about["zero_shot_utility"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("src=phantom",), "error: dst is not given — name the data set to choose for: dst=<env>"),
        (("dst=isic",), "error: src is not given — name a run folder or a data set: src=<run or env>[,<another>]"),
        (("src=", "dst=isic"), "error: src is not given"),
        (("src=phantom,isic", "dst=isic"), "error: src=isic is the target — "),
        (("src=nothing", "dst=isic"), "error: src=nothing is no folder of a run, and no data set with tables"),
        (("src=phantom", "dst=isic", "agent=ppo"), "error: agent=ppo — set agent=dyna_ppo"),
        (("src=phantom", "dst=isic", "rivals=[tps]"), "error: searcher=tps is unknown — "),
        (("src=phantom", "dst=nowhere"), "error: "),
        (("src=phantom", "resume=x"), "error: resume= together with "),
    ],
    ids=range(9),
)
def test_bad_input_is_one_line_and_leaves_no_folder(workplace: Path, arguments: Sequence[str], said: str) -> None:
    before = run_folders(workplace)
    outcome = transfer(*arguments, *(() if "resume=x" in arguments else TABULAR), folder=workplace)
    assert outcome.code == 2
    assert outcome.err.startswith(said)
    assert outcome.err.count("\n") == 1
    assert run_folders(workplace) == before
