from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.quality.precision_recall import Precision, Recall, precision, recall


def features(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(5, 20), m=st.integers(5, 20), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_equal_the_papers_algorithm(n: int, m: int, k: int, seed: int) -> None:
    generated, real = features(n, seed=seed) + 0.5, features(m, seed=seed + 100)
    x, y = generated.double().numpy(), real.double().numpy()

    def share(points: np.ndarray, support: np.ndarray) -> float:
        radii = np.sort(cdist(support, support), axis=1)[:, k]
        return float((cdist(points, support) <= radii).any(axis=1).mean())

    assert precision(generated, real, k).value == pytest.approx(share(x, y))
    assert recall(generated, real, k).value == pytest.approx(share(y, x))


def test_extremes() -> None:
    real = features(50)
    assert precision(real, real).value == recall(real, real).value == 1
    assert precision(real + 100, real).value == recall(real + 100, real).value == 0


def test_one_good_image_again_and_again_is_precise_and_recalls_nothing() -> None:
    real = features(50)
    collapsed = real[:1] + 1e-4 * features(50, seed=1)
    assert precision(collapsed, real).value == 1
    assert recall(collapsed, real).value <= 0.02


def test_interval_counts_the_images_that_are_judged() -> None:
    generated, real = features(20, seed=1), features(60)
    assert precision(generated, real).n == 20
    assert recall(generated, real).n == 60


@pytest.mark.parametrize(("metric", "function"), [(Precision("pixels"), precision), (Recall("pixels"), recall)])
def test_neither_order_nor_pieces_matter(metric: Precision | Recall, function: Callable[..., Estimate]) -> None:
    generated, real = features(20, seed=1) * 2, features(30)
    metric.update(real.flip(0), real=True)
    metric.update(generated[7:], real=False)
    metric.update(generated[:7], real=False)
    value = float(metric.compute())
    assert value == pytest.approx(function(generated, real).value)
    assert 0 < value < 1


def test_more_is_better_and_k_is_at_least_one() -> None:
    assert Precision.higher_is_better is Recall.higher_is_better is True
    with pytest.raises(InputError, match=r"recall\.k=0"):
        Recall("pixels", k=0)
