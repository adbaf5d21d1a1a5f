from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from agents.comparison.statistics import (
    draw_seeds,
    iqm,
    iqm_estimate,
    median_estimate,
    probability_of_improvement,
)

RNG = np.random.default_rng


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 101])
def test_the_interquartile_mean_is_a_trimmed_mean(n: int) -> None:
    values = RNG(n).normal(size=(3, n))
    np.testing.assert_allclose(iqm(values), stats.trim_mean(values, 0.25, axis=1))


def test_the_interval_is_that_of_a_bootstrap() -> None:
    """With one table there is one stratum, and SciPy's bootstrap does the same."""
    values = RNG(0).normal(size=40)
    ours = iqm_estimate(values[None], draw_seeds(["isic"], 40, 4000, RNG(1)))
    theirs = stats.bootstrap(
        (values,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), n_resamples=4000, method="percentile", rng=2
    ).confidence_interval
    assert ours.value == pytest.approx(stats.trim_mean(values, 0.25))
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)
    assert ours.n == 40


def test_tables_of_one_source_share_their_seeds() -> None:
    draws = draw_seeds(["isic", "phantom", "isic"], 20, 50, RNG(0))
    assert draws.shape == (50, 3, 20)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
    assert (draws[:, 0] != draws[:, 1]).any()
    assert set(draws.ravel()) == set(range(20))


def test_runs_that_move_together_do_not_narrow_the_interval() -> None:
    values = RNG(0).normal(size=20)
    alone = iqm_estimate(values[None], draw_seeds(["isic"], 20, 2000, RNG(1)))
    copies = iqm_estimate(np.stack([values] * 4), draw_seeds(["isic"] * 4, 20, 2000, RNG(1)))
    independent = iqm_estimate(np.stack([values] * 4), draw_seeds(list("abcd"), 20, 2000, RNG(1)))
    assert alone.high is not None
    assert alone.low is not None
    assert copies.high is not None
    assert copies.low is not None
    assert independent.high is not None
    assert independent.low is not None
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert independent.high - independent.low < 0.7 * (alone.high - alone.low)


def test_searchers_without_chance_have_no_width() -> None:
    values = np.repeat([[0.2], [0.7], [0.9]], 20, axis=1)
    assert iqm_estimate(values, draw_seeds(list("abc"), 20, 100, RNG(0)))[:3] == pytest.approx((0.65, 0.65, 0.65))


def test_the_median_counts_what_never_arrived() -> None:
    draws = draw_seeds(["isic"], 5, 500, RNG(0))
    found = median_estimate(np.asarray([[3.0, 4, 5, np.inf, np.inf]]), draws)
    assert found.value == 5
    assert found.low == 3
    assert found.high == np.inf
    half = np.asarray([[3.0, 5, np.inf, np.inf]])
    assert median_estimate(half, draw_seeds(["isic"], 4, 500, RNG(0))).value == np.inf
    assert median_estimate(np.full((1, 5), np.inf), draws)[:3] == (np.inf, np.inf, np.inf)


def test_probability_of_improvement_by_hand() -> None:
    x, y = np.asarray([[1.0, 5.0], [0.0, 0.0]]), np.asarray([[0.0, 1.0], [1.0, 1.0]])
    draws = draw_seeds(["a", "b"], 2, 300, RNG(0)), draw_seeds(["a", "b"], 2, 300, RNG(1))
    # Pairs (1, 0) won, (1, 1) drawn, (5, 0) and (5, 1) won: 3.5 of 4.
    assert probability_of_improvement(x, y, *draws).value == pytest.approx((3.5 / 4 + 0) / 2)
    assert probability_of_improvement(y, x, *draws).value == pytest.approx(1 - 3.5 / 8)
    assert probability_of_improvement(x, x, *draws).value == pytest.approx(0.5)


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    rng = RNG(0)
    x, y = rng.normal(0.5, 1, (3, 20, 2)), rng.normal(0, 1, (3, 20, 2))
    sources = ["a", "a", "b"]
    found = probability_of_improvement(
        x, y, draw_seeds(sources, 20, 2000, RNG(1)), draw_seeds(sources, 20, 2000, RNG(2))
    )
    expected = [stats.mannwhitneyu(x[t, :, p], y[t, :, p]).statistic / 400 for t in range(3) for p in range(2)]
    assert found.value == pytest.approx(np.mean(expected))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    resampled = [
        np.mean([(x[t, i[t], p][:, None] > y[t, j[t], p][None]).mean() for t in range(3) for p in range(2)])
        for i, j in zip(draw_seeds(sources, 20, 500, RNG(3)), draw_seeds(sources, 20, 500, RNG(4)), strict=True)
    ]
    assert found.high - found.low == pytest.approx(np.ptp(np.quantile(resampled, (0.025, 0.975))), rel=0.15)
