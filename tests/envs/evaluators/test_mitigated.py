from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor

from envs.backbones.latent import LatentBackbone
from envs.datasets import SplitDataset
from envs.evaluators.base import Evaluation
from envs.evaluators.finetune import FineTuneEvaluator, basis_key
from envs.hooks import Batch
from envs.judge import Judge
from envs.mitigations import toggle_name
from envs.mitigations.agc import LossBank
from envs.task import Schedule, SelectionTask
from rewards.errors import InputError
from tests.envs.evaluators.test_finetune import dataset, left_as_it_was, task
from tests.envs.test_task import OTHER_INNER, OTHER_TASK

__all__ = ["dataset", "task"]  # fixtures

AGC = {"agc": {"mem_ratio": 1.0, "decay": 0.0}}
"""Leaves out what is below the last loss at its timestep: half of what comes again."""


def mitigated(
    task: SelectionTask, chosen: Mapping[str, Mapping[str, Any]], toggled: tuple[str, ...] = ()
) -> SelectionTask:
    options = {"mitigations": chosen, **({"mitigation_toggles": list(toggled)} if toggled else {})}
    names = (*task.groups, *map(toggle_name, toggled))
    return dataclasses.replace(task, options=options, groups=names)


@pytest.fixture
def few_timesteps(backbone: LatentBackbone) -> LatentBackbone:
    """Draws timesteps among the first four, so that a few steps meet each of them again."""
    backbone.timesteps = 4
    return backbone


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: each.to_json() for name, each in evaluation.metrics.items()}


def test_a_mitigation_changes_what_learns_and_not_the_base_model(
    task: SelectionTask, dataset: SplitDataset, few_timesteps: LatentBackbone
) -> None:
    plain = FineTuneEvaluator(task, dataset, few_timesteps)
    base, full = (plain.evaluate(Schedule.from_key(bit * 8)) for bit in "01")
    treated = FineTuneEvaluator(mitigated(task, AGC), dataset, few_timesteps)
    with left_as_it_was(few_timesteps):
        of_base, of_full = (treated.evaluate(Schedule.from_key(bit * 8)) for bit in "01")
    assert of_base.same_numbers(base)
    assert numbers(of_full) != numbers(full)
    assert 0 < of_full.figures["agc.skipped_share"] < 1
    assert full.figures == {}
    assert Evaluation.from_json(of_full.to_json()).same_numbers(of_full)


def test_a_toggle_that_is_on_leaves_its_mitigation_out(
    task: SelectionTask, dataset: SplitDataset, few_timesteps: LatentBackbone
) -> None:
    plain = FineTuneEvaluator(task, dataset, few_timesteps).evaluate(Schedule.from_key("11110000"))
    always = FineTuneEvaluator(mitigated(task, AGC), dataset, few_timesteps).evaluate(Schedule.from_key("11110000"))
    toggled = FineTuneEvaluator(mitigated(task, AGC, ("agc",)), dataset, few_timesteps)
    off, on = (toggled.evaluate(Schedule.from_key(f"11110000{bit}")) for bit in "01")
    assert numbers(on) == numbers(plain)
    assert on.figures == {}
    assert numbers(off) == numbers(always)
    assert off.figures == always.figures
    alone = toggled.evaluate(Schedule.from_key("000000001"))
    assert alone.steps == alone.trainable_parameters == 0


def test_what_is_mitigated_has_a_key_of_its_own(task: SelectionTask) -> None:
    schedule = Schedule.from_key("1" * 8)
    others = [mitigated(task, AGC), mitigated(task, {"agc": {}}), mitigated(task, AGC | {"iet": {}})]
    keys = {each.evaluation_key(schedule) for each in (task, *others)}
    assert len(keys) == 4


def test_what_cannot_act_here_says_so_before_anything_is_trained(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone
) -> None:
    with pytest.raises(InputError, match=r"mitigation\.iet\.shards=7"):
        FineTuneEvaluator(mitigated(task, {"iet": {"shards": 7}}), dataset, backbone)


def test_an_interrupted_treatment_leaves_the_backbone_as_it_was(
    task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = FineTuneEvaluator(mitigated(task, AGC), dataset, backbone)
    kept, calls = LossBank.kept, 0

    def interrupt(bank: LossBank, losses: Tensor, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return kept(bank, losses, batch)

    monkeypatch.setattr(LossBank, "kept", interrupt)
    with left_as_it_was(backbone), pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(Schedule.from_key("1" * 8))


@pytest.mark.parametrize("method", ["full", "lora", "svdiff"])
def test_what_a_judge_of_another_mitigation_found_out_changes_no_number(
    task: SelectionTask,
    dataset: SplitDataset,
    few_timesteps: LatentBackbone,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, full = dataclasses.replace(task, method=method), Schedule.from_key("11111111")
    shorter = dataclasses.replace(task, inner=dataclasses.replace(task.inner, steps=2))
    treated = mitigated(task, AGC)
    assert basis_key(treated) == basis_key(shorter)
    copies = [copy.deepcopy(few_timesteps) for _ in range(3)]  # some methods stay attached
    basis = FineTuneEvaluator(shorter, dataset, copies[0]).judge.basis
    alone = FineTuneEvaluator(treated, dataset, copies[1]).evaluate(full)

    def again(self: Judge) -> None:
        raise AssertionError("it was known")

    monkeypatch.setattr(Judge, "_basis", again)
    assert FineTuneEvaluator(treated, dataset, copies[2], basis).evaluate(full).same_numbers(alone)


def test_judges_share_what_they_know_unless_something_that_they_look_at_differs(task: SelectionTask) -> None:
    inners = {name: dataclasses.replace(task.inner, **{name: value}) for name, value in OTHER_INNER.items()}
    others = {
        **{f"inner.{name}": dataclasses.replace(task, inner=inner) for name, inner in inners.items()},
        **{name: dataclasses.replace(task, **{name: value}) for name, value in OTHER_TASK.items()},
        "mitigation": mitigated(task, AGC),
        "mitigation with a version": mitigated(task, {"ema": {}}),
    }
    training = ("steps", "batch_size", "learning_rate", "warmup", "decay", "weight_decay", "caption_dropout")
    sharing = {name for name, other in others.items() if basis_key(other) == basis_key(task)}
    assert sharing == {*(f"inner.{name}" for name in training), "mitigation", "mitigation with a version"}
