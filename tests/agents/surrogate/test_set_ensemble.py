from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.surrogate import set_ensemble
from agents.surrogate.belief import as_arrays
from agents.surrogate.set_ensemble import SetEnsemble, SetEnsembleSettings, learn_ensemble
from tests.agents.surrogate.tasks import task

SETTINGS = SetEnsembleSettings(members=2, width=24, steps=150, learning_rate=1e-2, blur=0.02)
FEW = SetEnsembleSettings(members=1, width=8, steps=3)


@pytest.fixture(scope="module")
def ensemble() -> SetEnsemble:
    return learn_ensemble([task(seed) for seed in range(8)], SETTINGS, seed=0)


@pytest.mark.parametrize("toggles", [5, 7])
def test_it_knows_tasks_that_it_has_never_seen(ensemble: SetEnsemble, toggles: int) -> None:
    """With the number of groups that it knows, and with another."""
    explained = []
    for seed in (100, 101, 102):
        unseen = task(seed, toggles=toggles)
        masks, axes = as_arrays(unseen.outcomes)
        found = ensemble.axes(unseen.group_features, unseen.task_features, masks)
        explained.append(1 - ((found - axes) ** 2).sum(axis=0) / ((axes - axes.mean(axis=0)) ** 2).sum(axis=0))
    assert np.mean(explained) > 0.9
    assert np.min(explained) > 0.8


def test_the_order_of_groups_and_of_masks_plays_no_role(ensemble: SetEnsemble) -> None:
    unseen = task(100)
    masks, _ = as_arrays(unseen.outcomes)
    expected = ensemble.axes(unseen.group_features, unseen.task_features, masks)
    order, rows = [3, 0, 4, 1, 2], np.random.default_rng(0).permutation(len(masks))
    moved = ensemble.axes(unseen.group_features[order], unseen.task_features, masks[rows][:, order])
    np.testing.assert_allclose(moved, expected[rows], atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.5, "masks differ"


def test_members_are_averaged(ensemble: SetEnsemble) -> None:
    unseen = task(100)
    masks, _ = as_arrays(unseen.outcomes)
    features = unseen.group_features, unseen.task_features
    alone = [SetEnsemble((member,)).axes(*features, masks) for member in ensemble.members]
    assert np.abs(alone[0] - alone[1]).max() > 1e-4, "they differ"
    np.testing.assert_allclose(ensemble.axes(*features, masks), np.mean(alone, axis=0), atol=1e-6)


def test_the_same_seed_gives_the_same_ensemble_and_nobody_elses_chance_is_touched() -> None:
    sources = [task(0), task(1, toggles=4)]
    masks, _ = as_arrays(sources[0].outcomes)
    features = sources[0].group_features, sources[0].task_features
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = learn_ensemble(sources, FEW, seed=3).axes(*features, masks)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    np.testing.assert_array_equal(learn_ensemble(sources, FEW, seed=3).axes(*features, masks), first)
    assert (learn_ensemble(sources, FEW, seed=4).axes(*features, masks) != first).any()


def test_it_takes_one_thread_whatever_the_caller_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number adds up in another order: the same seed would give another ensemble."""
    seen: list[int] = []
    forward = set_ensemble._SetNetwork.forward

    def watched(self: set_ensemble._SetNetwork, *arguments: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(self, *arguments)

    monkeypatch.setattr(set_ensemble._SetNetwork, "forward", watched)
    source, before = task(0), torch.get_num_threads()
    masks, _ = as_arrays(source.outcomes)
    torch.set_num_threads(3)
    try:
        learn_ensemble([source], FEW, seed=0).axes(source.group_features, source.task_features, masks)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * (FEW.steps + 1)
