from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from envs.backbones import base
from envs.backbones.execution import Execution
from envs.batches import encode, endless_batches
from envs.hooks import Batch, Hooks
from envs.learner import Learner
from envs.methods import METHODS
from envs.mitigations import find_mitigations
from envs.mitigations.dropout import Dropping, places
from envs.mitigations.early_stop import LossWatcher
from rewards.errors import InputError
from tests.envs.mitigations.conftest import MakeWard, Ward, losses_after, same


def settings_of(denoiser: nn.Module) -> list[tuple[str, float, bool]]:
    found = [(name, getattr(module, "p", 0.0), module.training) for name, module in denoiser.named_modules()]
    return [(name, float(p) if isinstance(p, (int, float)) else 0.0, training) for name, p, training in found]


def test_probability_0_is_plain_training(ward: Ward) -> None:
    assert same(ward.after({"dropout": {"p": 0.0}}), ward.after({})), "bit by bit"


def test_it_acts_in_residual_blocks_and_feed_forward_layers_and_nowhere_else(ward: Ward) -> None:
    denoiser = ward.backbone.denoiser
    before = settings_of(denoiser)
    with Dropping(denoiser, 0.3, 0).learning():
        active = {name for name, module in denoiser.named_modules() if module.training}
        kinds = (ResnetBlock2D, FeedForward)
        owners = [name for name, module in denoiser.named_modules() if isinstance(module, kinds)]
        assert len(active) == len(owners) == len(places(denoiser))
        for owner in owners:
            assert len([name for name in active if name.startswith(f"{owner}.")]) == 1
        assert all(isinstance(denoiser.get_submodule(name), nn.Dropout) for name in active)
        assert all(module.p == 0.3 for module in places(denoiser))
    assert settings_of(denoiser) == before


def test_everything_is_put_back_after_an_error_too(ward: Ward) -> None:
    before, state = settings_of(ward.backbone.denoiser), torch.get_rng_state()
    with suppress(ZeroDivisionError), Dropping(ward.backbone.denoiser, 0.3, 0).learning():
        torch.rand(3)
        raise ZeroDivisionError
    assert settings_of(ward.backbone.denoiser) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_depend_on_the_seed_and_not_on_what_was_drawn_before(ward: Ward) -> None:
    first = ward.after({"dropout": {}})
    state = torch.get_rng_state()
    torch.rand(7)
    moved = torch.get_rng_state()
    assert same(ward.after({"dropout": {}}), first)
    assert torch.equal(torch.get_rng_state(), moved), "and they move no one else's numbers"
    torch.set_rng_state(state)
    assert not same(ward.after({}), first)


def test_masks_go_on_after_a_pause(ward: Ward) -> None:
    """One shard in three rounds pauses twice; what is drawn in a pause changes nothing."""
    chosen: dict[str, dict[str, Any]] = {"dropout": {}}
    assert same(ward.after({**chosen, "iet": {"shards": 1, "rounds": 3}}), ward.after(chosen))


def test_each_learner_has_its_own_masks(ward: Ward) -> None:
    """Two learners of the same images, batches and weights part ways."""
    data = encode(ward.backbone, ward.dataset.train)
    parameters, base_weights, found = list(ward.attachment.selected((True,) * 8).values()), ward.weights(), []
    for number in (0, 1, 0):
        treatment = ward.regimen({"dropout": {}}).treatment
        hooks: list[Hooks] = [make(number) for make in treatment.hooks]
        ward.backbone.denoiser.requires_grad_(True)
        draws = endless_batches(data, ward.budget, ward.backbone.timesteps, 0)
        Learner(ward.backbone, parameters, draws, ward.budget, hooks).learn(3)
        found.append(ward.weights())
        ward.load(base_weights)
    assert not same(found[0], found[1])
    assert same(found[0], found[2])


def test_looks_on_the_way_are_without_it(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def looked(self: LossWatcher) -> float:
        seen.append(any(module.training or module.p for module in places(ward.backbone.denoiser)))
        return 1.0

    monkeypatch.setattr(LossWatcher, "_loss", looked)
    ward.treat({"dropout": {}, "early_stop": {"every": 4, "patience": 9}})
    assert seen == [False, False]


def test_gradient_checkpointing_draws_the_same_masks_again(ward: Ward) -> None:
    plain = ward.after({"dropout": {"p": 0.3}})
    ward.backbone.denoiser.enable_gradient_checkpointing()
    checkpointed = ward.after({"dropout": {"p": 0.3}})
    assert max((checkpointed[name] - plain[name]).abs().max().item() for name in plain) < 1e-5


@pytest.mark.slow
def test_compiled_training_has_it_too(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler of C++: the same tracing, and torch's own kernels, so the masks are the same here."""
    monkeypatch.setattr(base, "_COMPILER", "aot_eager")
    eager = ward.after({"dropout": {"p": 0.3}, "early_stop": {"every": 4, "patience": 9}})
    plain = ward.after({"early_stop": {"every": 4, "patience": 9}})
    ward.backbone.execution = Execution(compile=True)
    try:
        compiled = ward.after({"dropout": {"p": 0.3}, "early_stop": {"every": 4, "patience": 9}})
    finally:
        torch.compiler.reset()
    assert max((compiled[name] - eager[name]).abs().max().item() for name in eager) < 1e-3
    assert max((plain[name] - eager[name]).abs().max().item() for name in eager) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_beside_every_method(open_ward: MakeWard, method: str) -> None:
    ward = open_ward(method).of(steps=2)
    before = settings_of(ward.backbone.denoiser)
    dropped, plain = ward.after({"dropout": {"p": 0.3}}), ward.after({})
    assert not same(dropped, plain)
    assert settings_of(ward.backbone.denoiser) == before


def test_a_batch_that_is_left_out_whole_draws_no_masks(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ward.weights()

    def nothing(self: Hooks, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.t), dtype=torch.bool)

    monkeypatch.setattr(Dropping, "admitted", nothing)
    assert ward.treat({"dropout": {}, "agc": {}}).steps == 0
    assert same(ward.weights(), weights)


@pytest.mark.slow
def test_images_are_memorized_less(overfitting: Ward, by_heart: tuple[float, float]) -> None:
    """Their losses are higher, and less below those of held-out images, which are not."""
    heldout, train = losses_after(overfitting, {"dropout": {"p": 0.3}})
    assert train.mean() > 1.1 * by_heart[1]
    assert heldout.mean() - train.mean() < 0.97 * (by_heart[0] - by_heart[1])
    assert heldout.mean() < 1.05 * by_heart[0]


def test_a_denoiser_without_a_place_for_it(ward: Ward) -> None:
    ward.backbone.denoiser = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError, match="mitigation=dropout: tiny has no residual block"):
        find_mitigations({"dropout": {}})[0].check(ward.backbone, ward.dataset.train, "full")


@pytest.mark.parametrize("p", [1.0, -0.1, "0.1", True])
def test_settings_out_of_range(p: float) -> None:
    with pytest.raises(InputError, match=r"mitigation\.dropout\.p="):
        find_mitigations({"dropout": {"p": p}})
