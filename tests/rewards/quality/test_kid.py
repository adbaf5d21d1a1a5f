from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from rewards.quality.kid import KID, kid


def features(n: int, d: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


class Precomputed(nn.Module):
    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_equals_torchmetrics_on_a_subset_of_everything() -> None:
    generated, real = features(40, seed=1, shift=0.3).double(), features(40).double()
    reference = KernelInceptionDistance(feature=Precomputed(), subsets=1, subset_size=40)
    reference.update(real, real=True)
    reference.update(generated, real=False)
    assert kid(generated, real).value == pytest.approx(float(reference.compute()[0]), rel=1e-9)


def direct(x: Tensor, y: Tensor) -> float:
    a, b = x.double().numpy(), y.double().numpy()

    def mean_kernel(u: np.ndarray, v: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(u)) for j in range(len(v)) if not (same and i == j)]
        return float(np.mean([(np.dot(u[i], v[j]) / a.shape[1] + 1) ** 3 for i, j in pairs]))

    return mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)


def test_is_the_unbiased_estimator_for_sets_of_two_sizes_with_its_jackknife() -> None:
    x, y = features(7, seed=1, shift=0.5), features(11)
    estimate = kid(x, y)
    assert estimate.value == pytest.approx(direct(x, y))
    assert estimate.n == 7
    without_x = np.array([direct(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(7)])
    without_y = np.array([direct(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(11)])
    variance = (
        6 / 7 * ((without_x - without_x.mean()) ** 2).sum() + 10 / 11 * ((without_y - without_y.mean()) ** 2).sum()
    )
    assert estimate.low == pytest.approx(estimate.value - 1.959964 * variance**0.5, rel=1e-5)
    assert estimate.high == pytest.approx(estimate.value + 1.959964 * variance**0.5, rel=1e-5)


def test_is_unbiased_and_its_interval_covers_zero_for_one_source() -> None:
    estimates = [kid(features(30, seed=2 * i), features(50, seed=2 * i + 1)) for i in range(200)]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    covered = np.mean([e.low is not None and e.high is not None and e.low <= 0 <= e.high for e in estimates])
    assert 0.9 <= covered <= 1


def test_grows_with_the_distance_of_the_sources() -> None:
    real = features(60)
    near, far = (kid(features(60, seed=1, shift=shift), real) for shift in (0.5, 2.0))
    assert near.low is not None
    assert near.low > 0
    assert near.value < far.value / 5


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 9), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    generated, real = features(10, seed=seed), features(10, seed=seed + 100)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    metric = KID("pixels")
    metric.update(real[order][cut:], real=True)
    metric.update(generated[order][:cut], real=False)
    metric.update(real[order][:cut], real=True)
    metric.update(generated[order][cut:], real=False)
    assert float(metric.compute()) == pytest.approx(kid(generated, real).value, abs=1e-5)


def test_less_is_better_and_it_may_be_negative() -> None:
    assert KID.higher_is_better is False
    assert KID.plot_lower_bound is None
    assert min(kid(features(20, seed=i), features(20, seed=50 + i)).value for i in range(10)) < 0
