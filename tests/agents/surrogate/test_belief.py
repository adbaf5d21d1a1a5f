from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.surrogate.belief import NOTHING_KNOWN, Belief, Prior, as_arrays, learn_prior, uninformed
from agents.surrogate.gaussian_process import Kernel, fit_kernel
from agents.surrogate.set_ensemble import SetEnsembleSettings, learn_ensemble
from rewards.errors import InputError
from rewards.objective import Axes
from tests.agents.surrogate.tasks import task

MASKS = np.asarray(list(itertools.product((False, True), repeat=5)))
KERNEL = Kernel(amplitude=0.25, rates=(2.0,), linear=0.35, nugget=0.05)
QUICK = SetEnsembleSettings(members=1, width=16, steps=25)


def belief(*, adapt: bool = False, prior: Prior = NOTHING_KNOWN) -> Belief:
    source = task(0)
    return Belief(prior, source.group_features, source.task_features, adapt=adapt)


def numbers(kernel: Kernel) -> tuple[float, ...]:
    return (kernel.amplitude, kernel.linear, kernel.nugget, *kernel.rates)


def at(mask: NDArray[np.bool_]) -> int:
    return int("".join(str(int(bit)) for bit in mask), 2)


@pytest.mark.parametrize("adapt", [False, True])
def test_anchors_are_known_from_the_start(adapt: bool) -> None:
    new = belief(adapt=adapt)
    assert new.known == {(False,) * 5: Axes(0, 1), (True,) * 5: Axes(1, 0)}
    draws = new.draws(MASKS, 50, np.random.default_rng(0))
    assert (draws[:, 0] == [0, 1]).all()
    assert (draws[:, -1] == [1, 0]).all()
    assert np.ptp(draws[:, 1:-1], axis=0).min() > 0.05, "the rest is not"


@pytest.mark.parametrize("adapt", [False, True])
def test_what_is_known_is_the_same_in_every_draw_and_all_axes_are_in_the_unit_square(adapt: bool) -> None:
    outcomes = dict(list(task(0, luck=0.2).outcomes.items())[5:17])
    told = belief(adapt=adapt)
    told.observe(outcomes)
    draws = told.draws(MASKS, 40, np.random.default_rng(1))
    for mask, axes in outcomes.items():
        assert (draws[:, at(np.asarray(mask))] == axes).all()
    for found in (draws, told.axes(MASKS)):
        assert found.min() >= 0
        assert found.max() <= 1
    others = [at(m) for m in MASKS if tuple(m.tolist()) not in told.known]
    assert draws[:, others].std(axis=0).min() > 0.01


def test_an_observation_draws_the_expectation_towards_it_and_its_neighbours_a_little() -> None:
    flat = Prior(lambda *seen: np.stack([on := seen[2].mean(axis=1), 1 - on], axis=1), (KERNEL, KERNEL))
    told, mask = belief(prior=flat), (True, True, False, False, False)
    before = told.axes(MASKS)
    told.observe({mask: Axes(0.9, 0.05)})
    after = told.axes(MASKS)
    i = at(np.asarray(mask))
    near = at(np.asarray((True, True, True, False, False)))
    assert before[i].tolist() == pytest.approx([0.4, 0.6], abs=0.02), "the line between the anchors"
    assert after[i].tolist() == pytest.approx([0.9, 0.05], abs=0.1)
    assert 0.05 < after[near, 0] - before[near, 0] < after[i, 0] - before[i, 0]
    assert 0.05 < before[near, 1] - after[near, 1] < before[i, 1] - after[i, 1]


def test_what_is_foretold_of_a_mask_does_not_know_its_measurement() -> None:
    outcomes = dict(list(task(0, luck=0.2).outcomes.items())[3:20])
    told = belief()
    told.observe(outcomes)
    foretold = told.foretold()
    assert foretold.keys() == told.known.keys()
    assert foretold[(False,) * 5] == Axes(0, 1)
    assert foretold[(True,) * 5] == Axes(1, 0)
    for mask in outcomes:
        without = belief()
        without.observe({other: axes for other, axes in outcomes.items() if other != mask})
        np.testing.assert_allclose(foretold[mask], without.axes(np.asarray([mask]))[0], atol=1e-9)


