from __future__ import annotations

import importlib.resources
from pathlib import Path

import hydra
import pytest

from agents.settings import TrainSettings, read_settings
from agents.workbench import prepare
from envs.task import SelectionTask

METHODS = sorted(f.stem for f in (Path(str(importlib.resources.files("conf"))) / "method").glob("*.yaml"))


def task(*overrides: str) -> SelectionTask:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose("train", overrides=["evaluator=synthetic", *overrides])
    return prepare(read_settings(config, TrainSettings)).search


def test_a_method_s_settings_decide_the_task() -> None:
    tasks = [task("method=lora", f"method.options.rank={rank}") for rank in (4, 8)]
    assert tasks[0].id != tasks[1].id
    assert tasks[0].id == task("method=lora").id == task("method=lora", "~method.options").id, (
        "defaults are spelled out"
    )
    assert tasks[1].method_settings == {"rank": 8}


@pytest.mark.parametrize("method", ["full", "attention", "bias_norm", "difffit", "svdiff"])
def test_a_method_without_settings_adds_nothing_to_the_task(method: str) -> None:
    assert "method" not in task(f"method={method}").options


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_file_names_it(method: str) -> None:
    assert task(f"method={method}").method == method
