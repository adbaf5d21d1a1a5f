from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from envs.backbones.pretrain.denoiser import build_denoiser
from envs.features import GROUP_FEATURES, TASK_FEATURES, feature_matrix, task_vector
from envs.group_probes import GroupProbes, Probe
from envs.groups import KINDS, PARTS, SCHEMES, LayerGroup, find_groups
from envs.task import InnerBudget
from envs.task_probes import TaskProbes

PROBES = TaskProbes(loss_train=0.1, loss_heldout=0.1, nearest_train=0.2, nearest_heldout=0.2)


def features(
    train: int, steps: int, batch_size: int, learning_rate: float, share: float = 1, probes: TaskProbes = PROBES
) -> dict[str, float]:
    inner = InnerBudget(steps, batch_size, learning_rate, images=1, sampling_steps=1)
    vector = task_vector(train, inner, probes, share)
    assert vector.dtype == np.float32
    return dict(zip(TASK_FEATURES, vector.tolist(), strict=True))


def test_features_are_scaled_logarithms() -> None:
    probes = TaskProbes(loss_train=0.01, loss_heldout=0.01 * 2**0.5, nearest_train=0.4, nearest_heldout=0.3)
    assert features(100, 1000, 10, 1e-3, 0.01, probes) == pytest.approx(
        {
            "log_train_images": 2 / 5,
            "log_steps": 3 / 5,
            "log_batch_size": 1 / 3,
            "log_learning_rate": 3 / 5,
            "log_epochs": 3 / 5,
            "log_loss_train": 0.5,
            "log_loss_heldout": 0.5 + np.log10(2) / 8,
            "log_loss_ratio": 0.5,
            "log_nearest_ratio": np.log2(0.75),
            "log_trainable_share": 4 / 6,
        }
    )


@pytest.mark.parametrize("budget", [(16, 60, 8, 3e-3), (32, 100, 16, 1e-4), (100_000, 50_000, 256, 1e-5)])
def test_usual_tasks_lie_in_the_unit_interval(budget: tuple[int, int, int, float]) -> None:
    assert all(0 <= value <= 1 for value in features(*budget).values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nearest_train": None}, {"log_nearest_ratio": 0}),
        ({"nearest_train": 0.0}, {"log_nearest_ratio": 1}),
        ({"nearest_heldout": 0.0}, {"log_nearest_ratio": -1}),
        ({"nearest_train": 0.0, "nearest_heldout": 0.0}, {"log_nearest_ratio": 0}),
        ({"loss_train": 0.0}, {"log_loss_train": 0, "log_loss_ratio": 1}),
        ({"loss_heldout": 10.0}, {"log_loss_ratio": 1}),
    ],
)
def test_extremes_are_cut_off(changes: dict[str, Any], expected: dict[str, float]) -> None:
    found = features(32, 100, 16, 1e-4, 0, dataclasses.replace(PROBES, **changes))
    assert {name: found[name] for name in expected} == expected
    assert found["log_trainable_share"] == 0


def some_probes(groups: tuple[LayerGroup, ...], scale: float = 1) -> GroupProbes:
    """Different in every group; ``scale`` as of another backbone's gradients and weights."""
    rng = np.random.default_rng(0)
    each = [
        Probe._make(
            (g.parameters, *(scale * 10 ** rng.uniform(-3, 3, 3)), *(scale**2 * 10 ** rng.uniform(-6, 6, 2)), 0.5)
        )
        for g in groups
    ]
    norms = [float(np.sqrt(sum(p[i] ** 2 for p in each))) for i in (1, 2, 3)]
    traces = [sum(p[i] for p in each) for i in (4, 5)]
    return GroupProbes(tuple(each), Probe._make((sum(g.parameters for g in groups), *norms, *traces, 0.5)))


@pytest.fixture(params=["embedded", "Stable Diffusion 1.5"])
def denoiser(request: pytest.FixtureRequest) -> nn.Module:
    with torch.device("meta"):
        if request.param == "embedded":
            small: nn.Module = build_denoiser()
            return small
        unet: nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        return unet


@pytest.mark.parametrize("scheme", SCHEMES)
def test_features_of_groups(denoiser: nn.Module, scheme: str) -> None:
    groups = find_groups(denoiser, scheme)
    total = sum(group.parameters for group in groups)
    probes, trainable = some_probes(groups), [0, *(group.parameters // 10 for group in groups[1:])]
    matrix = feature_matrix(groups, probes, trainable, total)
    assert matrix.shape == (len(groups), len(GROUP_FEATURES))
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert np.abs(matrix).max() <= 1
    column = dict(zip(GROUP_FEATURES, matrix.T, strict=True))
    assert column["share"].sum() == pytest.approx(1)
    for part in PARTS:
        assert column[f"part_{part}"].tolist() == [group.part == part for group in groups]
    np.testing.assert_allclose(np.stack([column[f"kind_{kind}"] for kind in KINDS]).sum(axis=0), 1, rtol=1e-6)
    for name, scale, values in (
        ("log_channels", 4, [g.channels for g in groups]),
        ("log_parameters", 9, [g.parameters for g in groups]),
    ):
        np.testing.assert_allclose(10 ** (scale * column[name].astype(float)), values, rtol=1e-4)
    assert column["log_trainable_share"][0] == 0
    shares = 10 ** (6 * column["log_trainable_share"].astype(float) - 6)
    np.testing.assert_allclose(shares[1:], np.maximum(trainable[1:], total * 1e-6) / np.float64(total), rtol=1e-4)
    another = feature_matrix(groups, some_probes(groups, scale=50), trainable, total)
    np.testing.assert_allclose(another, matrix, atol=1e-6)


def test_norms_are_relative_to_the_denoiser_s() -> None:
    groups = [LayerGroup(name, (name,), "down", 0.5, 1.0, 10, 10) for name in "abc"]
    whole = Probe(1000, 10.0, 20.0, 40.0, 5.0, 7.0, 0.1)
    #            as the whole               ten times as strong                     nothing at all
    each = [
        Probe(10, 1.0, 2.0, 2.0, 0.05, 0.05, 0.3),
        Probe(10, 10.0, 20.0, 20.0, 5.0, 5.0, -0.3),
        Probe(10, *[0.0] * 6),
    ]
    matrix = feature_matrix(groups, GroupProbes(tuple(each), whole), [1, 1, 1], 1000)
    measured = matrix[:, GROUP_FEATURES.index("weight_norm") :]
    np.testing.assert_allclose(measured[0], [0, 0, 0, 0, 0, 0.3], atol=1e-6)
    np.testing.assert_allclose(measured[1], [0.5, 0.5, 0.5, 0.5, 0.5, -0.3], atol=1e-6)
    np.testing.assert_allclose(measured[2], [-1, -1, -1, -1, -1, 0])
