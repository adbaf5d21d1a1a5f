"""Hooks that go on from their state do what they would have done without the break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.batches import TrainingSet, endless_batches
from envs.hooks import Hooks
from envs.losses import sample_losses
from tests.envs.mitigations.conftest import Ward

SETTINGS: dict[str, dict[str, Any]] = {
    "agc": {"mem_ratio": 1.0, "decay": 0.0},
    "caption_noise": {"probability": 0.5, "std": 0.1},
    "threshold": {"value": 0.001},
    "dropout": {"p": 0.5},
}


def steps(ward: Ward, data: TrainingSet, hooks: Hooks, seed: int) -> list[Tensor]:
    """What hooks make of three batches, all of them at two timesteps."""
    draws = endless_batches(data, ward.budget, 2, seed, hooks=[hooks])
    found = []
    for _ in range(3):
        batch = next(draws)
        with torch.no_grad(), hooks.learning():
            admitted = hooks.admitted(batch)
            losses = sample_losses(ward.backbone, batch)
            kept = hooks.kept(losses, batch)
        found += [batch.states, losses, *(each for each in (admitted, kept) if each is not None)]
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_they_go_on_where_they_were(ward: Ward, name: str) -> None:
    regimen = ward.regimen({name: SETTINGS[name]})
    data, (make,) = regimen.training_set, regimen.treatment.hooks
    whole, other = make(0), make(0)
    steps(ward, data, whole, 1)
    state = {key: tensor.clone() for key, tensor in whole.state().items()}
    expected, figures = steps(ward, data, whole, 2), whole.figures()

    other.load(state)
    found = steps(ward, data, other, 2)
    assert len(found) == len(expected)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert other.figures() == figures
    anew = make(0)
    fresh = steps(ward, data, anew, 2)
    different = len(fresh) != len(expected) or not all(torch.equal(a, b) for a, b in zip(fresh, expected, strict=True))
    assert different or anew.figures() != figures, "without the state they would not"


def test_all_that_have_something_to_remember_are_tested(ward: Ward) -> None:
    for name in ("ema", "deduplicate", "augment"):
        hooks = ward.regimen({name: {}}).treatment.hooks
        assert all(type(make(0)).state is Hooks.state for make in hooks), name
