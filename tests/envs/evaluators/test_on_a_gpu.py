from __future__ import annotations

import copy
import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.datasets import SplitDataset
from envs.evaluators.base import evaluate_many
from envs.evaluators.finetune import FineTuneEvaluator, FineTuneFactory
from envs.evaluators.pool import PoolEvaluator
from envs.methods import METHODS
from envs.mitigations import MITIGATIONS
from envs.task import Schedule, SelectionTask
from tests.envs.evaluators.test_finetune import dataset, task
from tests.envs.evaluators.test_mitigated import mitigated

__all__ = ["dataset", "task"]  # fixtures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "iet": {"shards": 1, "rounds": 2},
    "threshold_sampling": {"target": 1e-6},  # every caption is above it
    "dp_sgd": {"noise_multiplier": 1.0, "epsilon": None},
    "prune_subspace": {"flagged": "all"},
}
SOME = Schedule.from_key("01101001")


@pytest.fixture(scope="module")
def loaded_on_gpu(pipeline_folder: Path) -> LatentBackbone:
    return load_latent_backbone(pipeline_folder, name="tiny", device=torch.device("cuda"))


@pytest.fixture
def on_gpu(loaded_on_gpu: LatentBackbone) -> LatentBackbone:
    own = copy.copy(loaded_on_gpu)
    own.denoiser = copy.deepcopy(loaded_on_gpu.denoiser)
    return own


def check(task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, on_gpu: LatentBackbone) -> None:
    """The GPU's evaluation is the CPU's, as nearly as TF32 lets it, and leaves the backbone as it was."""
    here, there = FineTuneEvaluator(task, dataset, backbone), FineTuneEvaluator(task, dataset, on_gpu)
    expected, found = here.evaluate(SOME), there.evaluate(SOME)
    assert (expected.failure, found.failure) == ("", "")
    assert (found.steps, found.trainable_parameters) == (expected.steps, expected.trainable_parameters)
    assert found.metrics.keys() == expected.metrics.keys()
    for name in ("kid", "average_minimum_distance"):
        assert found.metrics[name].value == pytest.approx(expected.metrics[name].value, rel=0.1), name
    again = there.evaluate(SOME)
    for name in ("kid", "average_minimum_distance"):
        assert again.metrics[name].value == pytest.approx(found.metrics[name].value, rel=0.02), name


@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_mitigation_does_on_a_gpu_what_it_does_on_the_cpu(
    name: str, task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, on_gpu: LatentBackbone
) -> None:
    check(mitigated(task, {name: SETTINGS.get(name, {})}), dataset, backbone, on_gpu)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_does_on_a_gpu_what_it_does_on_the_cpu(
    method: str, task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, on_gpu: LatentBackbone
) -> None:
    check(dataclasses.replace(task, method=method), dataset, backbone, on_gpu)


def test_images_are_inverted_on_a_gpu(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, on_gpu: LatentBackbone
) -> None:
    inner = dataclasses.replace(task.inner, inversions=2)
    metrics = (*task.metrics, "inversion", "inversion_success")
    check(dataclasses.replace(task, inner=inner, metrics=metrics), dataset, backbone, on_gpu)


@pytest.mark.timeout(180)
def test_worker_processes_share_a_gpu(task: SelectionTask, dataset: SplitDataset, pipeline_folder: Path) -> None:
    factory = FineTuneFactory(task, dataset, pipeline_folder, ("cuda:0",))
    inline, workers = (PoolEvaluator(factory, number, task.groups) for number in (0, 2))
    with closing(inline), closing(workers):
        schedules = [Schedule.from_key(key) for key in ("11110000", "00001111", "01101001")]
        for expected, found in zip(evaluate_many(inline, schedules), evaluate_many(workers, schedules), strict=True):
            assert (found.failure, found.steps) == ("", expected.steps)
            for name in ("kid", "average_minimum_distance"):
                assert found.metrics[name].value == pytest.approx(expected.metrics[name].value, rel=0.02), name
