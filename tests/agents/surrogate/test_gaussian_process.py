from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal, norm

from agents.surrogate import gaussian_process
from agents.surrogate.gaussian_process import LEAST_NUGGET, Bits, Floats, GaussianProcess, Kernel, fit_kernel

RATES = (0.5, 1.0, 2.0, 4.0, 3.0)
KERNEL = Kernel(amplitude=0.4, rates=RATES, linear=0.3, nugget=0.07)

PRIOR = Kernel(amplitude=0.25, rates=(2.0,), linear=0.35, nugget=0.05)
"""Where fits start."""


def drawn(count: int, toggles: int, seed: int = 0) -> Bits:
    """Masks, each once."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(2**toggles, count, replace=False)
    return ((numbers[:, None] >> np.arange(toggles)) & 1).astype(bool)


def residuals_of(kernel: Kernel, masks: Bits, seed: int) -> Floats:
    """One draw of what a kernel expects."""
    covariance = kernel.between(masks, masks) + kernel.nugget**2 * np.eye(len(masks))
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(masks)), covariance)


def by_loops(kernel: Kernel, left: Bits, right: Bits) -> Floats:
    """The formula of `Kernel`, number by number."""
    toggles = left.shape[1]
    rates = kernel.rates if len(kernel.rates) > 1 else kernel.rates * toggles
    found = np.empty((len(left), len(right)))
    for (i, x), (j, y) in itertools.product(enumerate(left.tolist()), enumerate(right.tolist())):
        apart = sum(rate for rate, a, b in zip(rates, x, y, strict=True) if a != b)
        together = sum(1 if a == b else -1 for a, b in zip(x, y, strict=True))
        found[i, j] = kernel.amplitude**2 * math.exp(-apart / toggles) + kernel.linear**2 * together / toggles
    return found


@pytest.mark.parametrize("rates", [RATES, (1.5,)])
def test_the_kernel_is_its_formula(rates: tuple[float, ...]) -> None:
    kernel = dataclasses.replace(KERNEL, rates=rates)
    left, right = drawn(7, 5, 1), drawn(4, 5, 2)
    np.testing.assert_allclose(kernel.between(left, right), by_loops(kernel, left, right), rtol=1e-12)


def test_the_smooth_part_is_combos_diffusion_kernel() -> None:
    """Each differing toggle multiplies by tanh(beta)."""
    betas = np.asarray([0.3, 0.6, 1.1])
    kernel = Kernel(1.0, tuple((-3 * np.log(np.tanh(betas))).tolist()), 0.0, 0.1)
    masks = np.asarray(list(itertools.product((False, True), repeat=3)))
    expected = [[np.prod(np.tanh(betas)[x != y]) for y in masks] for x in masks]
    np.testing.assert_allclose(kernel.between(masks, masks), expected)


def test_it_means_the_same_for_any_number_of_toggles() -> None:
    small = drawn(20, 8)
    twice = np.repeat(small, 2, axis=1)
    np.testing.assert_allclose(PRIOR.between(small, small), PRIOR.between(twice, twice))
    values = residuals_of(PRIOR, small, seed=4)
    (one, other) = (fit_kernel([(masks, values)], PRIOR) for masks in (small, twice))
    np.testing.assert_allclose(dataclasses.astuple(one)[0], dataclasses.astuple(other)[0], rtol=1e-4)
    np.testing.assert_allclose(one.nugget, other.nugget, rtol=1e-4)


def test_repeats_that_agree_exactly_leave_some_luck() -> None:
    """Every evaluation is deterministic, so three seeds may well give one number."""
    masks = drawn(12, 5)
    kernel = fit_kernel([(masks, residuals_of(PRIOR, masks, seed=5))], PRIOR, nugget=0.0)
    assert kernel.nugget == pytest.approx(LEAST_NUGGET)


@pytest.mark.parametrize("seen", [0, 1, 12])
def test_the_posterior_is_the_textbooks(seen: int) -> None:
    masks, asked = drawn(seen, 5, 1), drawn(9, 5, 2)
    values = residuals_of(KERNEL, masks, seed=3) if seen else np.zeros(0)
    process = GaussianProcess.condition(KERNEL, masks, values)
    covariance = by_loops(KERNEL, masks, masks) + KERNEL.nugget**2 * np.eye(seen)
    cross = by_loops(KERNEL, asked, masks)
    np.testing.assert_allclose(process.mean(asked), cross @ np.linalg.solve(covariance, values), atol=1e-10)
    expected = by_loops(KERNEL, asked, asked) - cross @ np.linalg.solve(covariance, cross.T)
    np.testing.assert_allclose(process.covariance(asked), expected, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), seen=st.integers(0, 25), nugget=st.sampled_from([1e-3, 0.05, 0.5]))
def test_covariances_are_positive_semidefinite_and_only_shrink(seed: int, seen: int, nugget: float) -> None:
    kernel, asked = dataclasses.replace(KERNEL, nugget=nugget), drawn(32, 5)
    masks = drawn(seen, 5, seed)
    covariance = GaussianProcess.condition(kernel, masks, np.zeros(seen)).covariance(asked)
    assert np.linalg.eigvalsh(covariance).min() > -1e-8
    assert (np.diagonal(covariance) <= np.diagonal(kernel.between(asked, asked)) + 1e-9).all()


def test_what_the_others_tell_of_each_is_as_if_it_had_never_been_observed() -> None:
    kernel, masks = Kernel(0.5, (2.0,), 0.3, 0.1), drawn(9, 5)
    residuals = residuals_of(kernel, masks, 3)
    process = GaussianProcess.condition(kernel, masks, residuals)
    others = [np.arange(9) != i for i in range(9)]
    refitted = [GaussianProcess.condition(kernel, masks[o], residuals[o]).mean(masks[~o])[0] for o in others]
    np.testing.assert_allclose(process.leave_one_out(residuals), refitted, atol=1e-9)


def test_without_luck_an_observation_is_the_truth() -> None:
    masks = drawn(10, 5)
    values = residuals_of(KERNEL, masks, seed=5)
    off = []
    for nugget in (0.1, 1e-2, 1e-5):
        process = GaussianProcess.condition(dataclasses.replace(KERNEL, nugget=nugget), masks, values)
        off.append(np.abs(process.mean(masks) - values).max())
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-6
    assert np.abs(process.covariance(masks)).max() < 1e-6


@pytest.mark.parametrize("rates", [RATES, (1.5,)])
def test_the_loss_is_the_negative_log_likelihood_and_its_gradient_is_right(rates: tuple[float, ...]) -> None:
    kernel = dataclasses.replace(KERNEL, rates=rates)
    masks = drawn(14, 5)
    values = residuals_of(kernel, masks, seed=6)
    pairs = gaussian_process._Pairs.of(masks, values)
    at = np.log([kernel.amplitude, kernel.linear, kernel.nugget, *rates])
    loss, gradient = pairs.loss(np.exp(at))
    covariance = by_loops(kernel, masks, masks) + kernel.nugget**2 * np.eye(len(masks))
    likelihood = multivariate_normal(np.zeros(len(masks)), covariance).logpdf(values)
    # The constant does not matter to a fit, and is left out.
    assert loss == pytest.approx(-likelihood - len(masks) / 2 * math.log(2 * math.pi))
    numeric = approx_fprime(at, lambda p: pairs.loss(np.exp(p))[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_a_fit_is_the_most_likely_kernel_under_the_prior() -> None:
    """No kernel nearby has a higher posterior, which is computed here by scipy's own densities."""
    masks = [drawn(20, 6, seed) for seed in (1, 2)]
    sets = [(each, residuals_of(Kernel(0.4, (1.0,), 0.2, 0.1), each, seed)) for seed, each in enumerate(masks)]

    def posterior(kernel: Kernel) -> float:
        logs = np.log([kernel.amplitude, kernel.linear, kernel.nugget, *kernel.rates])
        centre = np.log([PRIOR.amplitude, PRIOR.linear, PRIOR.nugget, *PRIOR.rates])
        total = norm(centre, 0.5).logpdf(logs).sum()
        for each, values in sets:
            covariance = by_loops(kernel, each, each) + kernel.nugget**2 * np.eye(len(each))
            total += multivariate_normal(np.zeros(len(each)), covariance).logpdf(values)
        return float(total)

    found = fit_kernel(sets, PRIOR)
    best = posterior(found)
    assert best > posterior(PRIOR)
    for factor in (0.9, 1.1):
        for name in ("amplitude", "linear", "nugget"):
            assert posterior(dataclasses.replace(found, **{name: factor * getattr(found, name)})) < best, name
        assert posterior(dataclasses.replace(found, rates=(factor * found.rates[0],))) < best


