from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from agents.finetuning.checkpoints import Checkpoints
from agents.finetuning.settings import EMASettings, TrainingSettings
from agents.finetuning.trainer import StepRecord, Trainer, rows_of_step
from envs.backbones import base
from envs.backbones.execution import Execution
from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.groups import find_groups
from envs.hooks import Hooks
from envs.learner import DivergedError
from envs.methods import METHODS, find_method
from envs.probes import frozen
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule
from rewards.errors import InputError

INNER = InnerBudget(steps=1, batch_size=1, learning_rate=1, images=1, sampling_steps=1)
SOME, PHASES = Schedule.from_key("01001010"), Schedule.from_key("01001010/00000111")
OFF = EMASettings(decay=0, power=1)


def trainer(
    backbone: LatentBackbone,
    data: TrainingSet,
    training: TrainingSettings,
    ema: EMASettings = OFF,
    *,
    schedule: Schedule = SOME,
    method: str = "full",
    seed: int = 3,
    hooks: Sequence[Hooks] = (),
) -> Trainer:
    attachment = find_method(method)(
        backbone.denoiser, find_groups(backbone.denoiser, "blocks"), calibration=lambda: (), seed=seed
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=training.accumulation)
    budget = training.budget(INNER)
    return Trainer(backbone, attachment, schedule, data, budget, training, ema, accelerator, seed, hooks)


def steps(trained: Trainer, number: int) -> list[StepRecord | None]:
    return [trained.train_step() for _ in range(number)]


