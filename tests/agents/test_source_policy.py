from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from agents.practice.landscape import Landscape
from agents.practice.learner import new_network, practise
from agents.practice.settings import PracticeSettings
from agents.search.experience import experience_of
from agents.source_policy import SourcePolicy, modelled
from agents.surrogate.belief import learn_prior
from agents.surrogate.set_ensemble import SetEnsembleSettings
from rewards.objective import Axes, Objective
from tests.agents.noisy import noisy_table
from tests.agents.search.problems import Invented
from tests.agents.surrogate.tasks import task

PRACTICE = PracticeSettings(environments=8, episodes=2, updates=2, width=16, cloning=20)
ENSEMBLE = SetEnsembleSettings(members=1, width=8, steps=5)
SOURCES = tuple(Invented(5, seed).experience(f"task {seed}") for seed in (0, 1))
POLICY = SourcePolicy(SOURCES, PRACTICE, ENSEMBLE)


def test_it_learns_once_for_each_seed() -> None:
    policy = SourcePolicy(SOURCES, PRACTICE, ENSEMBLE)
    assert policy.network(0) is policy.network(0)
    assert policy.prior(0) is policy.prior(0)
    first, again, other = (each.state_dict() for each in (policy.network(0), POLICY.network(0), policy.network(1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_its_prior_is_that_of_its_sources() -> None:
    features = SOURCES[0].group_features, SOURCES[0].task_features, np.eye(5, dtype=bool)
    expected = learn_prior(SOURCES, ENSEMBLE, 3)
    np.testing.assert_array_equal(POLICY.prior(3).mean(*features), expected.mean(*features))
    assert POLICY.prior(3).kernels == expected.kernels


def test_a_given_policy_is_not_learned_again() -> None:
    given = new_network(Landscape.of_table(SOURCES[0]), 16, seed=0)
    policy = dataclasses.replace(POLICY, given=given)
    assert policy.network(0) is policy.network(1) is given


def test_bare_tables_are_practised_on_only_if_that_is_asked_for_and_they_are_complete() -> None:
    few = dataclasses.replace(SOURCES[1], outcomes=dict(list(SOURCES[1].outcomes.items())[::3]))
    bare = SourcePolicy((SOURCES[0], few), PRACTICE, ENSEMBLE, smooth=False).network(0).state_dict()
    by_hand = practise([Landscape.of_table(SOURCES[0]), modelled(few)], PRACTICE, seed=0).state_dict()
    assert all(torch.equal(bare[name], by_hand[name]) for name in bare)
    smooth = SourcePolicy((SOURCES[0], few), PRACTICE, ENSEMBLE).network(0).state_dict()
    assert not all(torch.equal(bare[name], smooth[name]) for name in bare)


def test_what_a_model_makes_of_a_source_is_nearer_the_truth_than_its_noisy_measurements() -> None:
    truth, noisy = task(0, toggles=7), task(0, toggles=7, luck=0.1)
    masks = np.asarray(list(truth.outcomes))
    true, measured = (np.asarray(list(each.outcomes.values())) for each in (truth, noisy))
    found = modelled(noisy).axes(masks)
    assert np.abs(found - true).mean() < 0.6 * np.abs(measured - true).mean()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_gaps_are_filled(seed: int) -> None:
    truth = task(seed, toggles=7)
    rng = np.random.default_rng(seed)
    few = {mask: axes for mask, axes in truth.outcomes.items() if rng.random() < 0.25}
    landscape = modelled(dataclasses.replace(truth, outcomes=few))
    masks = [mask for mask in truth.outcomes if mask not in few]
    true = np.asarray([truth.outcomes[mask] for mask in masks])
    residuals = landscape.axes(np.asarray(masks)) - true
    assert (residuals**2).sum() < 0.1 * ((true - true.mean(axis=0)) ** 2).sum()


def test_what_repeats_say_is_luck_is_not_practised_on() -> None:
    quiet = experience_of(noisy_table(seed=1), Objective())
    assert quiet.noise is not None
    assert all(sd > 0 for sd in quiet.noise)
    lucky = max(quiet.outcomes, key=lambda mask: quiet.outcomes[mask].privacy if any(mask) else -1.0)
    shrunk = []
    for factor in (0.1, 10.0):
        known = dataclasses.replace(quiet, noise=Axes(*(factor * sd for sd in quiet.noise)))
        axes = modelled(known).axes(np.asarray([lucky]))[0]
        shrunk.append(abs(float(axes[1]) - quiet.outcomes[lucky].privacy))
    assert shrunk[0] < shrunk[1]
