from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rewards.calibration import (
    bootstrap_mean,
    halves,
    leave_one_out_quantiles,
    noise_floor,
    normal,
    null_quantiles,
    threshold,
    wilson,
)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 300), rate=st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.29, 0.5]), seed=st.integers(0, 99))
def test_of_exchangeable_scores_exactly_the_stated_share_is_flagged(n: int, rate: float, seed: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).permutation(n + 1).astype(np.float64))
    flagged = [float(scores[i]) < threshold(torch.cat([scores[:i], scores[i + 1 :]]), rate).value for i in range(n + 1)]
    stated = threshold(scores[1:], rate).rate
    assert np.mean(flagged) == pytest.approx(stated)
    assert stated <= rate + 1e-12 or stated == 1 / (n + 1)
    assert stated > rate - 1 / (n + 1)


@pytest.mark.parametrize(
    ("n", "rate", "rank"), [(99, 0.01, 1), (98, 0.01, 1), (198, 0.01, 1), (199, 0.01, 2), (99, 0.29, 29)]
)
def test_the_threshold_is_this_order_statistic(n: int, rate: float, rank: int) -> None:
    assert threshold(torch.arange(n).float(), rate) == (rank - 1, rank / (n + 1))


def test_quantiles_are_linear_between_the_null_distances() -> None:
    null = torch.tensor([4.0, 1.0, 2.0])
    distances = torch.tensor([0.0, 0.5, 1.0, 1.5, 3.0, 4.0, 9.0])
    expected = [0, 1 / 8, 1 / 4, 3 / 8, 5 / 8, 3 / 4, 3 / 4]
    np.testing.assert_allclose(null_quantiles(distances, null).numpy(), expected)


def test_tied_null_distances_count_as_all_of_the_tied() -> None:
    null = torch.tensor([0.0, 0.0, 1.0])
    np.testing.assert_allclose(null_quantiles(torch.tensor([0.0, 1.0]), null).numpy(), [2 / 4, 3 / 4])


@settings(max_examples=40, deadline=None)
@given(null=st.lists(st.floats(0, 10, width=32), min_size=2, max_size=30), seed=st.integers(0, 99))
def test_leaving_one_out_is_what_it_says(null: list[float], seed: int) -> None:
    values = torch.tensor(null)
    expected = [
        float(null_quantiles(values[i : i + 1], torch.tensor(null[:i] + null[i + 1 :]))) for i in range(len(null))
    ]
    found = leave_one_out_quantiles(values)
    np.testing.assert_allclose(found.numpy(), expected)
    order = torch.randperm(len(null), generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(leave_one_out_quantiles(values[order]).numpy(), found[order].numpy())


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 400), data=st.data())
def test_wilson_interval_solves_the_score_equation(n: int, data: st.DataObject) -> None:
    flagged = data.draw(st.integers(0, n))
    estimate = wilson(flagged, n)
    z = stats.norm.ppf(0.975)
    assert estimate.value == flagged / n
    assert estimate.n == n
    assert estimate.low is not None
    assert estimate.high is not None
    for end in (estimate.low, estimate.high):
        assert abs(flagged / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)
    assert 0 <= estimate.low <= flagged / n <= estimate.high <= 1


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=400))
    estimate = bootstrap_mean(values)
    standard_error = float(values.std()) / 20
    assert estimate.value == pytest.approx(float(values.mean()))
    assert estimate.low == pytest.approx(float(values.mean()) - 1.96 * standard_error, abs=0.3 * standard_error)
    assert estimate.high == pytest.approx(float(values.mean()) + 1.96 * standard_error, abs=0.3 * standard_error)
    assert bootstrap_mean(values.flip(0)) == estimate
    assert bootstrap_mean(values, seed=1) != estimate


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert bootstrap_mean(torch.zeros(5)) == (0.0, 0.0, 0.0, 5)


def test_normal_interval() -> None:
    estimate = normal(1.0, 4.0, 7)
    assert (estimate.value, estimate.n) == (1, 7)
    assert estimate.low == pytest.approx(-2.92, abs=1e-3)
    assert estimate.high == pytest.approx(4.92, abs=1e-3)


@pytest.mark.parametrize("n", [2, 7, 100])
def test_halves_share_no_row_and_are_not_the_first_and_the_second(n: int) -> None:
    rows = torch.arange(n)[:, None]
    a, b = halves(rows)
    assert len(a) == n // 2
    assert sorted(torch.cat([a, b]).flatten().tolist()) == list(range(n))
    assert torch.equal(halves(rows)[0], a)
    if n == 100:
        assert 10 < int((a < 50).sum()) < 40


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > 1),
    seed=st.integers(0, 99),
)
def test_noise_floor_is_the_root_of_the_analysis_of_variances_error(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.normal(10 * i, 2, size=n) for i, n in enumerate(sizes)]
    freedom = sum(n - 1 for n in sizes)
    variance = sum((n - 1) * g.var(ddof=1) for n, g in zip(sizes, groups, strict=True) if n > 1) / freedom
    tensors = [torch.from_numpy(g) for g in groups]
    estimate = noise_floor(tensors)
    assert estimate.value == pytest.approx(math.sqrt(variance))
    assert estimate.n == sum(n for n in sizes if n > 1)
    assert estimate.low is not None
    assert estimate.high is not None
    # The interval's ends are the spreads under which one so large, or so small, has a chance of 2.5 %.
    assert stats.chi2.sf(freedom * variance / estimate.low**2, freedom) == pytest.approx(0.025)
    assert stats.chi2.cdf(freedom * variance / estimate.high**2, freedom) == pytest.approx(0.025)
    assert noise_floor([g.flip(0) + 3 for g in tensors[::-1]]) == pytest.approx(estimate)


def test_noise_floors_interval_covers_the_true_spread() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        estimate = noise_floor([torch.from_numpy(rng.normal(i, 0.5, size=3)) for i in range(4)])
        assert estimate.low is not None
        assert estimate.high is not None
        covered.append(estimate.low <= 0.5 <= estimate.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_repeats_that_agree_have_no_noise() -> None:
    assert noise_floor([torch.full((3,), 0.1), torch.full((2,), 1e9)]) == (0, 0, 0, 5)


@pytest.mark.parametrize("repeats", [[], [torch.zeros(1), torch.ones(1)], [torch.tensor([0.0, torch.nan])]])
def test_without_repeats_there_is_no_noise_floor(repeats: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="for two seeds or more"):
        noise_floor(repeats)
