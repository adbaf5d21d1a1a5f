"""Tables of invented numbers, for tests of what searches in them."""

from __future__ import annotations

import dataclasses

import hydra

from agents.probing import invented_probes
from agents.settings import TrainSettings, read_settings
from envs.backbones import EMBEDDED
from envs.backbones.folder import folder_sha256
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.evaluators.table import EvaluationTable
from envs.features import GROUP_FEATURES, TASK_FEATURES, feature_matrix, task_vector
from envs.groups import LayerGroup
from envs.task import Schedule, SelectionTask

TOGGLES = 6


def settings_of(*overrides: str) -> TrainSettings:
    """The settings of ``python -m agents.train``."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return read_settings(hydra.compose("train", overrides=list(overrides)), TrainSettings)


def invented_table(*overrides: str, seed: int = 0) -> EvaluationTable:
    """Every mask of the synthetic evaluator, under the provenance of a task; nothing is measured.

    Args:
        overrides: Of the command line; they name the task.
        seed: Of the invented numbers.
    """
    settings = settings_of(*overrides)
    names = tuple(f"group {i}" for i in range(TOGGLES))
    evaluator = SyntheticEvaluator(names, seed=seed)
    groups = [
        LayerGroup(name, (), "down", i / (TOGGLES - 1), 0.5, 64, count)
        for i, (name, count) in enumerate(zip(names, evaluator.parameters, strict=True))
    ]
    group_probes, task_probes = invented_probes(evaluator.parameters, seed)
    masks = [Schedule.from_key(f"{number:0{TOGGLES}b}") for number in range(2**TOGGLES)]
    found = {mask: evaluator.evaluate(mask) for mask in masks}
    task = SelectionTask(
        env=settings.env.name,
        split_sha256="",
        backbone=settings.backbone.name,
        backbone_sha256=folder_sha256(EMBEDDED),
        method=settings.method.name,
        scheme=settings.groups.name,
        groups=names,
        inner=settings.inner,
        metrics=("kid", "membership"),
        seed=settings.seed,
    )
    return EvaluationTable(
        task,
        {task.seed: found, task.seed + 1: {mask: found[mask] for mask in (masks[0], masks[5], masks[-1])}},
        GROUP_FEATURES,
        feature_matrix(groups, group_probes, evaluator.parameters, sum(evaluator.parameters)),
        TASK_FEATURES,
        task_vector(settings.env.train, settings.inner, task_probes, 1.0),
        {
            "data": {
                "source": "invented for a test",
                "licence": "none",
                "train": settings.env.train,
                "heldout": settings.env.heldout,
                "test": settings.env.test,
                "split_sha256": "",
                "synthetic": True,
            },
            "env": dataclasses.asdict(settings.env),
            "noise_floor": {"kid": [0.0, 0.0, 0.0], "membership": [0.0, 0.0, 0.0]},
        },
    )