@pytest.mark.parametrize("nugget", [0.02, 0.1, 0.3])
def test_the_luck_of_a_measurement_is_found(nugget: float) -> None:
    true = Kernel(0.3, (0.5,), 0.3, nugget)
    sets = [(masks := drawn(48, 6, seed), residuals_of(true, masks, seed)) for seed in range(4)]
    found = fit_kernel(sets, PRIOR)
    assert nugget / 2 < found.nugget < 2 * nugget


def test_nothing_observed_leaves_the_prior() -> None:
    assert fit_kernel([], PRIOR) == PRIOR
    assert fit_kernel([(np.zeros((0, 4), dtype=bool), np.zeros(0))], KERNEL) == KERNEL


def test_a_known_nugget_is_kept_and_smooths() -> None:
    """One lucky mask among equals: the more of a measurement is known to be luck, the less of it is believed."""
    masks = np.asarray(list(itertools.product((False, True), repeat=5)))
    values = np.zeros(len(masks))
    values[7] = 0.5
    start = Kernel(0.3, (2.0,), 0.3, 0.05)
    believed = []
    for nugget in (0.01, 0.1, 0.3):
        kernel = fit_kernel([(masks, values)], start, nugget=nugget)
        assert kernel.nugget == pytest.approx(nugget)
        believed.append(GaussianProcess.condition(kernel, masks, values).mean(masks[7:8])[0])
    assert believed == sorted(believed, reverse=True)
    assert believed[0] > 0.45
    assert believed[-1] < 0.25
