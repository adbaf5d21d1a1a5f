"""A whole run on a pipeline of another kind than the one that ships: unconditional, in pixels, saved by the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.command import answers, read_json, run_folders, train
from tests.envs.backbones.conftest import save_ddpm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARGUMENTS = (
    "backbone=ddpm",
    "env.size=16",
    "env.train=4",
    "env.heldout=24",
    "env.test=20",
    "+env.options.identities=70",
    "env.options.kinds=[radiograph,lesion]",
    "evaluator.workers=1",
    "inner.steps=40",
    "inner.warmup=4",
    "inner.batch_size=4",
    "inner.learning_rate=1e-2",
    "inner.images=16",
    "inner.sampling_steps=4",
    "final.images=16",
    "reward.metrics=[kid,membership,noise_magnitude]",
    "reward.final_metrics=[kid,membership,noise_magnitude]",
    "budget.evaluations=2",
    "agent=ppo",
    "agent.rollout=2",
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ddpm(tmp_path_factory.mktemp("pipelines") / "ddpm", channels=1)


def test_an_unconditional_pipeline_is_searched_from_end_to_end(tmp_path: Path, pipeline: Path) -> None:
    arguments = [*ARGUMENTS, f"backbone.path={pipeline}", "backbone.precision=bf16"]
    outcome = train(*arguments, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    (run,) = run_folders(tmp_path)
    _, memory, device = outcome.out.splitlines()[:3]
    assert memory.startswith("memory weights ")
    assert device.startswith("device ")
    log = (run / "log.txt").read_text()
    assert memory in log
    result = read_json(run / "result.json")
    assert result["task"]["backbone"] == "ddpm"
    assert len(result["task"]["groups"]) == 8
    assert result["metrics"]["membership"]["value"] is not None
    assert result["metrics"]["noise_magnitude"]["value"] is None
    full = answers(run)[1]
    assert full["steps"] == 40
    assert full["trainable_parameters"] == full["total_parameters"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["inner.guidance_scale=4"], "inner.guidance_scale=4.0 with ddpm"),
        (["env.size=32"], "set env.size=16"),
        (["groups=transformers"], "has no transformers — set groups=blocks"),
        (["inner.sampling_steps=2000"], "inner.sampling_steps=2000"),
    ],
)
def test_what_does_not_fit_such_a_pipeline(tmp_path: Path, pipeline: Path, arguments: list[str], named: str) -> None:
    outcome = train(*ARGUMENTS, f"backbone.path={pipeline}", *arguments, folder=tmp_path)
    assert outcome.code == 2, outcome.err
    assert named in outcome.err
    assert outcome.err.count("\n") == 1
