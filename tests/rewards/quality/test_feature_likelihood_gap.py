from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.quality import feature_likelihood_gap as module
from rewards.quality.feature_likelihood_gap import FeatureLikelihoodGap, Source, feature_likelihood_gap
from rewards.reference import Reference
from rewards.sample import Sample


def features(n: int, d: int = 6, seed: int = 0) -> Tensor:
    """Correlated features of one source."""
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(12345))
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mixing


def gap(sets: list[Tensor], dimensions: int = 64) -> float:
    generated, train, judge = sets
    return feature_likelihood_gap(generated, train, judge, dimensions).value


def prepared(sets: list[Tensor], fitted: list[Tensor], kept: int) -> list[np.ndarray]:
    """scikit-learn's standardisation and components, to a mean variance of 1."""
    pooled = torch.cat(fitted).double().numpy()
    scaler = StandardScaler().fit(pooled)
    components = PCA(kept).fit(scaler.transform(pooled))
    scale = components.explained_variance_.mean() ** 0.5
    return [components.transform(scaler.transform(each.double().numpy())) / scale for each in sets]


def log_components(points: np.ndarray, centres: np.ndarray, variances: np.ndarray) -> np.ndarray:
    return np.array([multivariate_normal(c, v).logpdf(points) for c, v in zip(centres, variances, strict=True)]).T


@pytest.mark.parametrize("kept", [2, 4])
def test_equals_a_gradient_methods_fit_of_the_same_likelihood(kept: int) -> None:
    generated, train, judge = features(5, seed=1), features(30), features(30, seed=2)
    centres, x, y = prepared([generated, train, judge], [train, judge], kept)

    def cost(log_variances: np.ndarray) -> float:
        return -float(logsumexp(log_components(x, centres, np.exp(log_variances)), axis=1).mean())

    nearest = (np.linalg.norm(x[:, None] - centres, axis=2) ** 2).min(axis=1).mean() / kept
    fit = minimize(cost, np.full(5, np.log(nearest)), bounds=[(np.log(0.01), None)] * 5, method="L-BFGS-B")
    nlls = [-100 / kept * logsumexp(log_components(each, centres, np.exp(fit.x)), axis=1).mean() for each in (x, y)]
    assert feature_likelihood_gap(generated, train, judge, kept).value == pytest.approx(nlls[0] - nlls[1], abs=0.2)


def test_of_copies_it_is_scikit_learns_kernel_density_at_the_least_variance() -> None:
    train, judge = features(40), features(40, seed=2)
    x, y = prepared([train, judge], [train, judge], 6)
    density = KernelDensity(bandwidth=module._FLOOR**0.5).fit(x)
    expected = -100 / 6 * (density.score_samples(x).mean() - density.score_samples(y).mean())
    assert feature_likelihood_gap(train, train, judge).value == pytest.approx(expected, rel=1e-2)


def test_each_step_of_the_fit_raises_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = torch.cdist(features(40), features(30, seed=1)).double().square() / 10
    means = []
    for steps in range(8):
        monkeypatch.setattr(module, "_STEPS", steps)
        means.append(float(module._log_density(squares, module._fit(squares, 6), 6).mean()))
    assert means == sorted(means)
    assert means[-1] > means[0]


def test_copies_heldout_images_and_images_unlike_all() -> None:
    train, judge, heldout = features(200, 20), features(200, 20, seed=1), features(200, 20, seed=2)
    null = feature_likelihood_gap(judge[:100], train, judge[100:]).value
    honest = feature_likelihood_gap(heldout, train, judge)
    copied = feature_likelihood_gap(train, train, judge)
    some = feature_likelihood_gap(torch.cat([train[:40], heldout[:160]]), train, judge)
    near = feature_likelihood_gap(train + 0.3 * heldout, train, judge)
    far = feature_likelihood_gap(heldout + 1000, train, judge)
    assert honest.low is not None
    assert honest.low < null < 5
    assert honest.value == pytest.approx(null, abs=10)
    assert far.value == pytest.approx(0, abs=0.5)
    for memorized in (copied, some, near):
        assert memorized.high is not None
        assert memorized.high < min(honest.low, null)
    assert copied.value < some.value


def test_unequal_sizes_do_not_favour_either_set() -> None:
    gaps = [
        feature_likelihood_gap(features(100, 40, 3 * i), features(n, 40, 3 * i + 1), features(m, 40, 3 * i + 2)).value
        for n, m in ((300, 60), (60, 300))
        for i in range(10)
    ]
    # Components fitted to one of the sets more than to the other would tell them apart without any copy.
    assert np.mean(gaps[:10]) == pytest.approx(0, abs=4)
    assert np.mean(gaps[10:]) == pytest.approx(0, abs=4)


