from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, multivariate_normal

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


def drawn_from(mixture: BeliefMixture, beliefs: Sequence[Belief], seed: int) -> list[int]:
    """Which beliefs could have given the draws of a decision."""
    draws = mixture.draws(MASKS, 6, np.random.default_rng(seed))
    candidates = []
    for i, one in enumerate(beliefs):
        rng = np.random.default_rng(seed)
        rng.choice(len(beliefs), p=np.full(len(beliefs), 1 / len(beliefs)))  # which belief it is takes one number
        if np.array_equal(draws, one.draws(MASKS, 6, rng)):
            candidates.append(i)
    return candidates


def test_what_it_expects_is_the_credible_mean() -> None:
    beliefs = [belief(knowing(-0.3)), belief(knowing())]
    mixture = BeliefMixture(beliefs)
    mixture.observe(some(1))
    weights = mixture.credibilities
    assert weights[0] < 0.5
    expected = weights[0] * beliefs[0].axes(MASKS) + weights[1] * beliefs[1].axes(MASKS)
    np.testing.assert_allclose(mixture.axes(MASKS), expected)
    assert mixture.known == beliefs[0].known == beliefs[1].known


def test_a_decisions_draws_are_of_one_belief_and_as_often_of_each_as_it_is_credible() -> None:
    beliefs = [belief(knowing(-0.3)), belief(knowing())]
    mixture = BeliefMixture(beliefs)
    mixture.observe(some(1))
    weights = mixture.credibilities
    assert 0.1 < weights[0] < 0.5
    decisions = 400
    of = [drawn_from(mixture, beliefs, seed) for seed in range(decisions)]
    assert all(len(each) == 1 for each in of)
    assert binomtest(of.count([0]), decisions, weights[0]).pvalue > 0.01


def test_a_belief_that_nothing_speaks_for_is_not_drawn_from() -> None:
    beliefs = [belief(knowing(3.0)), belief(knowing())]
    mixture = BeliefMixture(beliefs)
    mixture.observe(some(12))
    assert mixture.credibilities[0] < 1e-6
    assert [drawn_from(mixture, beliefs, seed) for seed in range(50)] == 50 * [[1]]


def test_the_doubting_belief_is_drawn_from_however_well_another_foretells() -> None:
    beliefs = [belief(knowing()), belief(knowing(0.1)), belief(NOTHING_KNOWN), belief(knowing(3.0))]
    mixture = BeliefMixture(beliefs)
    mixture.observe(some(12))
    sure = mixture.credibilities
    assert sure[3] < 1e-6
    decisions = 400
    of = [drawn_from(mixture, beliefs, seed) for seed in range(decisions)]
    assert all(len(each) == 1 for each in of)
    assert binomtest(of.count([3]), decisions, 0.25).pvalue > 0.01
    assert binomtest(of.count([0]), decisions, 0.75 * sure[0] / sure[:3].sum()).pvalue > 0.01
