from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.memorization.average_minimum_distance import AverageMinimumDistance, average_minimum_distance


def test_is_the_mean_and_its_interval_holds_it() -> None:
    distances = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=100))
    estimate = average_minimum_distance(distances)
    assert estimate.value == pytest.approx(np.mean(distances.numpy()))
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 100


def test_copies_are_at_zero() -> None:
    assert average_minimum_distance(torch.zeros(10)) == (0.0, 0.0, 0.0, 10)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 9), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(10, generator=generator)
    metric = AverageMinimumDistance("pixels")
    shuffled = distances[torch.randperm(10, generator=generator)]
    metric.update(shuffled[:cut])
    metric.update(shuffled[cut:])
    assert float(metric.compute()) == pytest.approx(float(distances.mean()), rel=1e-6)


def test_more_distance_is_less_memorized() -> None:
    assert AverageMinimumDistance.higher_is_better is True
    assert AverageMinimumDistance.plot_lower_bound == 0
