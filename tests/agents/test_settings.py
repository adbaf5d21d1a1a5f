from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from agents.auditing.settings import AuditSettings
from agents.bench import BenchSettings
from agents.capacity.settings import MethodsSettings
from agents.comparison.settings import CompareSettings
from agents.finetuning.settings import FinetuneSettings
from agents.landscape.settings import TablesSettings
from agents.merge import MergeSettings
from agents.mitigating.settings import MitigationsSettings
from agents.pretrain import PretrainSettings
from agents.settings import TrainSettings, read_settings
from agents.tabulate import TabulateSettings
from agents.transfer import TransferSettings
from agents.transferred.runs import TransfersSettings
from agents.validation.settings import ValidateSettings
from rewards.errors import InputError

CONF = Path(str(importlib.resources.files("conf")))
SCHEMAS: dict[str, tuple[Any, list[str]]] = {
    "train": (TrainSettings, []),
    "pretrain": (PretrainSettings, ["public=images.npz"]),
    "bench": (BenchSettings, []),
    "finetune": (FinetuneSettings, ["mask=all"]),
    "audit": (AuditSettings, ["generated=images", "train=private", "heldout=others"]),
    "validate": (ValidateSettings, []),
    "methods": (MethodsSettings, []),
    "mitigations": (MitigationsSettings, []),
    "tabulate": (TabulateSettings, []),
    "tables": (TablesSettings, []),
    "compare": (CompareSettings, []),
    "ablation": (CompareSettings, []),
    "transfer": (TransferSettings, []),
    "transfers": (TransfersSettings, []),
    "merge": (MergeSettings, []),
}
CHOICES = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml"))


def compose(name: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


def test_every_command_has_its_configuration() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} == {*SCHEMAS, "run_folder"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_configuration_of_every_command_is_complete(name: str) -> None:
    schema, overrides = SCHEMAS[name]
    assert isinstance(read_settings(compose(name, *overrides), schema), schema)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    group, name = choice.split("=")
    where = ["backbone.path=somewhere"] if group == "backbone" else []
    settings = read_settings(compose("train", choice, *where), TrainSettings)
    chosen = getattr(settings, group)
    assert getattr(chosen, "name", name) == name or group == "reward"


def test_every_header_starts_with_the_command_that_it_belongs_to() -> None:
    for name in SCHEMAS:
        header = [line for line in (CONF / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
        command = "compare --config-name ablation" if name == "ablation" else name
        assert any(f"python -m agents.{command}" in line for line in header), name


def test_values_arrive_with_their_types() -> None:
    overrides = ["seed=3", "preference=1", "data.root=/images", "reward.metrics=[kid,membership]", "inner.steps=70"]
    settings = read_settings(compose("train", *overrides), TrainSettings)
    assert (settings.seed, settings.data.root, settings.inner.steps) == (3, "/images", 70)
    assert isinstance(settings.preference, float)
    assert settings.reward.metrics == ["kid", "membership"]
    assert settings.store.path == "runs/evaluations.sqlite"


@pytest.mark.parametrize(
    "override",
    [
        "seed=abc",
        "seed=-1",
        "seed=1.5",
        "preference=1.01",
        "preference=nan",
        "horizon=0",
        "horizon=121",
        "budget.evaluations=-3",
        "budget.evaluations=0",
        "budget.evaluations=7",
        "budget.evaluations=many",
        "agent.rollout=1",
        "agent.epochs=0",
        "agent.width=0",
        "agent.learning_rate=0",
        "agent.learning_rate=inf",
        "agent.clip_range=-0.1",
        "agent.entropy=nan",
        "agent.max_episodes=0",
        "agent.name=random",
        "env.train=0",
        "env.seed=-1",
        "evaluator.workers=-1",
        "evaluator.threads=0",
        "inner.steps=0",
        "inner.learning_rate=0",
        "inner.batch_size=two",
        "final.images=0",
        "reward.failure_penalty=nan",
        "reward.scalarization=product",
        "reward.metrics=kid",
        "report.images=perhaps",
        "data.root=[a]",
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_given(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(InputError) as caught:
        read_settings(compose("train", "agent=ppo", override), TrainSettings)
    assert key in caught.value.what
    assert value.strip("[]") in caught.value.what
    assert "\n" not in str(caught.value)


def test_a_key_that_nobody_reads_is_refused() -> None:
    with pytest.raises(InputError, match=r"^agent\.momentum=0\.9"):
        read_settings(compose("train", "+agent.momentum=0.9"), TrainSettings)


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"public.*give it on the command line"):
        read_settings(compose("pretrain"), PretrainSettings)


def test_what_is_rewarded_must_be_measured() -> None:
    with pytest.raises(InputError, match="uses membership"):
        read_settings(compose("train", "reward.metrics=[kid]"), TrainSettings)
