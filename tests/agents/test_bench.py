from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest

from agents.benchmarks import methods, mitigations
from agents.benchmarks.base import Goal, paired
from agents.settings import TrainSettings, read_settings
from agents.workbench import prepare
from envs.methods import METHODS
from envs.mitigations import MITIGATIONS
from tests.agents.command import Command, Double, Outcome, read_json, slow_store

CHEAP = ("+env.options.identities=60", "env.train=2", "env.heldout=2", "env.test=2")


def bench(*arguments: str, folder: Path, double: Double | None = None) -> Outcome:
    return Command([*CHEAP, *arguments], folder, double, name="bench").wait()


@pytest.mark.parametrize(
    ("value", "at_least", "met"), [(2.0, False, True), (2.1, False, False), (2.0, True, True), (1.9, True, False)]
)
def test_a_goal_is_kept_at_its_limit(value: float, at_least: bool, met: bool) -> None:
    assert Goal("ratio", 2.0, at_least).met({"ratio": value, "other": 100.0}) == met


def test_a_pair_is_timed_in_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, ""
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def taking(name: str, *durations: float) -> Callable[[], None]:
        left = iter(durations)

        def act() -> None:
            nonlocal now, calls
            now += next(left)
            calls += name

        return act

    # The machine slows down on the way: each ratio is of neighbours in time. The first of each is the warm-up.
    slow, fast, ratio = paired(taking("a", 100, 2, 4, 12), taking("b", 100, 1, 2, 4), runs=3)
    assert calls == "ab" * 4
    assert (slow, fast, ratio) == (4, 2, 2)


def test_figures_are_printed_beside_their_goals_and_kept(tmp_path: Path) -> None:
    outcome = bench("only=[store,environment]", "runs=1", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "runs" / "bench"
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", "store.json"]
    store: dict[str, Any] = read_json(folder / "store.json")
    assert set(store["figures"]) == {"hit_ms", "put_ms"}
    assert {"versions", "git", "hardware", "runs"} <= set(store)
    for figures in (store["figures"], read_json(folder / "environment.json")["figures"]):
        assert all(value > 0 for value in figures.values())
    (row,) = [line for line in outcome.out.splitlines() if "hit_ms" in line and "<= 5" in line]
    assert "met" in row
    assert not (tmp_path / "runs" / "train").exists()


def test_every_method_has_its_goals(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an untrained pipeline and a block of a few channels: that it measures, not what."""
    monkeypatch.setenv("MEMCONTROL_CACHE", str(tmp_path))
    small = {"in_channels": 32, "out_channels": 64, "temb_channels": 32, "cross_attention_dim": 16}
    monkeypatch.setattr(methods, "_BLOCK", {**methods._BLOCK, **small})
    arguments = ["evaluator=synthetic", f"backbone.path={pipeline_folder}", "env.size=32"]
    with hydra.initialize_config_module("conf", version_base="1.3"):
        settings = read_settings(hydra.compose("train", overrides=arguments), TrainSettings)
    finding = methods.bench_methods(settings, prepare(settings), runs=1)
    assert all(value > 0 for value in finding.figures.values())
    goals = {goal.figure: goal.limit for goal in finding.goals}
    assert {name: goals.pop(f"{name}_step_ratio") for name in METHODS if name not in ("full", "attention")} == (
        dict.fromkeys(set(METHODS) - {"full", "attention"}, 1.25)
    )
    assert goals.pop("attention_step_ratio") == 1
    passes = [f"svdiff_{what}_ratio_{where}" for what in ("forward", "both") for where in ("backbone", "block")]
    assert goals == dict.fromkeys(passes, 1.15)
    assert finding.figures.keys() >= {goal.figure for goal in finding.goals}


def test_every_mitigation_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fine-tune of a few steps: that it measures, and what it counts."""
    monkeypatch.setattr(mitigations, "_STEPS", 4)
    monkeypatch.setattr(mitigations, "_IMAGES", 2)
    monkeypatch.setattr(
        mitigations, "MITIGATIONS", {name: MITIGATIONS[name] for name in ("threshold", "ema", "dp_sgd", "guidance")}
    )
    arguments = ["+env.options.identities=60", "env.train=4", "env.heldout=4", "env.test=2", "inner.sampling_steps=2"]
    with hydra.initialize_config_module("conf", version_base="1.3"):
        settings = read_settings(hydra.compose("train", overrides=arguments), TrainSettings)
    finding = mitigations.bench_mitigations(settings, prepare(settings), runs=1)
    ratios = {f"{name}_ratio" for name in ("threshold", "ema", "dp_sgd", "guidance")}
    excesses = {f"{name}_excess" for name in ("threshold", "ema", "guidance")}
    assert finding.figures.keys() == ratios | excesses
    assert {goal.figure for goal in finding.goals} == excesses
    # Its two passes of each captioned sample explain part of what it takes; the others have none.
    assert finding.figures["threshold_excess"] < finding.figures["threshold_ratio"]
    for name in ("ema", "guidance"):
        assert finding.figures[f"{name}_excess"] == pytest.approx(finding.figures[f"{name}_ratio"])


def test_a_missed_goal_is_a_finding_and_no_error(tmp_path: Path) -> None:
    outcome = bench("only=[store]", "runs=1", folder=tmp_path, double=slow_store(0.01))
    assert outcome.code == 0, outcome.err
    (row,) = [line for line in outcome.out.splitlines() if "hit_ms" in line and "<= 5" in line]
    assert "missed" in row
    assert read_json(tmp_path / "runs" / "bench" / "store.json")["figures"]["hit_ms"] > 10


@pytest.mark.parametrize("argument", ["only=[speed]", "runs=0", "evaluator=synthetic"])
def test_a_wrong_call_is_one_line(tmp_path: Path, argument: str) -> None:
    outcome = bench(argument, folder=tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {argument.replace('[', '').replace(']', '')}")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
