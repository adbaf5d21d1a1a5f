from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from envs.backbones.execution import Execution
from envs.backbones.latent import LatentBackbone
from envs.backbones.memory import MemoryPlan, available_memory, fitting, peak_memory, plan_memory, smaller
from envs.backbones.pixel import PixelBackbone
from envs.groups import find_groups
from envs.methods import METHODS, find_method

CPU = torch.device("cpu")
BATCH = 8


def planned(backbone: Any, method: str = "full", batch_size: int = BATCH, **execution: Any) -> MemoryPlan:
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method(method)(backbone.denoiser, groups, calibration=lambda: ())
    learning = attachment.selected((True,) * len(groups))
    return plan_memory(
        backbone, learning, batch_size=batch_size, sampled=16, guided=False, execution=Execution(**execution)
    )


def saved_bytes(backbone: Any) -> int:
    """What autograd really keeps of one forward pass, weights left out: the reference, counted by torch's own hooks."""
    denoiser = backbone.denoiser.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    noisy = torch.randn(BATCH, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone.predict(noisy, torch.arange(BATCH), backbone.encode_captions([""] * BATCH))
    total = sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in weights)
    output.sum().backward()
    denoiser.requires_grad_(False).zero_grad(set_to_none=True)
    return total


@pytest.mark.parametrize("kind", ["backbone", "pixels"])
def test_activations_are_what_autograd_keeps_and_little_more(kind: str, request: pytest.FixtureRequest) -> None:
    backbone: LatentBackbone | PixelBackbone = request.getfixturevalue(kind)
    plan, real = planned(backbone), saved_bytes(backbone)
    assert real <= plan.activations <= 1.3 * real


def test_the_lines_that_can_be_counted_by_hand(backbone: LatentBackbone) -> None:
    plan = planned(backbone)
    floats = {n: sum(p.numel() for p in m.parameters()) for n, m in zip("dtv", backbone.modules, strict=True)}
    assert plan.gradients == 4 * floats["d"]
    assert plan.optimizer == 8 * floats["d"]
    buffers = sum(b.numel() * b.element_size() for m in backbone.modules for b in m.buffers())
    assert plan.weights == 4 * (2 * floats["d"] + floats["t"] + floats["v"]) + buffers
    assert plan.total == plan.weights + plan.gradients + plan.optimizer + plan.activations
    assert str(plan).endswith(f"{plan.total / 2**30:.2f} GiB")


def test_what_needs_less(backbone: LatentBackbone) -> None:
    plain = planned(backbone)
    half = planned(backbone, batch_size=BATCH // 2)
    assert half.activations < 0.6 * plain.activations
    assert planned(backbone, gradient_checkpointing=True).activations < 0.7 * plain.activations
    assert planned(backbone, precision="bf16").activations < 0.9 * plain.activations
    assert not backbone.denoiser.is_gradient_checkpointing, "the backbone is as it was"
    assert not any(p.requires_grad for p in backbone.denoiser.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_planned(backbone: LatentBackbone, method: str) -> None:
    plan = planned(backbone, method)
    assert 0 < plan.gradients == plan.optimizer // 2
    assert plan.activations > 0


@pytest.mark.slow
def test_stable_diffusion_is_planned_in_seconds(backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copy.copy(backbone)
    with torch.device("meta"):
        own.denoiser = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    monkeypatch.setattr(own, "encode_captions", lambda captions: torch.zeros(len(captions), 77, 768), raising=False)
    started = time.process_time()
    plan = planned(own, gradient_checkpointing=True)
    assert time.process_time() - started < 60
    assert plan.gradients == 4 * 859_520_964
    assert planned(own).activations > 2 * plan.activations


def test_the_nearest_settings_that_fit() -> None:
    def replan(batch_size: int, execution: Execution) -> MemoryPlan:
        cost = (
            batch_size * (5 if execution.gradient_checkpointing else 10) * (1 if execution.precision == "bf16" else 2)
        )
        return MemoryPlan(0, 0, 0, cost, 0, batch_size, execution)

    plan = replan(8, Execution())
    assert fitting(plan, 100, replan) == "backbone.gradient_checkpointing=true"
    assert fitting(plan, 79, replan) == "backbone.gradient_checkpointing=true inner.batch_size=4"
    assert fitting(plan, 9, replan) == "backbone.precision=bf16 backbone.gradient_checkpointing=true inner.batch_size=1"
    assert fitting(plan, 4, replan) == ""
    checkpointed = replan(8, Execution(gradient_checkpointing=True))
    assert fitting(checkpointed, 41, replan) == "inner.batch_size=4"


def test_the_next_smaller_setting() -> None:
    assert smaller(Execution(), 8, training=True) == "inner.batch_size=4"
    assert smaller(Execution(), 1, training=True) == "backbone.gradient_checkpointing=true"
    assert smaller(Execution(gradient_checkpointing=True), 1, training=True) == "backbone.precision=bf16"
    assert smaller(Execution(), 8, training=False) == "backbone.precision=bf16"
    assert "workers=1" in smaller(Execution("bf16", True), 1, training=True)


def test_memory_of_the_cpu() -> None:
    assert 2**20 < peak_memory(CPU) < 2**45
    before = torch.ones(2**20)
    assert before.sum() > 0
    assert 2**20 < available_memory(CPU) < 2**45
