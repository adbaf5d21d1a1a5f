"""Runs on the synthetic evaluator, each for one thing that they do differently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.experience_file import load_experience
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.features import GROUP_FEATURES
from envs.task import Schedule
from rewards.objective import Objective
from tests.agents.command import (
    SMALL,
    answers,
    failing,
    read_json,
    run_folders,
    train,
    trained,
    useless_final_table,
)


def test_a_search_in_which_everything_fails_ends_in_one_line(tmp_path: Path) -> None:
    keys = [f"{number:08b}" for number in range(1, 255)]
    outcome = train(*SMALL, folder=tmp_path, double=failing(keys, "diverged: loss is nan"))
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "all 12 evaluations failed" in outcome.err


def test_an_anchor_that_fails_ends_the_run_in_one_line(tmp_path: Path) -> None:
    outcome = train(*SMALL, folder=tmp_path, double=failing(["11111111"], "out of memory"))
    assert outcome.code == 2
    assert outcome.err.startswith("error: mask 11111111 failed: out of memory — ")
    assert outcome.err.count("\n") == 1


def test_without_axes_on_the_test_split_there_are_nulls_and_a_reason(tmp_path: Path) -> None:
    run = trained(*SMALL, folder=tmp_path, double=useless_final_table)
    result = read_json(run / "result.json")
    assert result["axes"] == {"quality": None, "privacy": None, "utility": None}
    assert "no better than the base model" in result["axes_note"]
    assert result["selected"]["search"]["axes"]["utility"] > 0
    assert "No axes on the test split" in (run / "report.html").read_text()


def test_the_preference_moves_the_choice(tmp_path: Path) -> None:
    shares = []
    for preference in (0.1, 0.9):
        (tmp_path / str(preference)).mkdir()
        run = trained(*SMALL, f"preference={preference}", folder=tmp_path / str(preference))
        shares.append(read_json(run / "result.json")["axes"])
    assert shares[0]["quality"] > shares[1]["quality"]
    assert shares[0]["privacy"] < shares[1]["privacy"]


def test_schedules_of_several_phases(tmp_path: Path) -> None:
    run = trained(*SMALL, "horizon=2", folder=tmp_path)
    selected = read_json(run / "result.json")["selected"]
    first, second = selected["schedule"].split("/")
    assert len(first) == 8
    assert "".join(map(str, selected["mask"])) == second
    assert len({line["schedule"] for line in answers(run)[2:-3]}) == 12


DYNA = (
    "evaluator=synthetic",
    "budget.evaluations=8",
    "agent.round_updates=1",
    "agent.draws=16",
    *(f"agent.practice.{key}" for key in ("environments=8", "episodes=2", "updates=2", "width=16", "cloning=20")),
)
"""The default agent in a second."""


@pytest.mark.parametrize("agent", [SMALL, DYNA], ids=["ppo", "dyna_ppo"])
def test_frozen_groups_stay_off(tmp_path: Path, agent: Sequence[str]) -> None:
    """In everything that is measured, chosen or shown; the anchors alone have every group."""
    run = trained(*agent, "frozen=['down 0','mid 2']", folder=tmp_path)
    result = read_json(run / "result.json")
    groups = result["task"]["groups"]
    frozen = [groups.index(name) for name in ("down 0", "mid 2")]
    asked = [line["schedule"] for line in answers(run)][2:-3]
    assert len(set(asked)) == (12 if agent == SMALL else 8)
    masks = [*asked, result["selected"]["schedule"], "".join(map(str, result["policy"]["mask"]))]
    assert {mask[i] for mask in masks for i in frozen} == {"0"}
    assert {mask[i] for mask in masks for i in set(range(8)) - set(frozen)} == {"0", "1"}
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for index, group in enumerate(groups):
        shown = [event.value for event in events.Scalars(f"policy/probability/{group}")]
        assert all(p == 0 for p in shown) if index in frozen else all(0 < p < 1 for p in shown)
    entropy = events.Scalars("policy/entropy_bits")[0].value
    first = [events.Scalars(f"policy/probability/{group}")[0].value for group in groups]
    expected = -sum(p * np.log2(p) + (1 - p) * np.log2(1 - p) for p in first if p)
    assert entropy == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("agent", [SMALL, DYNA], ids=["ppo", "dyna_ppo"])
def test_what_was_measured_is_kept_for_other_policies(tmp_path: Path, agent: Sequence[str]) -> None:
    key = "11100000"
    run = trained(*agent, folder=tmp_path, double=failing([key], "diverged: loss is nan"))
    result = read_json(run / "result.json")
    experience = load_experience(run)
    assert (experience.env, experience.task) == ("synthetic", result["task"]["id"])
    assert experience.group_feature_names == GROUP_FEATURES
    assert experience.group_features.shape == (8, len(GROUP_FEATURES))
    evaluator = SyntheticEvaluator(result["task"]["groups"], seed=0)
    base, full = (evaluator.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
    objective = Objective().anchor(base.metrics, full.metrics)
    asked = {line["schedule"] for line in answers(run)[2:-3]} - {key}
    schedules = [Schedule.from_key(key) for key in ("00000000", "11111111", *asked)]
    assert experience.outcomes == {
        schedule.phases[0]: pytest.approx(objective.axes(evaluator.evaluate(schedule).metrics))
        for schedule in schedules
    }


def test_several_runs_in_one_command_leave_nothing_elsewhere(tmp_path: Path) -> None:
    outcome = train("-m", *SMALL, "seed=0,1", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert [read_json(run / "result.json")["status"] for run in run_folders(tmp_path)] == ["done"] * 2
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"runs"}


def test_help_and_configuration_are_shown_and_nothing_is_written(tmp_path: Path) -> None:
    help_text = train("--help", folder=tmp_path).out
    for group in (
        "env: chest_xray, ",
        "method: ",
        "evaluator: ",
        "reward: ",
        "groups: block_kinds, blocks",
        "backbone: ",
    ):
        assert group in help_text
    shown = OmegaConf.create(train("--cfg", "job", "seed=7", "env=isic", folder=tmp_path).out)
    assert shown.seed == 7
    assert shown.env.name == "isic"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_module_is_a_command(tmp_path: Path) -> None:
    """The same through the shell's door, without the preloaded process of the other tests."""
    done = subprocess.run(
        [sys.executable, "-m", "agents.train", *SMALL, f"run_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = (tmp_path / "train").glob("*/*")
    assert f"run {run}" in done.stdout
    assert json.loads((run / "result.json").read_text())["status"] == "done"
