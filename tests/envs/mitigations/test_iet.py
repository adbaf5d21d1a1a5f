from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.datasets import SplitDataset
from envs.mitigations import find_mitigations
from envs.mitigations.iet import averaged, budgets_of, shards_of
from rewards.errors import InputError
from tests.envs.mitigations.conftest import BUDGET, Ward, same


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=4), shards=st.integers(1, 5), seed=st.integers(0, 9))
def test_shards_share_no_image_and_are_equal_in_classes(counts: list[int], shards: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = shards_of(labels, shards, seed)
    assert sorted(row for shard in found for row in shard.tolist()) == list(range(len(labels)))
    for label in range(len(counts)):
        held = [int((labels[shard.numpy()] == label).sum()) for shard in found]
        assert max(held) - min(held) <= 1
    sizes = [len(shard) for shard in found]
    assert max(sizes) - min(sizes) <= 1


def test_averaging_is_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    each = [[torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)] for _ in range(3)]
    weights = [0.5, 0.3, 0.2]
    for i, mean in enumerate(averaged(each, weights)):
        expected = 0.5 * each[0][i] + 0.3 * each[1][i] + 0.2 * each[2][i]
        torch.testing.assert_close(mean, expected)
        assert mean.dtype == torch.float32


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_shard_is_plain_training(ward: Ward, rounds: int) -> None:
    assert same(ward.after({"iet": {"shards": 1, "rounds": rounds}}), ward.after({})), "bit by bit"


@pytest.mark.parametrize("steps", [8, 7])
def test_all_learners_together_take_the_steps_of_plain_training(ward: Ward, steps: int) -> None:
    base = ward.weights()
    trained = ward.of(steps=steps).treat({"iet": {"shards": 2, "rounds": 2}})
    assert trained.steps == steps
    assert trained.figures["iet.sequential_steps"] == -(-steps // 2)
    assert not same(ward.weights(), base)


def test_budgets_add_up() -> None:
    budgets = budgets_of(dataclasses.replace(BUDGET, steps=11, warmup=6), 3)
    assert [each.steps for each in budgets] == [4, 4, 3]
    assert [each.warmup for each in budgets] == [3, 3, 2]


def test_one_round_is_the_mean_of_models_trained_apart(ward: Ward, clinic: SplitDataset) -> None:
    """Weighted by the shards' sizes, here 3 and 3 of 6."""
    rows = shards_of(clinic.train.labels, 2, 0)
    assert [len(shard) for shard in rows] == [3, 3]
    whole = ward.after({"iet": {"shards": 2, "rounds": 1}})
    again = ward.after({"iet": {"shards": 2, "rounds": 1}})
    assert same(whole, again), "the same numbers every time"
    assert not same(whole, ward.after({"iet": {"shards": 2, "rounds": 2}}))


def test_with_loss_banks_each_learner_has_its_own(ward: Ward) -> None:
    trained = ward.treat({"iet": {"shards": 2, "rounds": 2}, "agc": {}})
    assert trained.figures.keys() == {"iet.sequential_steps", "agc.skipped_share"}
    assert 0 <= trained.figures["agc.skipped_share"] < 1


@pytest.mark.parametrize("settings", [{"shards": 0}, {"rounds": 1.5}, {"shards": True}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.iet\.{name}="):
        find_mitigations({"iet": settings})


def test_more_shards_than_a_class_has_images(ward: Ward) -> None:
    with pytest.raises(
        InputError, match=r"mitigation\.iet\.shards=3: class 1 has 2 training images — set it to 2 or less"
    ):
        ward.regimen({"iet": {"shards": 3}})


def test_more_shards_and_rounds_than_steps(ward: Ward) -> None:
    with pytest.raises(InputError, match=r"inner\.steps=8 for 1 shards in each of 9 rounds — set it to 9"):
        ward.regimen({"iet": {"shards": 1, "rounds": 9}})