def test_interval_is_that_of_a_difference_of_two_means() -> None:
    generated, train, judge = features(50, seed=1), features(100), features(80, seed=2)
    estimate = feature_likelihood_gap(generated, train, judge)
    drawn = [module._drawn(each.double(), 80) for each in (train, judge)]
    project = module._Projection(torch.cat(drawn), 64)
    variances = module._fit(module._squared_distances(project(train), project(generated)), 6)
    costs = [
        -100 / 6 * module._log_density(module._squared_distances(project(each), project(generated)), variances, 6)
        for each in drawn
    ]
    half = 1.96 * float(sum(cost.var() / 80 for cost in costs)) ** 0.5
    assert estimate.n == 160
    assert estimate.value == pytest.approx(float(costs[0].mean() - costs[1].mean()))
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.3 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.3 * half)
    assert feature_likelihood_gap(generated, train, judge) == estimate


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    sets: dict[Source, Tensor] = {
        "generated": features(20, seed=1),
        "train": features(20),
        "judge": features(20, seed=2),
    }
    metric = FeatureLikelihoodGap("pixels", dimensions=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    for source, given_features in sets.items():
        metric.update(given_features[order][cut:], source)
        metric.update(given_features[order][:cut], source)
    assert float(metric.compute()) == pytest.approx(gap(list(sets.values()), 3), abs=1e-3)


def test_units_and_offsets_of_features_do_not_matter() -> None:
    sets = [features(30, seed=seed) for seed in range(3)]
    moved = [each * torch.tensor([1.0, 5.0, 0.1, 100.0, 3.0, 1.0]) + 7 for each in sets]
    assert gap(moved) == pytest.approx(gap(sets), abs=0.05)


@pytest.mark.parametrize("d", [3, 50])
def test_features_that_never_change_are_no_trouble(d: int) -> None:
    constant = [torch.ones(5, d) for _ in range(3)]
    assert gap(constant) == pytest.approx(0)
    widened = [torch.cat([features(30, seed=seed), torch.ones(30, d)], dim=1) for seed in range(3)]
    plain = [features(30, seed=seed) for seed in range(3)]
    assert gap(widened) == pytest.approx(gap(plain), abs=1e-3)


def test_more_features_than_images_and_fewer_are_projected_alike() -> None:
    images = features(12, d=30).double()
    wide, narrow = module._Projection(images, 5), module._Projection(torch.cat([images] * 4), 5)
    one, other = wide(images), narrow(images)
    one, other = (torch.cdist(each, each) / each.std() for each in (one, other))
    torch.testing.assert_close(one, other)


def reference(train: Tensor, judge: Tensor) -> Reference:
    return Reference(
        train_images=torch.zeros(len(train), 3, 2, 2, dtype=torch.uint8),
        judge_size=len(judge),
        labels=torch.arange(len(train)),
        train={"pixels": train},
        flipped_train={"pixels": train},
        judge={"pixels": judge},
        judge_neighbors={},
        train_neighbors={},
        nulls={"feature_likelihood_gap": None},
    )


def sample(generated: Tensor, train: Tensor, judge: Tensor) -> Sample:
    images = torch.zeros(len(generated), 3, 2, 2, dtype=torch.uint8)
    return Sample(reference(train, judge), images, {"pixels": generated}, {}, Evidence())


def test_is_measured_on_what_the_suite_shares() -> None:
    generated, train, judge = (features(20, seed=seed) for seed in range(3))
    metric = FeatureLikelihoodGap("pixels")
    measured = metric.measure(sample(generated, train, judge))
    assert measured.value == feature_likelihood_gap(generated, train, judge).value
    null = metric.null(reference(train, judge))
    assert null is not None
    assert abs(null) < 60
    assert metric.null(reference(train, judge[:2])) is None
    assert metric.null(reference(train[:1], judge)) is None


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1)])
def test_too_few_images_are_no_measurement(n: int, m: int) -> None:
    measured = FeatureLikelihoodGap("pixels").measure(sample(features(5), features(n), features(m)))
    assert measured.value is None
    assert measured.note == f"needs 2 training and 2 held-out images, got {n} and {m}"
    assert FeatureLikelihoodGap("pixels").measure(sample(features(0), features(5), features(5))).note


def test_more_is_better_and_a_component_is_needed() -> None:
    assert FeatureLikelihoodGap.higher_is_better is True
    with pytest.raises(InputError, match=r"feature_likelihood_gap\.dimensions=0"):
        FeatureLikelihoodGap("pixels", dimensions=0)
