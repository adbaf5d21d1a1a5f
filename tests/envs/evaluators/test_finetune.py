from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs import judge
from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.datasets import SplitDataset, prepare_dataset
from envs.evaluators import finetune as evaluating
from envs.evaluators.base import evaluate_many
from envs.evaluators.failure import describe
from envs.evaluators.finetune import FineTuneEvaluator, FineTuneFactory
from envs.evaluators.pool import PoolEvaluator
from envs.finetune import finetune
from envs.generate import generate
from envs.groups import find_groups
from envs.learner import DivergedError
from envs.losses import denoising_losses
from envs.methods import find_method
from envs.task import InnerBudget, Schedule, SelectionTask
from rewards.errors import InputError
from rewards.evidence import DenoisingLosses, Evidence
from rewards.suite import Suite
from tests.envs.evaluators.conformance import check_evaluator

NONE, FULL = Schedule.from_key("00000000"), Schedule.from_key("11111111")
SOME = [Schedule.from_key(key) for key in ("00001000", "01100000/00000110", "10000001")]


@pytest.fixture(scope="module")
def dataset() -> SplitDataset:
    return prepare_dataset(
        "phantom",
        root=None,
        size=32,
        train=6,
        heldout=7,
        test=8,
        seed=0,
        radius=0.02,
        options={"identities": 24},
    )


@pytest.fixture(scope="module")
def task(dataset: SplitDataset, loaded_backbone: LatentBackbone) -> SelectionTask:
    return SelectionTask(
        env="phantom",
        split_sha256=dataset.split_sha256,
        backbone="tiny",
        backbone_sha256=loaded_backbone.sha256,
        method="full",
        scheme="blocks",
        groups=tuple(group.name for group in find_groups(loaded_backbone.denoiser, "blocks")),
        inner=InnerBudget(steps=4, batch_size=4, learning_rate=1e-2, images=8, sampling_steps=3, loss_draws=2),
        metrics=("kid", "membership", "average_minimum_distance"),
        seed=3,
    )


@pytest.fixture
def evaluator(task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone) -> FineTuneEvaluator:
    return FineTuneEvaluator(task, dataset, backbone)


def state(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers())}


@contextmanager
def left_as_it_was(backbone: LatentBackbone) -> Iterator[None]:
    before = state(backbone.denoiser)
    yield
    after = state(backbone.denoiser)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in backbone.denoiser.parameters())


@contextmanager
def nan_when_the_middle_learns(backbone: LatentBackbone) -> Iterator[None]:
    """Makes the mid block put out NaN, in training steps of schedules that select it."""

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and next(module.parameters()).requires_grad
        return output * torch.nan if learns else output

    with backbone.denoiser.mid_block.register_forward_hook(spoil):
        yield


