from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.finetune import finetune
from envs.groups import find_groups
from envs.learner import DivergedError
from envs.methods import METHODS, Attachment, find_method
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule

BUDGET = InnerBudget(steps=2, batch_size=4, learning_rate=1e-2, images=1, sampling_steps=1)
IMAGES = 6
SINGLE = [f"{1 << i:08b}" for i in reversed(range(8))]
OTHERS = ["00000000", "11111111", "10010010", "01111110"]


@pytest.fixture
def data(backbone: LatentBackbone) -> TrainingSet:
    latents = torch.randn(IMAGES, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    states = backbone.encode_captions([f"image {i}" for i in range(IMAGES)])
    return TrainingSet(latents, states, backbone.encode_captions([""]))


def attach(backbone: LatentBackbone, method: str = "full") -> Attachment:
    return find_method(method)(backbone.denoiser, find_groups(backbone.denoiser, "blocks"), calibration=lambda: ())


def run(
    backbone: LatentBackbone, key: str, data: TrainingSet, budget: InnerBudget = BUDGET, *, seed: int = 0
) -> dict[str, Tensor]:
    """The weights that a schedule leads to; the backbone is put back."""
    before = weights(backbone)
    finetune(backbone, attach(backbone), Schedule.from_key(key), data, budget, seed)
    after = weights(backbone)
    backbone.denoiser.load_state_dict(before)
    return after


def weights(backbone: LatentBackbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.denoiser.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    __tracebackhide__ = True  # printing all weights takes minutes
    changed = [name for name in one if not torch.equal(one[name], other[name])]
    assert not changed


def assert_different(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    __tracebackhide__ = True
    assert any(not torch.equal(one[name], other[name]) for name in one)


@contextmanager
def spied(denoiser: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """What the denoiser is called with: noisy latents, timesteps, text states."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        noisy, t, states = inputs
        seen.append((noisy.clone(), t.clone(), states.clone()))

    handle = denoiser.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


def seen_by(
    backbone: LatentBackbone, key: str, data: TrainingSet, budget: InnerBudget = BUDGET, seed: int = 0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    with spied(backbone.denoiser) as seen:
        run(backbone, key, data, budget, seed=seed)
    return seen


def assert_same(one: list[tuple[Tensor, Tensor, Tensor]], other: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    assert len(one) == len(other) > 0
    for step, again in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, again, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_off_means_off(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    attachment = attach(backbone, method)
    base = weights(backbone)
    for key in SINGLE + OTHERS:
        schedule = Schedule.from_key(key)
        selected = attachment.selected(schedule.phases[0])
        steps = finetune(backbone, attachment, schedule, data, BUDGET, 0).steps
        assert steps == (BUDGET.steps if selected else 0), key
        moved = {name for name, tensor in weights(backbone).items() if not torch.equal(tensor, base[name])}
        assert moved == selected.keys(), key
        assert not any(parameter.requires_grad for parameter in backbone.denoiser.parameters()), key
        assert all(parameter.grad is None for parameter in backbone.denoiser.parameters()), key
        backbone.denoiser.load_state_dict(base)


def test_nothing_on_is_the_base_model(backbone: LatentBackbone, data: TrainingSet) -> None:
    t = torch.full((IMAGES,), 300)
    before = backbone.predict(data.latents, t, data.states)
    assert finetune(backbone, attach(backbone), Schedule.from_key("0" * 8), data, BUDGET, 0).steps == 0
    assert torch.equal(backbone.predict(data.latents, t, data.states), before)


def test_buffers_stay(backbone: LatentBackbone, data: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that keeps running statistics keeps those of the base model, however it is trained."""
    norm = nn.BatchNorm2d(8)
    norm.running_mean = torch.arange(8.0)
    monkeypatch.setitem(backbone.denoiser._modules, "conv_norm_out", norm.eval())
    before = weights(backbone)
    finetune(backbone, attach(backbone), Schedule.from_key("1" * 8), data, BUDGET, 0)
    after = weights(backbone)
    assert not torch.equal(after["conv_norm_out.weight"], before["conv_norm_out.weight"])
    for name, _ in backbone.denoiser.named_buffers():
        assert torch.equal(after[name], before[name])
    assert "conv_norm_out.running_mean" in before
    monkeypatch.undo()
    backbone.denoiser.load_state_dict({n: t for n, t in before.items() if not n.startswith("conv_norm_out")}, False)


def test_every_mask_sees_the_same_batches_and_noise(backbone: LatentBackbone, data: TrainingSet) -> None:
    first = seen_by(backbone, "1" * 8, data)
    assert len(first) == BUDGET.steps
    for key in [*SINGLE, "01111110"]:
        assert_same(seen_by(backbone, key, data), first)
    other = seen_by(backbone, "1" * 8, data, seed=1)
    assert not torch.equal(other[0][0], first[0][0])
    assert not torch.equal(first[1][0], first[0][0])


@pytest.mark.parametrize(("decay", "rates"), [("linear", [0.25, 0.5, 0.75, 1, 0.5]), ("none", [0.25, 0.5, 0.75, 1, 1])])
@pytest.mark.parametrize(("key", "phases"), [("01001010", [range(5)]), ("01001010/00000111", [range(2), range(2, 5)])])
def test_equals_a_plain_loop(
    backbone: LatentBackbone,
    data: TrainingSet,
    key: str,
    phases: list[range],
    decay: Literal["linear", "none"],
    rates: list[float],
) -> None:
    budget = dataclasses.replace(BUDGET, steps=5, warmup=3, decay=decay, weight_decay=0.1, caption_dropout=0.4)
    found = run(backbone, key, data, budget, seed=5)

    denoiser, rng = backbone.denoiser, torch_generator(5, "finetune")
    alphas = backbone.scheduler.alphas_cumprod
    owner = {n: i for i, g in enumerate(find_groups(denoiser, "blocks")) for n, _ in g.parameters_in(denoiser)}
    order = torch.empty(0, dtype=torch.long)
    for mask, steps in zip(key.split("/"), phases, strict=True):
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(mask[owner[name]] == "1")
        learning = [p for p in denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=budget.learning_rate, weight_decay=budget.weight_decay)
        for step in steps:
            optimizer.param_groups[0]["lr"] = budget.learning_rate * rates[step]
            while len(order) < 4:
                order = torch.cat([order, torch.randperm(IMAGES, generator=rng)])
            rows, order = order[:4], order[4:]
            dropped = (torch.rand(4, generator=rng) < 0.4)[:, None, None]
            states = torch.where(dropped, data.empty_state, data.states[rows])
            x = data.latents[rows]
            noise = torch.randn(x.shape, generator=rng)
            t = torch.randint(1000, (4,), generator=rng)
            signal, sigma = ((a**0.5)[:, None, None, None] for a in (alphas[t], 1 - alphas[t]))
            predicted = denoiser(signal * x + sigma * noise, t, states).sample
            loss = ((predicted - (signal * noise - sigma * x)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_equal(found, weights(backbone))


def test_the_same_seed_gives_the_same_weights(backbone: LatentBackbone, data: TrainingSet) -> None:
    first = run(backbone, "11110000", data)
    torch.manual_seed(99)
    assert_equal(run(backbone, "11110000", data), first)
    assert_different(run(backbone, "11110000", data, seed=1), first)


def test_a_schedule_goes_on_with_the_draws_of_a_constant_one(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=5)
    constant = seen_by(backbone, "1" * 8, data, budget)
    assert_same(seen_by(backbone, "11110000/00001111", data, budget), constant)
    assert_same(seen_by(backbone, "00000000/00001111", data, budget), constant[2:])
    assert_same(seen_by(backbone, "11110000/00000000/00001111", data, budget), constant[:2] + constant[3:])


def test_each_phase_trains_its_own_groups(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=4, decay="none")
    first_half = run(backbone, "11110000", data, dataclasses.replace(budget, steps=2))
    assert_equal(run(backbone, "11110000/00000000", data, budget), first_half)
    both = run(backbone, "11110000/00001111", data, budget)
    early = attach(backbone).selected((True,) * 4 + (False,) * 4)
    assert all(torch.equal(both[name], first_half[name]) for name in early)
    late = run(backbone, "00000000/00001111", data, budget)
    assert_different({n: both[n] for n in both if n not in early}, {n: late[n] for n in late if n not in early})


def test_steps_count_only_phases_that_learn(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=5)

    def steps(key: str) -> int:
        return finetune(backbone, attach(backbone), Schedule.from_key(key), data, budget, 0).steps

    assert [steps(key) for key in ("1" * 8, "00000001/00000000", "00000000/00000001")] == [5, 2, 3]
    assert steps("/".join(["00000001"] * 7)) == 5, "more phases than steps"


def test_batches_are_shuffled_passes_over_the_images(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=6, batch_size=5, caption_dropout=0.0)
    seen = torch.cat([states for _, _, states in seen_by(backbone, "00000001", data, budget)])
    rows = [next(i for i in range(IMAGES) if torch.equal(state, data.states[i])) for state in seen]
    passes = [rows[i : i + IMAGES] for i in range(0, len(rows), IMAGES)]
    assert [sorted(one) for one in passes] == [list(range(IMAGES))] * 5
    assert len(set(map(tuple, passes))) > 1
    few = TrainingSet(data.latents[:2], data.states[:2], data.empty_state)
    seen = seen_by(backbone, "00000001", few, budget)[0][2]
    counts = Counter(next(i for i in range(2) if torch.equal(state, few.states[i])) for state in seen)
    assert sorted(counts.values()) == [2, 3], "a batch larger than the training set repeats it"


def test_captions_are_dropped_as_often_as_asked(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=8, batch_size=50, caption_dropout=0.3)
    seen = torch.cat([states for _, _, states in seen_by(backbone, "00000001", data, budget)])
    dropped = sum(torch.equal(state, data.empty_state[0]) for state in seen)
    assert dropped == pytest.approx(0.3 * 400, abs=4 * (400 * 0.3 * 0.7) ** 0.5)


def test_timesteps_span_the_noise_schedule(backbone: LatentBackbone, data: TrainingSet) -> None:
    budget = dataclasses.replace(BUDGET, steps=8, batch_size=50)
    seen = torch.cat([t for _, t, _ in seen_by(backbone, "00000001", data, budget)])
    assert 0 <= seen.min() < 20
    assert 980 < seen.max() < 1000


def assert_clean(denoiser: nn.Module) -> None:
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert all(parameter.grad is None for parameter in denoiser.parameters())


@pytest.mark.parametrize("steps", [2, 3, 25])
def test_a_diverging_run_is_stopped(backbone: LatentBackbone, data: TrainingSet, steps: int) -> None:
    budget = dataclasses.replace(BUDGET, steps=steps, learning_rate=1e30)
    with spied(backbone.denoiser) as seen, pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d+"):
        finetune(backbone, attach(backbone), Schedule.from_key("1" * 8), data, budget, 0)
    assert len(seen) <= 11, "long before the end"
    assert_clean(backbone.denoiser)


@pytest.mark.parametrize("where", ["before the backward pass", "after it"])
def test_an_error_in_a_step_leaves_nothing_trainable(
    backbone: LatentBackbone, data: TrainingSet, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError("no room")

    if where == "after it":
        monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    else:
        monkeypatch.setattr(backbone, "noised", fail)
    with pytest.raises(MemoryError):
        finetune(backbone, attach(backbone), Schedule.from_key("1" * 8), data, BUDGET, 0)
    assert_clean(backbone.denoiser)
