"""What workers of a comparison keep from one task to the next."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from agents.study import laboratory
from envs.task import SelectionTask
from tests.envs.test_task import TASK


def test_a_worker_keeps_what_the_judge_of_its_last_task_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laboratory, "_known", {})
    given: list[object] = []

    def build(task: SelectionTask, device: str = "cpu") -> object:
        class Factory:
            devices = (device,)

            def __call__(self, worker: int, basis: object = None) -> Any:
                given.append(basis)
                return SimpleNamespace(judge=SimpleNamespace(basis=basis or object()))

        factory: Any = Factory()
        factory.task = task
        return laboratory._build(factory, 0).judge.basis

    mitigated = dataclasses.replace(TASK, options={**TASK.options, "mitigations": {"ema": {}}})
    first = build(TASK)
    assert build(mitigated) is first
    assert build(mitigated, "cuda:1") is not first
    assert build(dataclasses.replace(TASK, seed=7)) is not first
    assert build(TASK) is not first  # of the last task alone: memory does not grow
    assert given == [None, first, None, None, None]
