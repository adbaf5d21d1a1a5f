from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from agents.surrogate.belief import NOTHING_KNOWN, Belief, Prior, as_arrays
from agents.surrogate.mixture import BeliefMixture
from envs.task import Mask
from rewards.objective import Axes
from tests.agents.surrogate.tasks import task

MASKS = np.asarray(list(itertools.product((False, True), repeat=5)))
SOURCE = task(0, luck=0.05)


def knowing(offset: float = 0.0) -> Prior:
    """What is true of the task, moved by an offset but at the anchors."""

    def mean(groups: object, whole: object, masks: np.ndarray) -> np.ndarray:
        truth = np.asarray([SOURCE.outcomes[tuple(mask)] for mask in masks.tolist()])
        inside = (masks.sum(axis=1) % masks.shape[1] > 0)[:, None]
        return np.asarray(truth + offset * inside)

    return Prior(mean, NOTHING_KNOWN.kernels)


def belief(prior: Prior, *, adapt: bool = False) -> Belief:
    return Belief(prior, SOURCE.group_features, SOURCE.task_features, adapt=adapt)


def some(count: int) -> dict[Mask, Axes]:
    return dict(list(SOURCE.outcomes.items())[3 : 3 + count])


def test_a_beliefs_evidence_is_the_density_of_what_it_knows() -> None:
    one = belief(NOTHING_KNOWN)
    one.observe(some(6))
    masks, axes = as_arrays(one.known)
    mean = NOTHING_KNOWN.mean(SOURCE.group_features, SOURCE.task_features, masks)
    expected = 0.0
    for i, kernel in enumerate(NOTHING_KNOWN.kernels):
        covariance = kernel.between(masks, masks) + kernel.nugget**2 * np.eye(len(masks))
        expected += multivariate_normal(mean[:, i], covariance).logpdf(axes[:, i])
    assert one.log_evidence() == pytest.approx(expected)


def test_beliefs_are_equally_credible_until_one_foretells_better() -> None:
    mixture = BeliefMixture([belief(knowing()), belief(knowing(0.6))])
    np.testing.assert_allclose(mixture.credibilities, [0.5, 0.5])
    mixture.observe(some(2))
    first = mixture.credibilities
    assert first[0] > 0.5
    assert first.sum() == pytest.approx(1)
    mixture.observe(some(9))
    assert mixture.credibilities[0] > max(first[0], 0.9)


def test_what_it_expects_is_the_credible_mean_and_its_draws_come_from_both() -> None:
    beliefs = [belief(knowing(-0.3)), belief(knowing())]
    mixture = BeliefMixture(beliefs)
    mixture.observe(some(1))
    weights = mixture.credibilities
    assert weights[0] < 0.5
    expected = weights[0] * beliefs[0].axes(MASKS) + weights[1] * beliefs[1].axes(MASKS)
    np.testing.assert_allclose(mixture.axes(MASKS), expected)
    draws = mixture.draws(MASKS, 40, np.random.default_rng(0))
    assert draws.shape == (40, 32, 2)
    first = round(40 * weights[0])
    assert 0 < first < 40
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(draws[:first], beliefs[0].draws(MASKS, first, rng))
    np.testing.assert_array_equal(draws[first:], beliefs[1].draws(MASKS, 40 - first, rng))
    assert mixture.known == beliefs[0].known == beliefs[1].known


def test_a_belief_that_nothing_speaks_for_is_not_drawn_from() -> None:
    mixture = BeliefMixture([belief(knowing(3.0)), belief(knowing())])
    mixture.observe(some(12))
    assert mixture.credibilities[0] < 1e-6
    alone = belief(knowing())
    alone.observe(some(12))
    draws = mixture.draws(MASKS, 10, np.random.default_rng(1))
    np.testing.assert_array_equal(draws, alone.draws(MASKS, 10, np.random.default_rng(1)))


def test_the_doubting_belief_is_drawn_from_however_well_another_foretells() -> None:
    mixture = BeliefMixture([belief(knowing()), belief(knowing()), belief(NOTHING_KNOWN), belief(knowing(3.0))])
    mixture.observe(some(12))
    sure = mixture.credibilities
    assert sure[3] < 1e-6
    np.testing.assert_allclose(sure[0], sure[1])
    draws = mixture.draws(MASKS, 80, np.random.default_rng(2))
    rng, known = np.random.default_rng(2), [belief(knowing()), belief(knowing()), belief(NOTHING_KNOWN)]
    for one in known:
        one.observe(some(12))
    counts = np.diff(np.rint(np.cumsum(0.75 * sure[:3] / sure[:3].sum()) * 80).astype(int), prepend=0)
    assert counts.sum() == 60
    expected = [one.draws(MASKS, n, rng) for one, n in zip(known, counts.tolist(), strict=True) if n]
    np.testing.assert_array_equal(draws[:60], np.concatenate(expected))
    doubting = belief(knowing(3.0))
    doubting.observe(some(12))
    np.testing.assert_array_equal(draws[60:], doubting.draws(MASKS, 20, rng))