def test_draws_spread_as_far_as_the_belief_is_unsure() -> None:
    """Moments of many draws against the posterior, where clipping plays no role."""
    kernel = Kernel(amplitude=0.05, rates=(2.0,), linear=0.05, nugget=0.03)
    told = belief(prior=Prior(lambda *seen: np.full((len(seen[2]), 2), 0.5), (kernel, kernel)))
    told.observe({(True, False, False, False, False): Axes(0.55, 0.45)})
    process = told.processes[0]
    unknown = MASKS[3:9]
    draws = told.draws(unknown, 40_000, np.random.default_rng(0))[..., 0]
    covariance = process.covariance(unknown) + kernel.nugget**2 * np.eye(len(unknown))
    np.testing.assert_allclose(draws.mean(axis=0), 0.5 + process.mean(unknown), atol=0.002)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=2e-4)


def test_draws_are_functions_of_their_seed() -> None:
    told = belief()
    first, again, other = (told.draws(MASKS, 3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_kernels_are_fitted_to_measurements_only_on_demand() -> None:
    outcomes = task(0, luck=0.3).outcomes
    kernels = {}
    for adapt in (False, True):
        told = belief(adapt=adapt)
        told.observe(outcomes)
        kernels[adapt] = told.processes[1].kernel
    start = NOTHING_KNOWN.kernels[1]
    assert kernels[False] == start
    masks, axes = as_arrays(told.known)
    expected = fit_kernel([(masks, axes[:, 1] - (1 - masks.mean(axis=1)))], start)
    assert numbers(kernels[True]) == pytest.approx(numbers(expected))
    assert numbers(kernels[True]) != pytest.approx(numbers(start), rel=0.05)


def test_the_uninformed_mean_goes_from_anchor_to_anchor_and_quality_saturates() -> None:
    source = task(0)
    quality, privacy = uninformed(source.group_features, source.task_features, MASKS).T
    assert (quality[0], privacy[0], quality[-1], privacy[-1]) == (0, 1, 1, 0)
    share = MASKS.mean(axis=1)
    np.testing.assert_allclose(privacy, 1 - share)
    by_size = [quality[share == k / 5] for k in range(6)]
    assert all(np.ptp(each) == 0 for each in by_size), "the number of toggles alone decides"
    gains = np.diff([each[0] for each in by_size])
    assert (gains > 0).all()
    assert (np.diff(gains) < 0).all()


def test_with_one_task_nothing_is_known_of_how_far_a_model_is_off() -> None:
    source = task(0)
    prior = learn_prior([source], QUICK, seed=2)
    assert prior.kernels == NOTHING_KNOWN.kernels
    features = source.group_features, source.task_features
    np.testing.assert_array_equal(
        prior.mean(*features, MASKS), learn_ensemble([source], QUICK, seed=2).axes(*features, MASKS)
    )


@pytest.mark.parametrize("envs", [("a", "a", "b"), ("a", "a", "a")])
def test_how_far_a_model_is_off_is_measured_where_it_was_not_learned(envs: tuple[str, ...]) -> None:
    """Tasks of one data set are left out together: a twin would make the model look better than on the next one."""
    sources = [task(seed, env=env) for seed, env in enumerate(envs)]
    folds = [sources[:2], sources[2:]] if len(set(envs)) > 1 else [[source] for source in sources]
    residuals = []
    for number, fold in enumerate(folds):
        model = learn_ensemble([source for source in sources if source not in fold], QUICK, seed=number)
        for source in fold:
            masks, axes = as_arrays(source.outcomes)
            residuals.append((masks, axes - model.axes(source.group_features, source.task_features, masks)))
    found = learn_prior(sources, QUICK, seed=0).kernels
    for axis in range(2):
        expected = fit_kernel([(masks, off[:, axis]) for masks, off in residuals], NOTHING_KNOWN.kernels[axis])
        assert numbers(found[axis]) == pytest.approx(numbers(expected))


def test_other_features_are_one_line() -> None:
    other = dataclasses.replace(task(1), group_feature_names=("gain", "leak", "something"))
    with pytest.raises(InputError, match="env 1 and env 0 have different features"):
        learn_prior([task(0), other], QUICK, seed=0)
    other = dataclasses.replace(task(1), task_feature_names=("a", "c"))
    with pytest.raises(InputError, match="different features"):
        learn_prior([task(0), other], QUICK, seed=0)