def fresh(backbone: LatentBackbone) -> LatentBackbone:
    other = copy.copy(backbone)
    other.denoiser = copy.deepcopy(backbone.denoiser)
    return other


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_steps_are_shuffled_passes_over_all_images() -> None:
    seen = torch.cat([rows_of_step(step, 4, 10, 7) for step in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.cat([rows_of_step(step, 5, 10, 7) for step in range(4)]).tolist() == seen.tolist()
    whole = Counter(rows_of_step(2, 25, 10, 7).tolist())
    assert sum(whole.values()) == 25
    assert set(whole.values()) <= {2, 3}
    assert rows_of_step(0, 10, 10, 8).tolist() != first.tolist()


@pytest.mark.parametrize("schedule", [SOME, PHASES])
def test_equals_a_plain_loop(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, ema: EMASettings, schedule: Schedule
) -> None:
    plain = fresh(backbone).denoiser
    trained = trainer(backbone, data, training, ema, schedule=schedule)
    records = steps(trained, 6)

    owner = {n: i for i, g in enumerate(find_groups(plain, "blocks")) for n, _ in g.parameters_in(plain)}
    every = [p for n, p in plain.named_parameters() if any(mask[owner[n]] for mask in schedule.phases)]
    average = [p.detach().clone() for p in every]
    alphas, rates = backbone.scheduler.alphas_cumprod, [0.5, 1, 0.8, 0.6, 0.4, 0.2]
    count = 6 // len(schedule.phases)
    for phase, mask in enumerate(schedule.phases):
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(mask[owner[name]])
        learning = [p for p in plain.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1.0, weight_decay=0.1)
        for step in range(count * phase, count * (phase + 1)):
            optimizer.param_groups[0]["lr"] = 1e-2 * rates[step]
            rng = torch_generator(3, "step", step)
            rows = rows_of_step(step, 4, 5, 3)
            dropped = (torch.rand(4, generator=rng) < 0.4)[:, None, None]
            states, x = torch.where(dropped, data.empty_state, data.states[rows]), data.latents[rows]
            noise, t = torch.randn(x.shape, generator=rng), torch.randint(1000, (4,), generator=rng)
            signal, sigma = ((a**0.5)[:, None, None, None] for a in (alphas[t], 1 - alphas[t]))
            predicted = plain(signal * x + sigma * noise, t, states).sample
            loss = ((predicted - (signal * noise - sigma * x)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            keep = min(0.9, 1 - (1 + step) ** -0.75) if step else 0.0
            for mean, p in zip(average, every, strict=True):
                mean.copy_(keep * mean + (1 - keep) * p.detach() if p.requires_grad else p.detach())
    found = dict(backbone.denoiser.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=2e-6)
    assert records[:5] == [None] * 5
    assert records[5] is not None
    assert records[5].step == 6
    assert records[5].learning_rate == pytest.approx(2e-3)
    assert records[5].loss == pytest.approx(loss.item(), rel=1e-4)
    assert records[5].gradient_norm == pytest.approx(norm.item(), rel=1e-3)
    with trained.averaged():
        inside = trained.snapshot()
    assert not same(inside, trained.snapshot())
    for mean, tensor in zip(average, [inside[n] for n, p in plain.named_parameters() if n in inside], strict=True):
        torch.testing.assert_close(tensor, mean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_off_stays(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, method: str
) -> None:
    schedule = Schedule.from_key("01100110")  # every method has something there
    trained = trainer(backbone, data, training, method=method, schedule=schedule)
    before = {n: t.detach().clone() for n, t in backbone.denoiser.named_parameters()}
    steps(trained, 3)
    moved = {n for n, t in backbone.denoiser.named_parameters() if not torch.equal(t, before[n])}
    assert moved == trained.parameters.keys()
    trained.finish()
    assert not any(p.requires_grad for p in backbone.denoiser.parameters())


@pytest.mark.parametrize("schedule", [SOME, PHASES, Schedule.from_key("00000000/00000111")])
@pytest.mark.parametrize("stopped", [2, 3, 4])
def test_a_resumed_training_is_the_uninterrupted_one(
    backbone: LatentBackbone,
    data: TrainingSet,
    training: TrainingSettings,
    ema: EMASettings,
    tmp_path: Path,
    schedule: Schedule,
    stopped: int,
) -> None:
    again = fresh(backbone)
    whole = trainer(fresh(backbone), data, training, ema, schedule=schedule)
    steps(whole, 6)
    half = trainer(backbone, data, training, ema, schedule=schedule)
    steps(half, stopped)
    Checkpoints(tmp_path / "checkpoints", 2).save(half.state())
    rest = trainer(again, data, training, ema, schedule=schedule)
    state = Checkpoints(tmp_path / "checkpoints", 2).last()
    assert state is not None
    rest.load(state)
    assert rest.step == stopped
    steps(rest, 6 - stopped)
    assert same(rest.snapshot(), whole.snapshot())
    with rest.averaged(), whole.averaged():
        assert same(rest.snapshot(), whole.snapshot())


def test_passes_change_a_step_by_rounding_only(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    one = trainer(fresh(backbone), data, training)
    steps(one, 1)
    several = trainer(backbone, data, dataclasses.replace(training, accumulation=4))
    steps(several, 1)
    # AdamW's first step is the gradient's sign: where a gradient is nearly 0, rounding decides it.
    near = [(a - b).abs() < 1e-5 for a, b in zip(one.snapshot().values(), several.snapshot().values(), strict=True)]
    assert torch.cat([each.flatten() for each in near]).float().mean() > 0.99


def test_the_seed_decides(backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings) -> None:
    found = []
    for seed in (3, 3, 4):
        trained = trainer(fresh(backbone), data, training, seed=seed)
        steps(trained, 2)
        found.append(trained.snapshot())
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_finish_takes_the_weights_it_is_given_or_else_the_average(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, ema: EMASettings
) -> None:
    trained = trainer(backbone, data, training, ema)
    base = trained.snapshot()
    steps(trained, 3)
    with trained.averaged():
        average = trained.snapshot()
    trained.finish()
    assert same(trained.snapshot(), average)
    trained.finish(base)
    assert same(trained.snapshot(), base)


def test_a_loss_that_is_not_finite(backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings) -> None:
    trained = trainer(backbone, data, dataclasses.replace(training, learning_rate=1e30, clip=None))
    with pytest.raises(DivergedError, match="at step 6"):
        steps(trained, 6)


def test_a_batch_that_cannot_be_shared_out(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    with pytest.raises(InputError, match=r"training\.batch_size=4 in 3 passes of 1 processes — .*multiple of 3"):
        trainer(backbone, data, dataclasses.replace(training, accumulation=3))


def test_groups_without_a_parameter_of_the_method(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings
) -> None:
    with pytest.raises(InputError, match="no parameter in these groups"):
        trainer(backbone, data, training, method="attention", schedule=Schedule.from_key("10000000"))


def test_compiled_it_learns_the_same_also_around_a_look(
    backbone: LatentBackbone, data: TrainingSet, training: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_COMPILER", "aot_eager")  # the same tracing without a compiler of C++
    plain, compiled = fresh(backbone), fresh(backbone)
    compiled.execution = Execution(compile=True)
    expected, got = (trainer(each, data, training, schedule=PHASES) for each in (plain, compiled))
    outputs = []
    for trained, seen in ((expected, plain), (got, compiled)):
        while trained.step < training.steps:
            with trained.averaged(), frozen(seen.denoiser), torch.no_grad():  # as inversion looks at a model
                assert seen._compiled is None
                outputs.append(seen.predict(data.latents, 100, data.states))
            trained.train_step()
            assert (seen._compiled is not None) == (seen is compiled)
        trained.finish()
        assert seen._compiled is None
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(got.parameters[name], parameter, rtol=0, atol=1e-4)
    half = len(outputs) // 2
    for one, other in zip(outputs[:half], outputs[half:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