def test_keeps_the_promises_of_an_evaluator(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    def make() -> PoolEvaluator:
        return PoolEvaluator(lambda worker: FineTuneEvaluator(task, dataset, backbone), 0, task.groups)

    assert not any(mask[4] for schedule in SOME[1:] for mask in schedule.phases)
    with nan_when_the_middle_learns(backbone), left_as_it_was(backbone):
        check_evaluator(make, [NONE, *SOME[1:]], FULL, "diverged: the loss is nan at step 1")


def test_an_evaluation_is_what_its_parts_give_by_hand(
    evaluator: FineTuneEvaluator, task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    schedule = SOME[1]
    found = evaluator.evaluate(schedule)

    inner, train, judge = task.inner, dataset.train, dataset.heldout
    suite = Suite(task.metrics)
    images = [torch.from_numpy(part.images).permute(0, 3, 1, 2) for part in (train, judge)]
    latents = [backbone.encode_images(part.images) for part in (train, judge)]
    states = [backbone.encode_captions(part.captions) for part in (train, judge)]
    empty = backbone.encode_captions([""])

    def losses() -> list[Tensor]:
        return [denoising_losses(backbone, x, s, draws=2, seed=3) for x, s in zip(latents, states, strict=True)]

    base = losses()
    before = state(backbone.denoiser)
    attachment = find_method("full")(backbone.denoiser, find_groups(backbone.denoiser, "blocks"))
    trained = finetune(backbone, attachment, schedule, TrainingSet(latents[0], states[0], empty), inner, 3)
    captions = [train.captions[i % 6] for i in range(8)]
    generated = generate(backbone, backbone.encode_captions(captions), empty, steps=3, guidance_scale=1.0, seed=3)
    expected = suite.measure(
        suite.reference(images[0], images[1]),
        torch.from_numpy(generated).permute(0, 3, 1, 2),
        Evidence(losses=DenoisingLosses(*losses(), *base)),
    )
    moved = [name for name, tensor in backbone.denoiser.named_parameters() if not torch.equal(tensor, before[name])]
    backbone.denoiser.load_state_dict(before)

    assert found.schedule == schedule
    assert found.metrics == expected
    assert found.steps == trained.steps == 4
    assert found.trainable_parameters == sum(before[name].numel() for name in moved) > 0
    assert found.total_parameters == sum(p.numel() for p in backbone.denoiser.parameters())
    assert found.failure == ""
    assert found.seconds >= sum(evaluator.seconds.values()) > 0
    assert evaluator.seconds.keys() == {"finetune", "generate", "losses", "measure"}
    with left_as_it_was(backbone):
        assert np.array_equal(evaluator.images(schedule), generated)


def test_the_base_is_restored_after_every_evaluation(evaluator: FineTuneEvaluator, backbone: LatentBackbone) -> None:
    for schedule in (NONE, *SOME, FULL):
        with left_as_it_was(backbone):
            evaluator.evaluate(schedule)


def test_the_past_does_not_matter(evaluator: FineTuneEvaluator) -> None:
    first = [evaluator.evaluate(schedule) for schedule in (*SOME, FULL, NONE)]
    again = [evaluator.evaluate(schedule) for schedule in (NONE, FULL, *SOME[::-1])]
    assert all(one.same_numbers(other) for one, other in zip(first, again[::-1], strict=True))
    assert len({evaluation.metrics["kid"].value for evaluation in first}) == 5


def test_nothing_on_is_the_base_model(evaluator: FineTuneEvaluator) -> None:
    evaluation = evaluator.evaluate(NONE)
    assert evaluation.steps == evaluation.trainable_parameters == evaluation.trainable_share == 0
    assert evaluation.metrics["membership"].value == 0.5, "no loss has changed"


def test_everything_on_can_change_every_number(evaluator: FineTuneEvaluator) -> None:
    evaluation = evaluator.evaluate(FULL)
    assert evaluation.trainable_share == 1
    assert evaluation.steps == 4


def test_parameters_of_a_schedule_are_those_of_any_phase(evaluator: FineTuneEvaluator) -> None:
    def trainable(key: str) -> int:
        return evaluator.evaluate(Schedule.from_key(key)).trainable_parameters

    assert trainable("11000000/01100000") == trainable("11100000")


def test_the_base_is_restored_after_a_failure_anywhere(
    evaluator: FineTuneEvaluator, backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluator.evaluate(FULL)
    later_step = 3

    def in_a_later_step(*args: Any) -> None:
        nonlocal later_step
        later_step -= 1
        if not later_step:
            raise MemoryError("no room")

    def at_once(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    handle = backbone.denoiser.register_forward_pre_hook(in_a_later_step)
    with left_as_it_was(backbone), pytest.raises(MemoryError):
        evaluator.evaluate(FULL)
    handle.remove()
    for owner, name in ((judge, "generate"), (judge, "denoising_losses"), (evaluator.judge.suite, "measure")):
        with left_as_it_was(backbone), monkeypatch.context() as patch:
            patch.setattr(owner, name, at_once)
            with pytest.raises(KeyboardInterrupt):
                evaluator.evaluate(FULL)
    assert evaluator.evaluate(FULL).same_numbers(expected)


def test_a_nan_in_training_is_a_divergence(evaluator: FineTuneEvaluator, backbone: LatentBackbone) -> None:
    with left_as_it_was(backbone), nan_when_the_middle_learns(backbone), pytest.raises(DivergedError, match="step 1"):
        evaluator.evaluate(FULL)


@pytest.mark.parametrize(
    ("part", "remedy"), [("finetune", "inner.batch_size=2"), ("generate", "backbone.precision=bf16")]
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_told_with_the_peak_and_what_needs_less(
    evaluator: FineTuneEvaluator,
    backbone: LatentBackbone,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    remedy: str,
    error: Exception,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(judge if part == "generate" else evaluating, part, fail)
    with left_as_it_was(backbone), pytest.raises(MemoryError) as caught:
        evaluator.evaluate(FULL)
    assert re.fullmatch(rf"out of memory: at \d+\.\d GiB in {part}: set {remedy}", describe(caught.value))


def test_weights_that_the_last_step_ruined_are_a_divergence(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    """The training loss was still finite when it was last looked at."""
    inner = dataclasses.replace(task.inner, steps=1, learning_rate=1e30)
    evaluator = FineTuneEvaluator(dataclasses.replace(task, inner=inner), dataset, backbone)
    with left_as_it_was(backbone), pytest.raises(DivergedError, match="losses are not finite"):
        evaluator.evaluate(FULL)


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_are_restored(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, persistent: bool
) -> None:
    """Whether or not they are saved: here a layer that counts its calls, and adds the count."""
    block, calls = backbone.denoiser.mid_block, torch.zeros(())
    block.register_buffer("calls", calls, persistent=persistent)

    def count(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls.add_(1)
        return output + 0.01 * calls

    handle = block.register_forward_hook(count)
    try:
        evaluator = FineTuneEvaluator(task, dataset, backbone)
        with left_as_it_was(backbone):
            first = evaluator.evaluate(FULL)
        assert evaluator.evaluate(FULL).same_numbers(first)
    finally:
        handle.remove()
        del block.calls


@pytest.mark.parametrize("method", ["difffit", "svdiff", "lora", "dora", "adapter", "importance"])
def test_methods_that_add_parameters_are_restored_and_counted_against_the_base(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, method: str
) -> None:
    total = sum(p.numel() for p in backbone.denoiser.parameters())
    evaluator = FineTuneEvaluator(dataclasses.replace(task, method=method), dataset, backbone)
    with left_as_it_was(backbone):
        first = evaluator.evaluate(SOME[0])
        evaluator.evaluate(FULL)
        assert evaluator.evaluate(SOME[0]).same_numbers(first), "the past does not matter"
        base = evaluator.evaluate(NONE)
    assert first.total_parameters == base.total_parameters == total
    assert 0 < first.trainable_share < 1
    assert base.trainable_share == 0


def test_settings_of_the_method_come_from_the_task(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    base, shares = backbone.denoiser, []
    for rank in (1, 2):
        backbone.denoiser = copy.deepcopy(base)
        chosen = dataclasses.replace(task, method="lora", options={"method": {"rank": rank}})
        shares.append(FineTuneEvaluator(chosen, dataset, backbone).evaluate(FULL).trainable_parameters)
    assert shares[1] == 2 * shares[0]


def test_the_task_decides(task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone) -> None:
    def kid(**changes: Any) -> Any:
        changed = dataclasses.replace(task, **changes)
        return FineTuneEvaluator(changed, dataset, backbone).evaluate(FULL).metrics["kid"]

    base = kid()
    assert kid() == base
    others = [
        kid(seed=4),
        kid(method="bias_norm"),
        kid(judge="test"),
        kid(inner=dataclasses.replace(task.inner, steps=5)),
        kid(inner=dataclasses.replace(task.inner, guidance_scale=3.0)),
        kid(inner=dataclasses.replace(task.inner, sampling_steps=4)),
    ]
    assert len({base.value, *(other.value for other in others)}) == 7
    assert others[0].null == base.null
    assert others[2].null != base.null, "quality and its null are measured on the judge's images"


def test_more_sampling_steps_than_timesteps_are_refused(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    inner = dataclasses.replace(task.inner, sampling_steps=1001)
    with pytest.raises(InputError, match=r"inner\.sampling_steps=1001 — the backbone has 1000 at most"):
        FineTuneEvaluator(dataclasses.replace(task, inner=inner), dataset, backbone)


@pytest.mark.slow
def test_workers_give_the_numbers_of_this_process(
    task: SelectionTask, dataset: SplitDataset, pipeline_folder: Path
) -> None:
    factory = FineTuneFactory(task, dataset, pipeline_folder)
    schedules = [NONE, *SOME, FULL]
    threads = torch.get_num_threads()
    inline, pool = (PoolEvaluator(factory, workers, task.groups) for workers in (0, 2))
    try:
        expected = evaluate_many(inline, schedules)
        found = evaluate_many(pool, schedules)
    finally:
        inline.close()
        pool.close()
        torch.set_num_threads(threads)
    assert not any(evaluation.failure for evaluation in expected)
    assert all(one.same_numbers(other) for one, other in zip(expected, found, strict=True))
