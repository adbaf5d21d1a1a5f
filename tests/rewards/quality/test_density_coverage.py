from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.quality.density_coverage import Coverage, Density, coverage, density


def features(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def balls(generated: Tensor, real: Tensor, k: int) -> np.ndarray:
    """Brute force with scikit-learn's radii: which generated image lies in which ball."""
    x, y = generated.double().numpy(), real.double().numpy()
    radii = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(y).kneighbors(y)[0][:, k]
    inside: np.ndarray = np.linalg.norm(x[:, None] - y, axis=2) <= radii
    return inside


@settings(max_examples=40, deadline=None)
@given(n=st.integers(6, 20), m=st.integers(6, 20), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_equal_the_papers_definitions(n: int, m: int, k: int, seed: int) -> None:
    generated, real = features(n, seed=seed) + 0.5, features(m, seed=seed + 100)
    inside = balls(generated, real, k)
    dense, covered = density(generated, real, k), coverage(generated, real, k)
    assert dense.value == pytest.approx(inside.sum() / (k * n))
    assert covered.value == pytest.approx(inside.any(axis=0).mean())
    assert 0 <= dense.value <= m / k
    assert 0 <= covered.value <= 1
    for estimate in (dense, covered):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_kth_neighbour_is_on_its_balls_surface_exactly(k: int) -> None:
    # Each ball holds its centre and k others: one more or less, and rounding has decided.
    real = features(80, d=200) * torch.logspace(-3, 3, 200) + 100
    assert density(real, real, k).value == pytest.approx((k + 1) / k, abs=1e-12)


def test_extremes() -> None:
    real = features(100)
    assert coverage(real, real).value == 1
    assert density(real + 100, real).value == coverage(real + 100, real).value == 0
    assert density(features(100, seed=1), real).value == pytest.approx(1, abs=0.25)
    assert coverage(features(100, seed=1), real).value > 0.9


def test_one_good_image_again_and_again_is_dense_and_covers_little() -> None:
    real = features(100)
    middle = real[real.norm(dim=1).argmin()] + 1e-4 * features(100, seed=1)
    assert density(middle, real).value > 1
    assert coverage(middle, real).value < 0.3


def test_a_generated_outlier_counts_for_nothing() -> None:
    real, generated = features(100), features(100, seed=1)
    outliers = torch.cat([generated, features(5, seed=2) + 50])
    assert coverage(outliers, real).value == coverage(generated, real).value
    assert density(outliers, real).value == pytest.approx(density(generated, real).value * 100 / 105)


def test_interval_counts_the_images_that_are_judged() -> None:
    generated, real = features(20, seed=1), features(60)
    assert density(generated, real).n == 20
    assert coverage(generated, real).n == 60


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
@pytest.mark.parametrize(("kind", "function"), [(Density, density), (Coverage, coverage)])
def test_neither_order_nor_pieces_matter(
    kind: type[Density | Coverage], function: Callable[..., Estimate], cut: int, seed: int
) -> None:
    generated, real = features(20, seed=seed) * 2, features(30, seed=seed + 100)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    metric = kind("pixels")
    metric.update(real.flip(0), real=True)
    metric.update(generated[order][cut:], real=False)
    metric.update(generated[order][:cut], real=False)
    assert float(metric.compute()) == pytest.approx(function(generated, real).value)


def test_more_is_better_and_k_is_at_least_one() -> None:
    assert Density.higher_is_better is Coverage.higher_is_better is True
    assert Density("pixels").least(3) == Coverage("pixels").least(3) == 6
    with pytest.raises(InputError, match=r"density\.k=0"):
        Density("pixels", k=0)
    with pytest.raises(InputError, match=r"coverage\.k=-1"):
        Coverage("pixels", k=-1)
