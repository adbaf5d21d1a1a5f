from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from envs.batches import TrainingSet, encode
from envs.methods import METHODS
from envs.mitigations import find_mitigations
from envs.mitigations.early_stop import EarlyStopping, LossWatcher, probe_of
from rewards.errors import InputError
from tests.envs.mitigations.conftest import MakeWard, Ward, losses_after, same

CONF = Path(__file__).parents[3] / "conf"

Settings = dict[str, dict[str, Any]]


@pytest.fixture
def heldout(ward: Ward) -> TrainingSet:
    return encode(ward.backbone, ward.dataset.heldout)


@pytest.fixture
def states(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that each look saw, as they come."""
    found: list[dict[str, Tensor]] = []
    loss = LossWatcher._loss

    def noting(self: LossWatcher) -> float:
        found.append(ward.weights())
        return loss(self)

    monkeypatch.setattr(LossWatcher, "_loss", noting)
    return found


def script(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """What the looks find, whatever the model."""
    left = list(losses)
    monkeypatch.setattr(LossWatcher, "_loss", lambda self: left.pop(0))


def looked(ward: Ward, losses: list[float], patience: int) -> tuple[int, dict[str, float]]:
    """The step at which it ends when its looks, one a step, find these; and its figures."""
    watcher = LossWatcher(ward.backbone, probe_of(encode(ward.backbone, ward.dataset.heldout), 1, 10, 0), 1, patience)
    with pytest.MonkeyPatch.context() as patch:
        script(patch, *losses)
        for step in range(1, len(losses) + 1):
            if watcher.look(step):
                return step, watcher.figures()
    return len(losses), watcher.figures()


@pytest.mark.parametrize(
    ("losses", "patience", "end", "step"),
    [
        ([4, 3, 2, 1], 1, 4, 4),
        ([1, 2, 0, 0], 1, 2, 1),
        ([1, 2, 0, 3, 4, 0], 2, 5, 3),
        ([1, 1, 1, 0], 2, 3, 1),  # equal is no improvement
        ([3, 1, math.nan, math.nan, 0], 2, 4, 2),
        ([math.nan, 2, 3, 4], 2, 4, 2),
    ],
)
def test_it_ends_after_so_many_looks_without_a_lower_loss_and_chooses_the_lowest(
    ward: Ward, losses: list[float], patience: int, end: int, step: int
) -> None:
    ended, figures = looked(ward, losses, patience)
    assert ended == end
    assert figures["early_stop.step"] == step
    assert figures["early_stop.looks"] == end
    assert figures["early_stop.loss"] == losses[step - 1]


@pytest.mark.parametrize("every", [8, 100])
def test_one_look_at_the_end_is_plain_training(ward: Ward, every: int) -> None:
    assert same(ward.after({"early_stop": {"every": every}}), ward.after({})), "bit by bit"


def test_the_result_is_the_state_that_was_chosen(
    ward: Ward, states: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ward.after({})
    base, noting = ward.weights(), LossWatcher._loss
    losses = iter([3.0, 1.0, 2.0, 2.0])

    def scripted(self: LossWatcher) -> float:
        noting(self)
        return next(losses)

    monkeypatch.setattr(LossWatcher, "_loss", scripted)
    trained = ward.treat({"early_stop": {"every": 2, "patience": 5}})
    assert same(ward.weights(), states[1])
    assert same(states[3], plain), "looks change no step"
    assert trained.figures["early_stop.step"] == 4
    ward.load(base)

    losses = iter([3.0, 1.0, 2.0])
    trained = ward.treat({"early_stop": {"every": 2, "patience": 1}})
    assert trained.steps == 6
    assert same(ward.weights(), states[1])


def test_it_looks_at_the_average_where_there_is_one(ward: Ward, states: list[dict[str, Tensor]]) -> None:
    averaged = ward.after({"ema": {}})
    ward.after({"ema": {}, "early_stop": {"every": 4, "patience": 9}})
    assert len(states) == 2
    assert same(states[-1], averaged)


def test_in_rounds_it_looks_after_each(
    ward: Ward, states: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: Settings = {"iet": {"shards": 2, "rounds": 4}, "agc": {}}
    plain = ward.after(rounds)
    ward.after({**rounds, "early_stop": {"every": 100, "patience": 9}})
    assert len(states) == 4
    assert same(states[-1], plain)
    script(monkeypatch, 1.0, 2.0, 0.0, 0.0)
    trained = ward.treat({**rounds, "early_stop": {"patience": 1}})
    assert trained.figures.items() >= {"early_stop.step": 2.0, "early_stop.looks": 2.0}.items()
    assert trained.steps == 4, "two rounds of two learners, a step each"
    assert same(ward.weights(), states[0])


def test_each_fine_tune_has_its_own_looks(ward: Ward) -> None:
    regimen = ward.regimen({"early_stop": {}})
    assert regimen.treatment.watcher is not None
    assert regimen.treatment.watcher() is not regimen.treatment.watcher()


def test_a_probe_spreads_over_images_and_timesteps(heldout: TrainingSet) -> None:
    probe = probe_of(heldout, 9, 900, 0)
    assert probe.t.tolist() == list(range(50, 900, 100))
    assert sorted(probe.rows[:6].tolist()) == list(range(6)), "every held-out image before any comes again"
    assert torch.equal(probe.latents, heldout.latents[probe.rows])
    assert torch.equal(probe.states, heldout.states[probe.rows])
    assert not torch.equal(probe.noise[0], probe.noise[6])
    assert all(torch.equal(a, b) for a, b in zip(probe, probe_of(heldout, 9, 900, 0), strict=True))
    assert not torch.equal(probe.noise, probe_of(heldout, 9, 900, 1).noise)


def test_a_look_takes_the_passes_that_it_says(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    predict = type(ward.backbone).predict

    def counting(self: Any, noisy: Tensor, t: Tensor, states: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            counted.append(len(noisy))
        return predict(self, noisy, t, states)

    monkeypatch.setattr(type(ward.backbone), "predict", counting)
    monkeypatch.setattr("envs.mitigations.early_stop.rows_at_once", lambda size: 4)
    ward.treat({"early_stop": {"every": 4, "passes": 5}})
    assert counted == [4, 1] * 2


def test_in_the_embedded_backbones_budget_looks_cost_a_tenth_of_the_forward_passes() -> None:
    inner: Mapping[str, Any] = yaml.safe_load((CONF / "inner" / "embedded.yaml").read_text())
    chosen = EarlyStopping()
    looks = math.ceil(inner["steps"] / chosen.every)
    assert looks > 2 * chosen.patience, "or it could hardly end early"
    assert looks * chosen.passes <= 0.1 * inner["steps"] * inner["batch_size"]


def test_the_loss_of_a_look_is_that_of_the_same_samples(ward: Ward, heldout: TrainingSet) -> None:
    """Against the losses of one image at a time."""
    probe = probe_of(heldout, 5, ward.backbone.timesteps, 0)
    expected = []
    for i in range(5):
        noisy, target = ward.backbone.noised(probe.latents[i : i + 1], probe.noise[i : i + 1], probe.t[i : i + 1])
        with torch.no_grad():
            predicted = ward.backbone.predict(noisy, probe.t[i : i + 1], probe.states[i : i + 1])
        expected.append((predicted - target).square().mean().item())
    watcher = LossWatcher(ward.backbone, probe, 1, 1)
    watcher.look(1)
    assert watcher.figures()["early_stop.loss"] == pytest.approx(sum(expected) / 5, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_beside_every_method(open_ward: MakeWard, method: str) -> None:
    """The result is one of the states that plain training passes, and with one look its last."""
    ward = open_ward(method).of(steps=2)
    base, plain = ward.weights(), ward.after({})
    trained = ward.treat({"early_stop": {"every": 1, "patience": 9, "passes": 4}})
    last = trained.figures["early_stop.step"] == 2
    assert same(ward.weights(), plain) == last
    assert not same(ward.weights(), base)


@pytest.mark.slow
def test_held_out_images_are_denoised_better_and_training_images_known_less(
    overfitting: Ward, by_heart: tuple[float, float]
) -> None:
    """Four images are known by heart long before the end, and others are worse off from early on."""
    heldout, train = losses_after(overfitting, {"early_stop": {"every": 4}})
    assert heldout.mean() < 0.9 * by_heart[0]
    assert heldout.mean() - train.mean() < 0.5 * (by_heart[0] - by_heart[1])


@pytest.mark.parametrize("settings", [{"every": 0}, {"patience": 1.5}, {"passes": True}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.early_stop\.{name}="):
        find_mitigations({"early_stop": settings})
