"""One finished run on the synthetic evaluator, looked at from all sides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.export import load_policy
from envs.evaluators.base import Evaluation
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.features import GROUP_FEATURES
from envs.task import Schedule
from rewards.objective import Objective, hypervolume
from tests.agents.command import (
    SMALL,
    answers,
    failing,
    read_json,
    run_folders,
    train,
    trained,
    without_times,
)

NUMBER = (int, float)
METRIC = {
    "value": (*NUMBER, type(None)),
    "null": (*NUMBER, type(None)),
    "low": (*NUMBER, type(None)),
    "high": (*NUMBER, type(None)),
    "n": int,
    "higher_is_better": bool,
}
AXES = {"quality": NUMBER, "privacy": NUMBER, "utility": NUMBER}
METRICS = {"kid": METRIC, "membership": METRIC}
SCHEMA: dict[str, Any] = {
    "schema": int,
    "job": str,
    "status": str,
    "task": {"id": str, "env": str, "backbone": str, "method": str, "method_options": dict, "groups": list},
    "data": {
        "source": str,
        "licence": str,
        "train": int,
        "heldout": int,
        "test": int,
        "split_sha256": str,
        "synthetic": bool,
    },
    "selected": {"mask": list, "trainable_parameters": int, "trainable_share": float},
    "metrics": METRICS,
    "axes": AXES,
    "anchors": {"base": {"metrics": METRICS, "axes": AXES}, "full": {"metrics": METRICS, "axes": AXES}},
    "evaluations": {"distinct": int, "cached": int, "failed": int, "seconds": NUMBER},
    "seconds": NUMBER,
    "versions": {"python": str, "torch": str},
    "git": {"commit": (str, type(None)), "dirty": (bool, type(None))},
    "hardware": str,
}
"""The promises about ``result.json``; a run may say more."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    """A run of seed 5 with the default preference."""
    return trained(*SMALL, "seed=5", folder=workplace)


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = read_json(run / "result.json")
    return loaded


@pytest.fixture(scope="module")
def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_result_has_the_promised_schema(result: dict[str, Any]) -> None:
    follows(SCHEMA, result, "result")
    assert (result["schema"], result["job"], result["status"]) == (1, "train", "done")
    assert len(result["selected"]["mask"]) == len(result["task"]["groups"]) == 8
    assert set(result["selected"]["mask"]) <= {0, 1}


def test_the_result_says_what_the_evaluator_says(result: dict[str, Any], run: Path) -> None:
    """Everything recomputed from the closed form, without the code of a run."""
    evaluator = SyntheticEvaluator(result["task"]["groups"], seed=5)
    base, full = (evaluator.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
    objective = Objective().anchor(base.metrics, full.metrics)

    def utility(key: str) -> float:
        return objective.utility(objective.axes(evaluator.evaluate(Schedule.from_key(key)).metrics), 0.5)

    asked = [line["schedule"] for line in answers(run)][2:-3]
    best = max(asked, key=utility)
    selected = result["selected"]
    assert "".join(map(str, selected["mask"])) == selected["schedule"] == best
    assert result["axes"]["utility"] == pytest.approx(utility(best))
    assert selected["search"]["axes"] == pytest.approx(result["axes"]), "one closed form for both splits"
    assert selected["groups"] == [g for g, bit in zip(result["task"]["groups"], best, strict=True) if bit == "1"]
    chosen = evaluator.evaluate(Schedule.from_key(best))
    assert (selected["trainable_parameters"], selected["trainable_share"]) == (
        chosen.trainable_parameters,
        chosen.trainable_share,
    )
    for name, evaluation in (("base", base), ("full", full)):
        measured = {k: v["value"] for k, v in result["anchors"][name]["metrics"].items()}
        assert measured == {k: m.value for k, m in evaluation.metrics.items()}
    assert result["anchors"]["base"]["axes"] == pytest.approx({"quality": 0, "privacy": 1, "utility": 1 / 22})
    assert result["anchors"]["full"]["axes"] == pytest.approx({"quality": 1, "privacy": 0, "utility": 1 / 22})


def test_every_answer_is_a_line(result: dict[str, Any], run: Path) -> None:
    lines = answers(run)
    for line in lines:
        hit = line.pop("hit")
        assert isinstance(hit, bool)
        assert Evaluation.from_json(line).to_json() == line
        line["hit"] = hit
    keys = [line["schedule"] for line in lines]
    assert keys[:2] == ["00000000", "11111111"]
    assert keys[-3:] == ["00000000", "11111111", result["selected"]["schedule"]]
    search = keys[2:-3]
    assert len(set(search)) == 12, "the budget, in distinct schedules"
    counts = result["evaluations"]
    assert counts["distinct"] == len(set(keys[:-3])) + 3
    assert counts["cached"] == sum(line["hit"] for line in lines)
    assert counts["failed"] == 0
    first = {key: index for index, key in reversed(list(enumerate(keys[:-3])))}
    assert all(line["hit"] == (first[line["schedule"]] < i) for i, line in enumerate(lines[:-3]))


def test_the_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    promised = {"result.json", "policy.safetensors", "policy.json", "evaluations.jsonl", "tensorboard", ".hydra"}
    assert promised | {"log.txt", "figures", "report.html"} <= names
    assert not [name for name in names if "partial" in name]
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert (config.seed, config.budget.evaluations) == (5, 12)
    assert "seed=5" in OmegaConf.load(run / ".hydra" / "overrides.yaml")
    assert "search: 11111111: kid" in (run / "log.txt").read_text()


def test_curves_tell_the_search(curves: dict[str, list[tuple[int, float]]], result: dict[str, Any], run: Path) -> None:
    groups = result["task"]["groups"]
    promised = {f"policy/probability/{group}" for group in groups} | {
        "policy/entropy_bits",
        "search/utility",
        "search/quality",
        "search/privacy",
        "search/best_utility",
        "search/hypervolume",
        "evaluations/distinct",
        "evaluations/cached",
        "evaluations/failed",
    }
    assert promised <= set(curves)
    assert all(np.isfinite(value) for tag in promised for _, value in curves[tag])
    assert all(steps == sorted(set(steps)) for tag in promised for steps in [[s for s, _ in curves[tag]]])

    evaluator = SyntheticEvaluator(groups, seed=5)
    base, full = (evaluator.evaluate(Schedule.constant([on] * 8)) for on in (False, True))
    objective = Objective().anchor(base.metrics, full.metrics)
    asked = [line["schedule"] for line in answers(run)][2:-3]
    axes = [objective.axes(evaluator.evaluate(Schedule.from_key(key)).metrics) for key in asked]
    utility = [objective.utility(each, 0.5) for each in axes]
    rollouts = len(curves["search/utility"])
    assert rollouts == len(asked) // 4
    for i in range(rollouts):
        seen = slice(4 * i, 4 * (i + 1))
        step, mean = curves["search/utility"][i]
        assert step == 4 * (i + 1)
        assert mean == pytest.approx(np.mean(utility[seen]))
        assert curves["search/quality"][i][1] == pytest.approx(np.mean([a.quality for a in axes[seen]]))
        assert curves["search/privacy"][i][1] == pytest.approx(np.mean([a.privacy for a in axes[seen]]))
        assert curves["search/best_utility"][i][1] == pytest.approx(max(utility[: 4 * (i + 1)]))
        assert curves["search/hypervolume"][i][1] == pytest.approx(hypervolume(axes[: 4 * (i + 1)]))
    assert curves["search/best_utility"][-1][1] == pytest.approx(result["selected"]["search"]["axes"]["utility"])
    assert curves["evaluations/distinct"][-1][1] == len({"00000000", "11111111", *asked})

    first = [curves[f"policy/probability/{group}"][0][1] for group in groups]
    entropy = -sum(p * np.log2(p) + (1 - p) * np.log2(1 - p) for p in first)
    assert curves["policy/entropy_bits"][0][1] == pytest.approx(entropy, rel=1e-5)
    assert entropy > 7.9, "the first rollout explores"


def test_the_policy_can_be_used_again(run: Path, result: dict[str, Any], curves: dict[str, Any]) -> None:
    policy = load_policy(run)
    assert policy.group_features == GROUP_FEATURES
    assert policy.trained_on == ({"task": result["task"]["id"], "env": "synthetic"},)
    rng = np.random.default_rng(0)
    groups = rng.random((11, len(policy.group_features)), dtype=np.float32)
    task = rng.random(len(policy.task_features), dtype=np.float32)
    assert len(policy.choose(groups, task, 0.5)) == 11


def test_the_report_stands_alone(run: Path, result: dict[str, Any]) -> None:
    page = (run / "report.html").read_text()
    assert "".join(page.split()).count("<imgalt=") == 1
    assert "data:image/png;base64," in page
    assert "http" not in page.replace('lang="en"', "")
    for group in result["selected"]["groups"]:
        assert group in page
    assert f"{result['axes']['quality']:.3g}" in page
    assert "no real person" in page


def test_a_second_run_pays_nothing_and_finds_the_same(run: Path, result: dict[str, Any], workplace: Path) -> None:
    outcome = train(*SMALL, "seed=5", folder=workplace)
    assert outcome.code == 0, outcome.err
    (second,) = set(run_folders(workplace)) - {run}
    assert second.parent == run.parent
    assert all(line["hit"] for line in answers(second))
    again = read_json(second / "result.json")
    assert again["evaluations"]["seconds"] == 0
    assert again["evaluations"]["cached"] == len(answers(second))
    assert without_times(again) == without_times(
        result | {"evaluations": result["evaluations"] | {"cached": len(answers(second))}}
    )


def test_the_same_seed_gives_the_same_result_and_another_one_another(
    run: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    for name, seed in (("same", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        again = trained(*SMALL, f"seed={seed}", folder=tmp_path / name)
        equal = without_times(read_json(again / "result.json")) == without_times(result)
        weights = (again / "policy.safetensors").read_bytes() == (run / "policy.safetensors").read_bytes()
        asked = [line["schedule"] for line in answers(again)] == [line["schedule"] for line in answers(run)]
        assert (equal, weights, asked) == ((True,) * 3 if name == "same" else (False,) * 3)


def test_a_failed_evaluation_is_recorded_penalised_and_counted(run: Path, tmp_path: Path) -> None:
    (key, *_) = [line["schedule"] for line in answers(run)][2:]
    failed = trained(*SMALL, "seed=5", folder=tmp_path, double=failing([key], "diverged: loss is nan"))
    lines = answers(failed)
    assert [line["failure"] for line in lines if line["schedule"] == key] == ["diverged: loss is nan"]
    result = read_json(failed / "result.json")
    assert result["evaluations"]["failed"] == 1
    assert result["selected"]["schedule"] != key
    assert len({line["schedule"] for line in lines[2:-3]}) == 12, "the run went on to the end of its budget"

    events = EventAccumulator(str(failed / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("evaluations/failed")][-1] == 1
    utility, reward = (events.Scalars(tag)[0].value for tag in ("search/utility", "rollout/ep_rew_mean"))
    assert reward == pytest.approx((3 * utility - 1) / 4), "three were measured, the fourth costs 1"


def follows(schema: Any, value: Any, where: str) -> None:
    if isinstance(schema, Mapping):
        assert isinstance(value, Mapping), where
        for key, expected in schema.items():
            assert key in value, f"{where}.{key} is missing"
            follows(expected, value[key], f"{where}.{key}")
    else:
        assert isinstance(value, schema), f"{where} is {value!r}"
        assert not (isinstance(value, bool) and schema in (int, NUMBER)), where
