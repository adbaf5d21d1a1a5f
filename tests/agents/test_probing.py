"""The look at a task before its search, on the pipeline that ships and phantoms."""

from __future__ import annotations

import dataclasses
from typing import Any

import hydra
import numpy as np
import pytest
import torch

from agents.probing import invented_probes, probed
from agents.settings import TrainSettings, read_settings
from agents.workbench import Workbench, prepare
from envs.backbones import EMBEDDED
from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.datasets.base import ImageSet
from envs.features import GROUP_FEATURES
from envs.groups import find_groups


def workbench(*overrides: str) -> Workbench:
    small = ("env=phantom", "env.train=4", "env.heldout=5", "env.test=2", "inner.loss_draws=1", *overrides)
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return prepare(read_settings(hydra.compose("train", overrides=list(small)), TrainSettings))


@pytest.fixture(scope="module")
def backbone() -> LatentBackbone:
    return load_latent_backbone(EMBEDDED, name="embedded", device=torch.device("cpu"))


def test_ranks_and_kinds_make_toggles_of_the_same_probes() -> None:
    bench = workbench("method=lora", "method.options.ranks=[1,4]", "groups=block_kinds")
    names = bench.search.groups
    assert len(names) == 50
    assert names[2:4] == ("down_blocks.0 resnet rank 1", "down_blocks.0 resnet rank 4")
    matrix = bench.group_features
    assert matrix.shape == (50, len(GROUP_FEATURES))
    trained = GROUP_FEATURES.index("log_trainable_share")
    others = [i for i in range(len(GROUP_FEATURES)) if i != trained]
    np.testing.assert_array_equal(matrix[::2, others], matrix[1::2, others])
    resnets = [i for i, name in enumerate(names) if "resnet" in name]
    shares = 10 ** (6 * matrix[resnets, trained].astype(float) - 6)
    np.testing.assert_allclose(shares[1::2], 4 * shares[::2], rtol=1e-3)
    assert np.isfinite(bench.task_features).all()


def test_the_test_split_is_not_looked_at_and_threads_are_put_back(backbone: LatentBackbone) -> None:
    dataset = workbench().dataset
    assert dataset is not None
    groups = find_groups(backbone.denoiser, "blocks")
    settings: dict[str, Any] = {"draws": 1, "threads": 1, "seed": 0}

    def black(images: ImageSet) -> ImageSet:
        return dataclasses.replace(images, images=np.zeros_like(images.images))

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        first = probed(backbone, dataset, groups, **settings)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    without_test = dataclasses.replace(dataset, test=black(dataset.test))
    assert probed(backbone, without_test, groups, **settings) == first
    without_train = dataclasses.replace(dataset, train=black(dataset.train))
    without_heldout = dataclasses.replace(dataset, heldout=black(dataset.heldout))
    for part in (without_train, without_heldout):
        assert probed(backbone, part, groups, **settings) != first


def test_invented_probes_depend_on_the_seed_alone() -> None:
    assert invented_probes([10, 20], 0) == invented_probes([10, 20], 0) != invented_probes([10, 20], 1)
    groups = invented_probes([10, 20], 0)[0]
    assert [probe.parameters for probe in (*groups.groups, groups.denoiser)] == [10, 20, 30]
