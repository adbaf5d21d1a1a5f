from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.course import values
from envs.methods import METHODS
from envs.mitigations import find_mitigations
from envs.mitigations.agc import LossBank
from envs.mitigations.early_stop import LossWatcher
from envs.mitigations.ema import Average
from rewards.errors import InputError
from tests.envs.mitigations.conftest import MakeWard, Ward, losses_after, same


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The weights after each step of every learner, as they come."""
    found: list[list[Tensor]] = []
    stepped = Average.stepped

    def noting(self: Average, parameters: Sequence[nn.Parameter]) -> None:
        found.append(values(parameters))
        stepped(self, parameters)

    monkeypatch.setattr(Average, "stepped", noting)
    return found


def ends(ward: Ward) -> list[Tensor]:
    return values(list(ward.attachment.selected((True,) * 8).values()))


def near(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True)) < 1e-5


def test_decay_0_is_plain_training(ward: Ward) -> None:
    assert same(ward.after({"ema": {"decay": 0.0}}), ward.after({})), "bit by bit"


@pytest.mark.parametrize("settings", [{}, {"decay": 0.5}, {"power": 0.5}])
def test_it_ends_with_the_average_of_its_steps(
    ward: Ward, passed: list[list[Tensor]], settings: dict[str, float]
) -> None:
    ward.treat({"ema": settings})
    assert len(passed) == ward.budget.steps
    expected = passed[0]
    for n, state in enumerate(passed[1:], start=2):
        keep = min(settings.get("decay", 0.9999), 1 - n ** -settings.get("power", 0.75))
        expected = [keep * mean + (1 - keep) * new for mean, new in zip(expected, state, strict=True)]
    assert near(ends(ward), expected)
    assert not near(ends(ward), passed[-1])


def test_power_1_is_the_mean_of_all_steps(ward: Ward, passed: list[list[Tensor]]) -> None:
    ward.treat({"ema": {"power": 1.0}})
    assert near(ends(ward), [torch.stack(each).mean(dim=0) for each in zip(*passed, strict=True)])


def test_looks_on_the_way_leave_the_steps_as_they_are(ward: Ward, passed: list[list[Tensor]]) -> None:
    ward.after({"ema": {}})
    ward.after({"ema": {}, "early_stop": {"every": 3, "patience": 9}})
    alone, watched = passed[:8], passed[8:]
    for one, other in zip(alone, watched, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_parameters_are_their_own_again_after_an_error() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    average = Average(0.9, 0.75)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    assert average.optimizer(optimizer) is optimizer
    with torch.no_grad():
        parameters[0].add_(1)
    with suppress(ZeroDivisionError), average.delivered(parameters):
        assert parameters[0].tolist() == [1, 1], "no step so far"
        raise ZeroDivisionError
    assert parameters[0].tolist() == [2, 2]


def test_of_learners_the_averages_are_averaged(ward: Ward, passed: list[list[Tensor]]) -> None:
    """Two shards of three images, one round: the mean of two averages of four steps each."""
    ward.treat({"ema": {"power": 1.0}, "iet": {"shards": 2, "rounds": 1}})
    assert len(passed) == 8
    assert near(ends(ward), [torch.stack(each).mean(dim=0) for each in zip(*passed, strict=True)])


def test_each_learner_goes_on_from_the_averaged_average(ward: Ward, passed: list[list[Tensor]]) -> None:
    settings = {"decay": 0.6, "power": 1.0}
    ward.treat({"ema": settings, "iet": {"shards": 2, "rounds": 2}})
    shadows = [passed[0], passed[2]]  # two steps of the first learner, then two of the second, and so again
    for first in (0, 4):
        for learner in (0, 1):
            for step in (0, 1):
                n = first // 2 + step + 1
                keep = min(0.6, 1 - 1 / n)
                new = passed[first + 2 * learner + step]
                shadows[learner] = [keep * a + (1 - keep) * b for a, b in zip(shadows[learner], new, strict=True)]
        shadows = [[(a + b) / 2 for a, b in zip(*shadows, strict=True)]] * 2
    assert near(ends(ward), shadows[0])


def test_one_shard_is_the_average_alone(ward: Ward) -> None:
    assert same(ward.after({"ema": {}, "iet": {"shards": 1, "rounds": 3}}), ward.after({"ema": {}}))


@pytest.mark.parametrize("more", [{}, {"iet": {"shards": 2, "rounds": 2}}])
def test_without_a_step_it_is_the_base_model(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, more: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr(LossBank, "kept", lambda self, losses, batch: torch.zeros(len(losses), dtype=torch.bool))
    weights = ward.weights()
    assert ward.treat({"ema": {}, "agc": {}, **more}).steps == 0
    assert same(ward.weights(), weights)


@pytest.mark.parametrize("method", METHODS)
def test_beside_every_method(open_ward: MakeWard, method: str) -> None:
    ward = open_ward(method).of(steps=3)
    weights = ward.weights()
    averaged, plain = ward.after({"ema": {}}), ward.after({})
    chosen = {name for name, tensor in plain.items() if not torch.equal(tensor, weights[name])}
    moved = {name for name, tensor in averaged.items() if not torch.equal(tensor, weights[name])}
    assert moved == chosen
    assert not same(averaged, plain)


@pytest.mark.slow
def test_at_a_steady_rate_the_average_denoises_better_than_the_steps_and_knows_less(
    overfitting: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of small batches circle about something better than each of them, which the average lies nearer to."""
    ward = overfitting.of(steps=32, learning_rate=1e-3, batch_size=2, decay="none")
    looked, gaps = list[float](), list[float]()
    loss = LossWatcher._loss

    def noting(self: LossWatcher) -> float:
        looked.append(loss(self))
        return looked[-1]

    monkeypatch.setattr(LossWatcher, "_loss", noting)
    monkeypatch.setattr(LossWatcher, "choice", lambda self: len(self.losses) - 1)
    watched: dict[str, dict[str, Any]] = {"early_stop": {"every": 4}}
    for chosen in (watched, watched | {"ema": {}}):
        heldout, train = losses_after(ward, chosen)
        gaps.append((heldout.mean() - train.mean()).item())
    steps, averages = looked[3:8], looked[11:]
    assert len(averages) == 5
    assert sum(averages) < 0.97 * sum(steps)
    assert gaps[1] < 0.95 * gaps[0]


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"power": 0}, {"power": 1.5}, {"decay": "0.9"}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.ema\.{name}="):
        find_mitigations({"ema": settings})
