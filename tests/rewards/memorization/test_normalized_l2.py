from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.memorization.normalized_l2 import NormalizedL2, normalized_distances, normalized_l2
from rewards.neighbors import nearest_neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def points(n: int, seed: int) -> Tensor:
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed))


def near(queries: Tensor, train: Tensor, k: int = 5) -> Tensor:
    return nearest_neighbors(queries, train, k=k).distances


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), alpha=st.sampled_from([0.25, 0.5, 2.0]), k=st.integers(2, 12))
def test_is_the_mean_by_brute_force(seed: int, alpha: float, k: int) -> None:
    own, train = points(9, seed), points(12, seed + 100)
    every = np.sort(np.sqrt(((own.numpy()[:, None] - train.numpy()[None]) ** 2).mean(2)), axis=1)[:, :k]
    expected = every[:, 0] / (alpha * every.mean(1))
    estimate = normalized_l2(near(own, train, k), alpha)
    assert normalized_distances(near(own, train, k), alpha).numpy() == pytest.approx(expected, rel=1e-5)
    assert estimate.value == pytest.approx(expected.mean(), rel=1e-5)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1 / alpha + 1e-12
    assert estimate.n == 9


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1e300), min_size=2, max_size=8),
    st.floats(0.01, 100),
)
def test_none_is_above_one_over_alpha(distances: list[float], alpha: float) -> None:
    value = float(normalized_distances(torch.tensor(sorted(distances), dtype=torch.float64)[None], alpha))
    assert 0 <= value <= 1 / alpha


def test_extremes() -> None:
    train = points(20, 0)
    assert normalized_l2(near(train, train)) == (0, 0, 0, 20)
    assert normalized_l2(torch.zeros(3, 4)).value == 0
    heldout, noisy = points(50, 1), train + 0.02 * (points(20, 2) - 0.5)
    assert normalized_l2(near(noisy, train)).value < 0.2
    assert 0.5 < normalized_l2(near(heldout, train)).value < 2
    assert normalized_l2(near(heldout + 1000, train)).value == pytest.approx(2, abs=0.01)


def test_units_do_not_matter() -> None:
    distances = near(points(20, 0), points(30, 1))
    assert normalized_l2(distances * 1000).value == pytest.approx(normalized_l2(distances).value)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    distances = near(points(20, seed), points(10, seed + 1))
    shuffled = distances[torch.randperm(20, generator=torch.Generator().manual_seed(seed))]
    metric = NormalizedL2()
    metric.update(shuffled[:cut])
    metric.update(shuffled[cut:])
    assert float(metric.compute()) == pytest.approx(normalized_l2(distances).value, rel=1e-6)


@pytest.mark.parametrize("distinct", [1, 2, 4, 5, 100, 101, 2500, 2501, 10**6])
def test_few_training_images_have_few_neighbours(distinct: int) -> None:
    assert NormalizedL2().neighbors(distinct) == min(50, math.ceil(math.sqrt(distinct)))


def reference(train: Tensor, judge: Tensor, k: int) -> Reference:
    found = nearest_neighbors(judge, train, k=k)
    labels = torch.arange(len(train))
    return Reference(train, len(judge), labels, {}, {}, {}, {"pixels": found}, {}, {"normalized_l2": None})


def test_looks_at_its_own_number_of_neighbours_only() -> None:
    train, judge = points(20, 0), points(10, 1)
    metric, known = NormalizedL2(), reference(train, judge, 12)
    sample = Sample(known, judge, {}, known.judge_neighbors, Evidence())
    expected = normalized_l2(near(judge, train, 5)).value
    assert metric.null(known) == pytest.approx(expected)
    assert metric.measure(sample).value == pytest.approx(expected)


@pytest.mark.parametrize(("generated", "train", "sizes"), [(1, 20, "1 and 5"), (10, 1, "10 and 1")])
def test_too_few_images_are_named(generated: int, train: int, sizes: str) -> None:
    metric, known = NormalizedL2(), reference(points(train, 0), points(10, 1), min(5, train))
    found = {"pixels": nearest_neighbors(points(generated, 2), points(train, 0), k=min(5, train))}
    measured = metric.measure(Sample(known, points(generated, 2), {}, found, Evidence()))
    assert measured.value is None
    assert measured.note == f"needs 2 generated images and their 2 nearest distinct training images, got {sizes}"
    assert (metric.null(known) is None) == (train == 1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        NormalizedL2(alpha=alpha)


def test_more_distance_is_less_memorized() -> None:
    assert NormalizedL2.higher_is_better is True
    assert NormalizedL2.plot_lower_bound == 0
