from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.memorization.nearest_ratio import NearestRatio, nearest_ratio
from rewards.neighbors import nearest_neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def two_nearest(queries: Tensor, train: Tensor, labels: Tensor | None = None) -> Tensor:
    return nearest_neighbors(
        queries.flatten(1), train.flatten(1), flipped_gallery=train.flip(-1).flatten(1), k=2, labels=labels
    ).distances


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), ratio=st.sampled_from([0.2, 1 / 3, 0.9]))
def test_is_the_share_by_brute_force(seed: int, ratio: float) -> None:
    train, own = images(12, seed), images(30, seed + 100)
    own[:10] = train[torch.arange(10)] + 0.3 * (own[:10] - 0.5)
    both = np.minimum(
        *(np.sqrt(((own.numpy()[:, None] - t.numpy()[None]) ** 2).mean((2, 3, 4))) for t in (train, train.flip(-1)))
    )
    ordered = np.sort(both, axis=1)
    expected = np.mean(ordered[:, 0] / ordered[:, 1] < ratio)
    estimate = nearest_ratio(two_nearest(own, train), ratio)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.n == 30


def test_extremes() -> None:
    train = images(20, 0)
    noise = 0.02 * torch.randn(train.shape, generator=torch.Generator().manual_seed(1))
    assert nearest_ratio(two_nearest(train, train)).value == 1
    assert nearest_ratio(two_nearest(train + noise, train)).value == 1
    assert nearest_ratio(two_nearest(images(50, 2), train)).value == 0
    assert nearest_ratio(two_nearest(images(50, 2) + 100, train)).value == 0


def test_neither_flips_nor_duplicates_hide_a_copy() -> None:
    train = images(20, 0)
    copies = train.flip(-1) + 0.02
    again = torch.cat([train, train + 0.01, train.flip(-1)])
    labels = torch.arange(20).repeat(3)
    assert nearest_ratio(two_nearest(copies, train)).value == 1
    assert nearest_ratio(two_nearest(copies, again)).value == 0
    assert nearest_ratio(two_nearest(copies, again, labels)).value == 1


def test_an_exact_copy_counts_whatever_else_is_near() -> None:
    assert nearest_ratio(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.1, 0.1]])).value == pytest.approx(2 / 3)


def test_the_ratio_itself_is_not_below() -> None:
    assert nearest_ratio(torch.tensor([[0.5, 1.0], [0.49, 1.0]]), 0.5).value == 0.5


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(20, 2, generator=generator).sort(dim=1).values
    shuffled = distances[torch.randperm(20, generator=generator)]
    metric = NearestRatio(ratio=0.5)
    metric.update(shuffled[:cut])
    metric.update(shuffled[cut:])
    assert float(metric.compute()) == pytest.approx(nearest_ratio(distances, 0.5).value)


def reference(train: Tensor, judge: Tensor, k: int) -> Reference:
    found = nearest_neighbors(judge.flatten(1), train.flatten(1), k=k)
    labels = torch.arange(len(train))
    return Reference(train.to(torch.uint8), len(judge), labels, {}, {}, {}, {"pixels": found}, {}, {"nearest_ratio": 0})


def test_is_measured_beside_the_share_of_heldout_images() -> None:
    train, judge = images(20, 0), images(10, 1)
    judge[:2] = train[:2]
    metric, known = NearestRatio(), reference(train, judge, 5)
    sample = Sample(known, judge, {}, known.judge_neighbors, Evidence())
    assert metric.neighbors(20) == 2
    assert metric.null(known) == pytest.approx(0.2)
    assert metric.measure(sample).value == pytest.approx(0.2)


def test_one_distinct_training_image_is_too_few() -> None:
    metric, known = NearestRatio(), reference(images(1, 0), images(10, 1), 1)
    sample = Sample(known, images(10, 1), {}, known.judge_neighbors, Evidence())
    assert metric.null(known) is None
    assert metric.measure(sample).value is None
    assert metric.measure(sample).note == "needs the 2 nearest distinct training images, got 1"


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="ratio"):
        NearestRatio(ratio=ratio)


def test_more_copies_are_worse() -> None:
    assert NearestRatio.higher_is_better is False
    assert (NearestRatio.plot_lower_bound, NearestRatio.plot_upper_bound) == (0, 1)
