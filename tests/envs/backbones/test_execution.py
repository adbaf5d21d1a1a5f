from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.backbones import base
from envs.backbones.base import Backbone, rows_at_once
from envs.backbones.execution import Execution, Precision
from envs.backbones.load import load_backbone
from envs.batches import TrainingSet
from envs.finetune import finetune, one_pass
from envs.groups import find_groups
from envs.learner import DivergedError
from envs.methods import find_method
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule

CPU = torch.device("cpu")
BUDGET = InnerBudget(steps=3, batch_size=4, learning_rate=1e-3, images=1, sampling_steps=1, decay="none")


@pytest.fixture(params=["stable_diffusion_folder", "ddpm_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def load(folder: Path, **execution: Any) -> Backbone:
    return load_backbone(folder, name="a", device=CPU, execution=Execution(**execution))


def data_of(backbone: Backbone) -> TrainingSet:
    latents = torch.randn(4, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    states = backbone.encode_captions([f"image {i}" for i in range(4)])
    return TrainingSet(latents, states, backbone.encode_captions([""]))


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in backbone.denoiser.named_parameters()}


def trained(backbone: Backbone, *keys: str, method: str = "full") -> dict[str, Tensor]:
    """The weights after one fine-tune after another, each from the base."""
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method(method)(backbone.denoiser, groups)
    start = weights(backbone)
    after = start
    for key in keys:
        backbone.denoiser.load_state_dict(start, strict=False)
        finetune(backbone, attachment, Schedule.from_key(key), data_of(backbone), BUDGET, seed=0)
        after = weights(backbone)
    return after


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    backbone.denoiser.requires_grad_(True)
    for loss in one_pass(backbone, data_of(backbone), 4, seed=0):
        loss.backward()
    return {name: p.grad for name, p in backbone.denoiser.named_parameters()}


def test_only_what_departs_from_the_default_is_named() -> None:
    assert Execution().options == {}
    assert Execution("bf16", compile=True).options == {"precision": "bf16", "compile": True}
    assert Execution(**Execution("fp16", True).options) == Execution("fp16", True)


def test_checkpointing_gives_the_plain_gradients(folder: Path) -> None:
    plain, checkpointed = load(folder), load(folder, gradient_checkpointing=True)
    assert checkpointed.denoiser.is_gradient_checkpointing
    expected, got = gradients(plain), gradients(checkpointed)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6, msg=name)
    assert not checkpointed.denoiser.training


@pytest.mark.parametrize("place", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_checkpointing_trains_exactly_the_mask(folder: Path, place: float) -> None:
    plain, checkpointed = load(folder), load(folder, gradient_checkpointing=True)
    groups = len(find_groups(plain.denoiser, "blocks"))
    key = "".join("1" if i == int(place * (groups - 1)) else "0" for i in range(groups))
    expected, got, start = trained(plain, key), trained(checkpointed, key), weights(load(folder))
    for name, value in expected.items():
        assert torch.equal(value, start[name]) == torch.equal(got[name], start[name])
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("precision", "near"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_lower_precision_is_inside_only(folder: Path, precision: Precision, near: float) -> None:
    plain, low = load(folder), load(folder, precision=precision)
    data = data_of(plain)
    t = torch.tensor([1, 200, 600, 999])
    expected, got = (b.predict(data.latents, t, data.states) for b in (plain, low))
    assert got.dtype == torch.float32
    assert not torch.equal(got, expected)
    assert (got - expected).abs().max() < near * expected.abs().max()
    start, after = weights(low), trained(low, "1" * len(find_groups(low.denoiser, "blocks")))
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert all(not torch.equal(after[name], start[name]) for name in start)
    exact = trained(plain, "1" * len(find_groups(plain.denoiser, "blocks")))
    moved = torch.cat([(exact[n] - start[n]).flatten() for n in start])
    also = torch.cat([(after[n] - start[n]).flatten() for n in start])
    assert torch.nn.functional.cosine_similarity(moved, also, dim=0) > 0.9


def test_fp16_leaves_out_steps_that_overflow(ddpm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(ddpm_folder, precision="fp16")
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method("full")(backbone.denoiser, groups)
    start = weights(backbone)
    scaler = torch.amp.GradScaler

    def at(scale: float) -> None:
        monkeypatch.setattr(
            torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=scale, enabled=enabled)
        )

    at(2.0**40)
    with pytest.raises(DivergedError, match="all 3 steps overflow in fp16"):
        finetune(backbone, attachment, Schedule.from_key("1" * len(groups)), data_of(backbone), BUDGET, seed=0)
    assert all(torch.equal(p, start[name]) for name, p in weights(backbone).items()), "no step was taken"
    at(2.0**10)
    trained = finetune(backbone, attachment, Schedule.from_key("1" * len(groups)), data_of(backbone), BUDGET, seed=0)
    assert trained.steps == 3


def test_a_loss_that_is_not_finite_diverges_in_fp16_too(ddpm_folder: Path) -> None:
    backbone = load(ddpm_folder, precision="fp16")
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method("full")(backbone.denoiser, groups)
    data = data_of(backbone)
    data.latents.fill_(torch.inf)
    with pytest.raises(DivergedError, match="at step 1"):
        finetune(backbone, attachment, Schedule.from_key("1" * len(groups)), data, BUDGET, seed=0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation without a compiler of C++: the same tracing, and torch's own kernels."""
    monkeypatch.setattr(base, "_COMPILER", "aot_eager")
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_compiled_training_follows_each_mask(ddpm_folder: Path) -> None:
    """One mask after another in a process: torch would use what it compiled for the first (pytorch#139476)."""
    eager, compiled = load(ddpm_folder), load(ddpm_folder, compile=True)
    n = len(find_groups(eager.denoiser, "blocks"))
    start = weights(eager)
    for place in (n - 1, 1):
        key = "".join("01"[i == place] for i in range(n))
        first = "".join("01"[i != place] for i in range(n))
        expected, got = trained(copy.copy(eager), key), trained(compiled, first, key)
        for name, value in expected.items():
            assert torch.equal(value, start[name]) == torch.equal(got[name], start[name]), name
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-4)
        for backbone in (eager, compiled):
            backbone.denoiser.load_state_dict(start)


@pytest.mark.parametrize(("size", "rows"), [(8, 64), (64, 64), (256, 16), (512, 4), (4096, 1)])
def test_large_images_go_through_in_smaller_groups(size: int, rows: int) -> None:
    assert rows_at_once(size) == rows


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_exactly_the_mask_trains(folder: Path, precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    backbone = load_backbone(
        folder, name="a", device=torch.device("cuda"), execution=Execution(precision, gradient_checkpointing=True)
    )
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method("full")(backbone.denoiser, groups)
    data = data_of(backbone)
    on_device = TrainingSet(data.latents.cuda(), data.states, data.empty_state)
    start = weights(backbone)
    mask = Schedule.constant(i == 1 for i in range(len(groups)))
    assert finetune(backbone, attachment, mask, on_device, BUDGET, seed=0).steps == BUDGET.steps
    moved = {name for name, p in weights(backbone).items() if not torch.equal(p, start[name])}
    assert moved == {name for name, _ in groups[1].parameters_in(backbone.denoiser)}
